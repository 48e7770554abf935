"""BiT, a pre-activation ResNet without BatchNorm (Kolesnikov et al. 2020, arXiv:1912.11370).

GroupNorm and weight standardization (Qiao et al. 2019, arXiv:1903.10520) take the place of
BatchNorm, so that training and evaluation are the same. Padding is that of the original, which
pools zeros at the border. Parameters have timm's names: `stages.0.blocks.0.downsample.conv`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from medtl.models import layers, presets

_EPSILON = 1e-8  # of weight standardization, as in timm
_NORM = functools.partial(nn.GroupNorm, 32, epsilon=1e-5, use_fast_variance=False)


class StdConv(nn.Module):
    """A convolution whose kernel has mean 0 and variance 1 for each feature.

    Parameters: `kernel` float32[size, size, C, features], not standardized.

    Attributes:
      features, size, stride, padding, dtype: see `layers.Conv`.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to dtype[B, h, w, features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", layers.he_normal, shape, jnp.float32)
        kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
        kernel = kernel * jax.lax.rsqrt(jnp.mean(kernel**2, axis=(0, 1, 2)) + _EPSILON)
        x, kernel = jnp.asarray(x, self.dtype), kernel.astype(self.dtype)
        return layers.convolve(x, kernel, stride=self.stride, padding=self.padding)


class Inner(nn.Module):
    """A `StdConv` that timm keeps one level deeper, as `stem.conv` and `downsample.conv`.

    Attributes:
      features, size, stride, padding, dtype: see `layers.Conv`.
    """

    features: int
    size: int
    stride: int
    padding: int
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to dtype[B, h, w, features]."""
        conv = StdConv(self.features, self.size, self.stride, self.padding, self.dtype, name="conv")
        return conv(x)


class Block(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each behind GroupNorm and ReLU, beside a shortcut.

    Attributes:
      features: output channels, four times those of the 3x3 convolution.
      stride: of the 3x3 convolution.
      dtype: compute dtype.
    """

    features: int
    stride: int
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        conv = functools.partial(StdConv, dtype=self.dtype)
        norm = functools.partial(_NORM, dtype=self.dtype)
        width = self.features // 4
        y = nn.relu(norm(name="norm1")(x))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Inner(self.features, 1, self.stride, 0, self.dtype, name="downsample")(y)
        y = conv(width, 1, name="conv1")(y)
        y = conv(width, 3, self.stride, 1, name="conv2")(nn.relu(norm(name="norm2")(y)))
        return x + conv(self.features, 1, name="conv3")(nn.relu(norm(name="norm3")(y)))


class Stage(nn.Module):
    """Blocks of one width; the first takes the stride.

    Attributes:
      width: output channels.
      depth: number of blocks.
      stride: of the first block.
      remat, dtype: see `ResNetV2`.
    """

    width: int
    depth: int
    stride: int
    remat: bool
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), width]."""
        block: Any = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x = block(self.width, 1 if i else self.stride, self.dtype, name=f"blocks_{i}")(x)
        return x


class ResNetV2(nn.Module):
    """A BiT ResNet from image to feature map; `medtl.models.backbone` builds it by name.

    Attributes:
      depths: blocks of each stage.
      widths: output channels of each stage, multiples of 128; the stem has a quarter of the first.
      last_layer: the last stage that is kept, e.g. "layer3"; "": all are, with the last GroupNorm
        and ReLU.
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
        every = presets.groups("resnetv2", {"depths": self.depths})
        return presets.kept(every, self.last_layer, family="resnetv2")

    @nn.compact
    def __call__(self, x: layers.Images, train: bool) -> layers.FeatureMap:
        """Return the feature map.

        Args:
          x: [B, H, W, C], normalized as the weights expect.
          train: is ignored; training and evaluation are the same.

        Returns:
          dtype[B, h, w, D], h = ceil(H / 32) after four stages.
        """
        x = Inner(self.widths[0] // 4, 7, 2, 3, self.dtype, name="stem")(x)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = layers.max_pool(x, size=3, stride=2)
        groups = self.groups()
        count = sum(name.startswith("layer") for name in groups)
        for i, (depth, width) in enumerate(zip(self.depths[:count], self.widths, strict=False)):
            x = Stage(width, depth, 2 if i else 1, self.remat, self.dtype, name=f"stages_{i}")(x)
        return nn.relu(_NORM(dtype=self.dtype, name="norm")(x)) if "norm" in groups else x
