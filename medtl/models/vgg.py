"""VGG-11/13/16/19 (Simonyan & Zisserman 2014, arXiv:1409.1556, table 1: A, B, D, E), with and without BatchNorm.

Variables are named and numbered as in torchvision: `features_<i>`, and `classifier_0`, `classifier_3` for the two hidden fully
connected layers. Refuses an image that pooling shrinks to nothing, and with the fully connected layers any map but 7x7.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from medtl.errors import UserError
from medtl.models import architectures, layers

_CLASSIFIER_MAP = 7  # 224 px after five poolings


class VGG(nn.Module):
    """Image to feature map; `medtl.models.backbone` builds it by name.

    Attributes:
      convs: for each stage the i of its convolutions `features_<i>` (`architectures.vgg_layers`).
      features: output channels of each stage.
      batch_norm: a BatchNorm `features_<i + 1>` after each convolution.
      stages: keep the first n stages, each up to and with its pooling; 0 keeps all.
      classifier: go on through the two hidden fully connected layers. Their dropout is left out: a backbone gives the same
        features for the same image, and the head has a dropout of its own.
      remat: the backward pass computes what is inside a stage again instead of keeping it.
      dtype: compute dtype.
      axis_name, epsilon: see `layers.BatchNorm`.
    """

    convs: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    batch_norm: bool = False
    stages: int = 0
    classifier: bool = False
    remat: bool = False
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: jax.Array, *, use_batch_stats: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """Computes the feature map.

        Args:
          x: [B, H, W, C], normalised as the weights expect; any number of channels.
          use_batch_stats: BatchNorm takes the batch's statistics, else the running ones.
          mask: float32[B], 1 real, 0 padding.

        Returns:
          dtype[B, h, w, D], D = `features` of the last stage kept, h = floor(H / 2^stages); with `classifier`
          dtype[B, 1, 1, 4096].

        Raises:
          UserError: the image is too small; with `classifier`, the map is not 7x7.
        """
        stages = self.stages or len(self.convs)
        if min(x.shape[1:3]) < 2**stages:
            raise UserError(
                f"data.image_size: {stages} stages of a VGG need at least {2**stages} px, not {x.shape[1]}x{x.shape[2]}"
            )
        one: Any = VGG._stage
        if self.remat:
            one = nn.remat(one, static_argnums=(2, 3))  # stage, use_batch_stats
        for stage in range(stages):
            x = one(self, x, stage, use_batch_stats, mask)
        return self._classify(x) if self.classifier else x

    def _stage(
        self, x: jax.Array, stage: int, use_batch_stats: bool, mask: jax.Array | None
    ) -> jax.Array:
        """[B, H, W, C] -> [B, H // 2, W // 2, D]."""
        for i in self.convs[stage]:
            conv = layers.Conv(
                self.features[stage],
                3,
                padding=1,
                use_bias=True,
                dtype=self.dtype,
                name=f"features_{i}",
            )
            x = conv(x)
            if self.batch_norm:
                norm = layers.BatchNorm(
                    self.epsilon,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"features_{i + 1}",
                )
                x = norm(x, use_batch_stats, mask)
            x = nn.relu(x)
        return layers.max_pool(x, size=2, stride=2)

    def _classify(self, x: jax.Array) -> jax.Array:
        """[B, 7, 7, 512] -> [B, 1, 1, 4096]."""
        if x.shape[1:3] != (_CLASSIFIER_MAP, _CLASSIFIER_MAP):
            raise UserError(
                "data.image_size: VGG's fully connected layers need 224 px (a 7x7 map), "
                f"but the map is {x.shape[1]}x{x.shape[2]}"
            )
        # PyTorch flattens channels first; so flattened, its weights are ours transposed.
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
        for name in ("classifier_0", "classifier_3"):
            dense = nn.Dense(
                architectures.CLASSIFIER_FEATURES,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.01),
                name=name,
            )
            x = nn.relu(dense(x))
        return x[:, None, None, :]
