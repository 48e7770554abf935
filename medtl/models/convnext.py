"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545, table 9): convolutions arranged as a transformer.

Parameters have timm's names: `stages.0.blocks.0.conv_dw`. There is no stochastic depth.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medtl.models import layers, presets
from medtl.models.convs import DepthwiseConv, PatchConv
from medtl.models.vit import Mlp

_EPSILON = 1e-6
_SCALE = 1e-6  # the initial LayerScale, section 2.6


class Block(nn.Module):
    """A 7x7 convolution of each channel, LayerNorm and an MLP beside a shortcut.

    Attributes:
      dtype: compute dtype.
    """

    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, H, W, C]."""
        channels = x.shape[-1]
        y = DepthwiseConv(7, use_bias=True, dtype=self.dtype, name="conv_dw")(x)
        y = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm")(y)
        y = Mlp(4 * channels, False, "gelu", self.dtype, name="mlp")(y)
        initial = nn.initializers.constant(_SCALE)
        gamma = self.param("gamma", initial, (channels,), jnp.float32)
        return x + y * gamma.astype(self.dtype)


class Stage(nn.Module):
    """Halve the map, but not in the first stage, and go through blocks.

    Attributes:
      width: output channels.
      depth: number of blocks.
      halve: whether a LayerNorm and a 2x2 convolution come first.
      remat, dtype: see `ConvNeXt`.
    """

    width: int
    depth: int
    halve: bool
    remat: bool
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, H // 2, W // 2, width], or [B, H, W, width]."""
        if self.halve:
            x = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="downsample_0")(x)
            x = PatchConv(self.width, 2, dtype=self.dtype, name="downsample_1")(x)
        block: Any = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x = block(self.dtype, name=f"blocks_{i}")(x)
        return x


class ConvNeXt(nn.Module):
    """A ConvNeXt from image to features; `medtl.models.backbone` builds it by name.

    Attributes:
      depths: blocks of each stage.
      widths: output channels of each stage.
      last_layer: the last stage that is kept, e.g. "layer3"; "": all are, and the mean of the map
        goes through the last LayerNorm, as in the original.
      remat: the backward pass computes the inside of a block again instead of keeping it.
      dtype: compute dtype.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    last_layer: str = ""
    remat: bool = False
    dtype: layers.Dtype = jnp.float32

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return group -> top-level parameter names, in order of depth: "stem", "layer1", ..."""
        every = presets.groups("convnext", {"depths": self.depths})
        return presets.kept(every, self.last_layer, family="convnext")

    @nn.compact
    def __call__(self, x: layers.Images, train: bool) -> layers.FeatureMap | Float[Array, "b d"]:
        """Return the pooled features, or the map of an earlier stage.

        Args:
          x: [B, H, W, C], normalized as the weights expect.
          train: is ignored; training and evaluation are the same.

        Returns:
          dtype[B, D]; where `last_layer` cuts stages off dtype[B, h, w, D], h = H // 4 after the
          first stage, half of it after each other.
        """
        norm = functools.partial(nn.LayerNorm, _EPSILON, dtype=self.dtype)
        x = PatchConv(self.widths[0], 4, dtype=self.dtype, name="stem_0")(x)
        x = norm(name="stem_1")(x)
        groups = self.groups()
        count = sum(name.startswith("layer") for name in groups)
        for i, (depth, width) in enumerate(zip(self.depths[:count], self.widths, strict=False)):
            x = Stage(width, depth, i > 0, self.remat, self.dtype, name=f"stages_{i}")(x)
        if "norm" not in groups:
            return x
        x = jnp.mean(layers.mark_feature_map(self, x), axis=(1, 2))
        return Head(self.dtype, name="head")(x)


class Head(nn.Module):
    """The LayerNorm that timm keeps with the classifier.

    Attributes:
      dtype: compute dtype.
    """

    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Normalize each example."""
        return nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm")(x)
