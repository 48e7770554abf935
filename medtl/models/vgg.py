"""VGG-11/13/16/19 (Simonyan & Zisserman 2014, arXiv:1409.1556, table 1: A, B, D, E).

Variables are named and numbered as in torchvision: `features_<i>`, and `classifier_0`,
`classifier_3` for the two hidden fully connected layers. An image that pooling shrinks to nothing
is an error, and before the fully connected layers any map but 7x7.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medtl.errors import UserError
from medtl.models import layers
from medtl.models.architectures import CLASSIFIER_WIDTH, Architecture, vgg_convs

_CLASSIFIER_MAP = 7  # 224 px after five poolings


class VGG(nn.Module):
    """A VGG from image to feature map or features; `medtl.models.backbone` builds it by name.

    Attributes:
      depths: convolutions of each block.
      widths: output channels of each block.
      batch_norm: a BatchNorm follows each convolution.
      classifier: go on through the two hidden fully connected layers, without their dropout: a
        backbone gives the same features for the same image, and the head has its own dropout.
      last_layer: the last block that is kept, with its pooling, e.g. "block4"; "": all are.
      remat: the backward pass computes the inside of a block again instead of keeping it.
      dtype: compute dtype.
      axis_name, epsilon: see `layers.BatchNorm`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    batch_norm: bool = False
    classifier: bool = False
    last_layer: str = ""
    remat: bool = False
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None
    epsilon: float = 1e-5

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return group -> top-level parameter names, in order of depth: "block1", ..."""
        architecture = Architecture(
            "VGG",
            "vgg",
            self.depths,
            self.widths,
            batch_norm=self.batch_norm,
            options={"classifier": self.classifier},
        )
        return architecture.groups(self.last_layer)

    @nn.compact
    def __call__(
        self,
        x: layers.Images,
        train: bool,
        *,
        mask: Float[Array, " b"] | None = None,
        use_batch_stats: bool | None = None,
    ) -> layers.FeatureMap | Float[Array, "b f"]:
        """Return the feature map, or with `classifier` the features.

        Args:
          x: [B, H, W, C], normalized as the weights expect; any number of channels.
          train: training or evaluation.
          mask: float32[B], 1 real, 0 padding.
          use_batch_stats: BatchNorm takes the batch's statistics instead of the running ones; None:
            in training.

        Returns:
          dtype[B, h, w, D], D the width of the last block, h = floor(H / 2^blocks); with
          `classifier` dtype[B, 4096].

        Raises:
          UserError: the image is too small; with `classifier`, the map is not 7x7.
        """
        use_batch_stats = train if use_batch_stats is None else use_batch_stats
        n = len(self.groups()) - self.classifier
        if min(x.shape[1:3]) < 2**n:
            raise UserError(
                f"data.image_size: {n} blocks of a VGG need at least {2**n} px, "
                f"not {x.shape[1]}x{x.shape[2]}"
            )
        block: Any = VGG._block
        if self.remat:
            block = nn.remat(block, static_argnums=(2, 3, 4))  # convs, width, use_batch_stats
        for convs, width in list(zip(self._convs(), self.widths, strict=True))[:n]:
            x = block(self, x, convs, width, use_batch_stats, mask)
        return self._classify(layers.mark_feature_map(self, x)) if self.classifier else x

    def _convs(self) -> tuple[tuple[int, ...], ...]:
        return vgg_convs(self.depths, batch_norm=self.batch_norm)

    def _block(
        self,
        x: layers.Images,
        convs: tuple[int, ...],
        width: int,
        use_batch_stats: bool,
        mask: Float[Array, " b"] | None,
    ) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, H // 2, W // 2, width]."""
        for i in convs:
            conv = layers.Conv(
                width, 3, padding=1, use_bias=True, dtype=self.dtype, name=f"features_{i}"
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

    def _classify(self, x: layers.Images) -> Float[Array, "b f"]:
        """Map the feature map to [B, 4096]."""
        if x.shape[1:3] != (_CLASSIFIER_MAP, _CLASSIFIER_MAP):
            raise UserError(
                "data.image_size: VGG's fully connected layers need 224 px (a 7x7 map), "
                f"but the map is {x.shape[1]}x{x.shape[2]}"
            )
        # PyTorch flattens channels first; with this its weights are ours, transposed.
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
        for name in ("classifier_0", "classifier_3"):
            dense = nn.Dense(
                CLASSIFIER_WIDTH,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.01),
                name=name,
            )
            x = nn.relu(dense(x))
        return x
