"""DenseNets (Huang et al. 2017, arXiv:1608.06993, table 1) with torchvision's parameter names.

The names lack the prefix `features.`, which a weight file may have and an exported one has.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medtl.models import layers, presets

Mask = Float[Array, " b"] | None


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a 1x1 convolution, then the same with a 3x3 convolution.

    Attributes:
      growth: output channels.
      conv, norm: the layers, with the options that all blocks share.
    """

    growth: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: layers.Images, use_batch_stats: bool, mask: Mask) -> layers.FeatureMap:
        """Map [B, H, W, C] to the new channels [B, H, W, growth]."""
        y = nn.relu(self.norm(name="norm1")(x, use_batch_stats, mask))
        y = self.conv(4 * self.growth, 1, name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y, use_batch_stats, mask))
        return self.conv(self.growth, 3, padding=1, name="conv2")(y)


class DenseBlock(nn.Module):
    """Layers that each see the outputs of all earlier ones.

    Attributes:
      depth: number of layers.
      growth, conv, norm: see `DenseLayer`.
      remat: see `DenseNet`.
    """

    depth: int
    growth: int
    conv: Any
    norm: Any
    remat: bool

    @nn.compact
    def __call__(self, x: layers.Images, use_batch_stats: bool, mask: Mask) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, H, W, C + depth * growth]."""
        layer: Any = nn.remat(DenseLayer, static_argnums=(2,)) if self.remat else DenseLayer
        for i in range(self.depth):
            make = layer(self.growth, self.conv, self.norm, name=f"denselayer{i + 1}")
            x = jnp.concatenate([x, make(x, use_batch_stats, mask)], axis=-1)
            if layers.lowering() == "cpu":
                # Otherwise XLA copies earlier outputs within later loops, with a choice per pixel.
                x = jax.lax.optimization_barrier(x)
        return x


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution to half of the channels, and 2x2 average pooling.

    Attributes:
      conv, norm: the layers, with the options that all blocks share.
    """

    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: layers.Images, use_batch_stats: bool, mask: Mask) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, H // 2, W // 2, C // 2]."""
        y = nn.relu(self.norm(name="norm")(x, use_batch_stats, mask))
        y = self.conv(x.shape[-1] // 2, 1, name="conv")(y)
        return nn.avg_pool(y, (2, 2), strides=(2, 2))


class DenseNet(nn.Module):
    """A DenseNet from image to feature map; `medtl.models.backbone` builds it by name.

    Attributes:
      depths: layers of each dense block.
      growth: channels that each layer adds.
      stem: channels of the first convolution.
      last_layer: the last dense block that is kept, e.g. "layer3"; a layer begins with the
        transition before its block. "": all are, with the last BatchNorm and ReLU.
      remat: the backward pass computes the inside of a dense layer again instead of keeping it
        (Pleiss et al. 2017, arXiv:1707.06990).
      dtype: compute dtype.
      axis_name, epsilon: see `layers.BatchNorm`.
    """

    depths: tuple[int, ...]
    growth: int = 32
    stem: int = 64
    last_layer: str = ""
    remat: bool = False
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None
    epsilon: float = 1e-5

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return group -> top-level parameter names, in order of depth: "stem", "layer1", ..."""
        groups = presets.groups("densenet", {"depths": self.depths})
        return presets.kept(groups, self.last_layer, family="densenet")

    @nn.compact
    def __call__(
        self,
        x: layers.Images,
        train: bool,
        *,
        mask: Mask = None,
        use_batch_stats: bool | None = None,
    ) -> layers.FeatureMap:
        """Return the feature map.

        Args:
          x: [B, H, W, C], normalized as the weights expect; any number of channels.
          train: training or evaluation.
          mask: float32[B], 1 real, 0 padding.
          use_batch_stats: BatchNorm takes the batch's statistics instead of the running ones; None:
            in training.

        Returns:
          dtype[B, h, w, D], h = floor(ceil(H / 4) / 8) after four blocks.
        """
        use_batch_stats = train if use_batch_stats is None else use_batch_stats
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        norm = functools.partial(
            layers.BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name, dtype=self.dtype
        )
        x = conv(self.stem, 7, 2, padding=3, name="conv0")(x)
        x = nn.relu(norm(name="norm0")(x, use_batch_stats, mask))
        x = layers.max_pool(x, size=3, stride=2, padding=1)
        names = sum(self.groups().values(), ())
        for i, depth in enumerate(self.depths):
            if f"denseblock{i + 1}" not in names:
                return x
            if i > 0:
                x = Transition(conv, norm, name=f"transition{i}")(x, use_batch_stats, mask)
            block = DenseBlock(
                depth, self.growth, conv, norm, self.remat, name=f"denseblock{i + 1}"
            )
            x = block(x, use_batch_stats, mask)
        return nn.relu(norm(name="norm5")(x, use_batch_stats, mask))
