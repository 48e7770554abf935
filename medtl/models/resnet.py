"""ResNets for ImageNet (He et al. 2015, arXiv:1512.03385, table 1) and for CIFAR (section 4.2), without the classifier.

Variables are named as in torchvision (`layer1_0/downsample_0/kernel`) and, for CIFAR, as in the widely used PyTorch port whose
shortcuts have no parameters. Pooling over space is left to the head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from medtl.models import layers


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Attributes:
      features: output channels.
      stride: of the first convolution.
      pad_shortcut: where the shape changes, the shortcut subsamples and pads the channels with zeros on both sides (option A of
        the paper), instead of projecting by a 1x1 convolution (option B).
      conv, norm: the layers, with the options that all blocks share.
      scale_init: initializer of the last BatchNorm's scale.
    """

    features: int
    stride: int
    pad_shortcut: bool
    conv: Any
    norm: Any
    scale_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, use_batch_stats: bool, mask: jax.Array | None) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        y = self.conv(self.features, 3, self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, use_batch_stats, mask))
        y = self.conv(self.features, 3, padding=1, name="conv2")(y)
        y = self.norm(scale_init=self.scale_init, name="bn2")(y, use_batch_stats, mask)
        if self.stride == 1 and x.shape[-1] == self.features:
            shortcut = x
        elif self.pad_shortcut:
            shortcut = _subsample_and_pad(x, self.stride, self.features)
        else:
            shortcut = self.conv(self.features, 1, self.stride, name="downsample_0")(x)
            shortcut = self.norm(name="downsample_1")(shortcut, use_batch_stats, mask)
        return nn.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Attributes:
      features: output channels, four times those of the 3x3 convolution.
      stride: of the block.
      stride_in: the convolution that takes the stride: "3x3" (torchvision, "v1.5") or the first "1x1" (the paper, "v1").
      conv, norm: the layers, with the options that all blocks share.
      scale_init: initializer of the last BatchNorm's scale.
    """

    features: int
    stride: int
    stride_in: str
    conv: Any
    norm: Any
    scale_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, use_batch_stats: bool, mask: jax.Array | None) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        width = self.features // 4
        first, second = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
        y = self.conv(width, 1, first, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, use_batch_stats, mask))
        y = self.conv(width, 3, second, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, use_batch_stats, mask))
        y = self.conv(self.features, 1, name="conv3")(y)
        y = self.norm(scale_init=self.scale_init, name="bn3")(y, use_batch_stats, mask)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = self.conv(self.features, 1, self.stride, name="downsample_0")(x)
            shortcut = self.norm(name="downsample_1")(shortcut, use_batch_stats, mask)
        return nn.relu(y + shortcut)


class ResNet(nn.Module):
    """Image to feature map; `medtl.models.backbone` builds it by name.

    Attributes:
      depths: blocks in each stage.
      features: output channels of each stage.
      bottleneck: `Bottleneck` blocks, else `BasicBlock`.
      cifar: a 3x3 stem without pooling, and shortcuts without parameters.
      stages: keep the first n stages; 0 keeps all.
      stride_in: see `Bottleneck`.
      zero_init_residual: start the last scale of each block at 0, so that it starts as the identity (Goyal et al. 2017,
        arXiv:1706.02677, section 5.1).
      remat: the backward pass computes what is inside a block again instead of keeping it (Chen et al. 2016,
        arXiv:1604.06174).
      dtype: compute dtype.
      axis_name, epsilon: see `layers.BatchNorm`.
    """

    depths: tuple[int, ...]
    features: tuple[int, ...]
    bottleneck: bool = False
    cifar: bool = False
    stages: int = 0
    stride_in: str = "3x3"
    zero_init_residual: bool = False
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
          dtype[B, h, w, D], D = `features` of the last stage kept; h = ceil(H / 32) after four ImageNet stages,
          ceil(H / 4) after three CIFAR stages.
        """
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        norm = functools.partial(
            layers.BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name, dtype=self.dtype
        )
        scale_init = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        kind: Any = Bottleneck if self.bottleneck else BasicBlock
        if self.remat:
            kind = nn.remat(kind, static_argnums=(2,))  # use_batch_stats
        block: Callable[..., nn.Module] = (
            functools.partial(kind, stride_in=self.stride_in)
            if self.bottleneck
            else functools.partial(kind, pad_shortcut=self.cifar)
        )

        if self.cifar:
            x = conv(self.features[0], 3, padding=1, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x, use_batch_stats, mask))
        else:
            x = conv(64, 7, 2, padding=3, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x, use_batch_stats, mask))
            x = layers.max_pool(x, size=3, stride=2, padding=1)

        for stage in range(1, (self.stages or len(self.depths)) + 1):
            for i in range(self.depths[stage - 1]):
                x = block(
                    features=self.features[stage - 1],
                    stride=2 if stage > 1 and i == 0 else 1,
                    conv=conv,
                    norm=norm,
                    scale_init=scale_init,
                    name=f"layer{stage}_{i}",
                )(x, use_batch_stats, mask)
        return x


def _subsample_and_pad(x: jax.Array, stride: int, features: int) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]: every stride-th pixel, zeros on both sides of C."""
    before = (features - x.shape[-1]) // 2
    after = features - x.shape[-1] - before
    return jnp.pad(x[:, ::stride, ::stride], [(0, 0), (0, 0), (0, 0), (before, after)])
