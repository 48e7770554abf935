"""ResNets for ImageNet (He et al. 2015, arXiv:1512.03385, table 1) and for CIFAR (section 4.2).

They have no classifier and no pooling over space. Variables are named as in torchvision
(`layer1_0/downsample_0/kernel`) and, for CIFAR, as in the widely used PyTorch port whose shortcuts
have no parameters.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medtl.models import layers
from medtl.models.architectures import Architecture

Mask = Float[Array, " b"] | None


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Attributes:
      features: output channels.
      stride: of the first convolution.
      pad_shortcut: where the shape changes, the shortcut subsamples and pads the channels with
        zeros on both sides (option A of the paper), instead of a 1x1 convolution (option B).
      conv, norm: the layers, with the options that all blocks share.
    """

    features: int
    stride: int
    pad_shortcut: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: layers.Images, use_batch_stats: bool, mask: Mask) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        y = self.conv(self.features, 3, self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, use_batch_stats, mask))
        y = self.conv(self.features, 3, padding=1, name="conv2")(y)
        y = self.norm(name="bn2")(y, use_batch_stats, mask)
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
      stride_in: the convolution that takes the stride: "3x3" (torchvision, "v1.5") or the first
        "1x1" (the paper, "v1").
      conv, norm: the layers, with the options that all blocks share.
    """

    features: int
    stride: int
    stride_in: str
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: layers.Images, use_batch_stats: bool, mask: Mask) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        width = self.features // 4
        first, second = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
        y = self.conv(width, 1, first, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, use_batch_stats, mask))
        y = self.conv(width, 3, second, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, use_batch_stats, mask))
        y = self.conv(self.features, 1, name="conv3")(y)
        y = self.norm(name="bn3")(y, use_batch_stats, mask)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = self.conv(self.features, 1, self.stride, name="downsample_0")(x)
            shortcut = self.norm(name="downsample_1")(shortcut, use_batch_stats, mask)
        return nn.relu(y + shortcut)


class ResNet(nn.Module):
    """A ResNet from image to feature map; `medtl.models.backbone` builds it by name.

    Attributes:
      depths: blocks of each layer.
      widths: output channels of each layer.
      bottleneck: `Bottleneck` blocks, else `BasicBlock`.
      cifar: a 3x3 stem without pooling, and shortcuts without parameters.
      stride_in: see `Bottleneck`.
      last_layer: the last layer that is kept, e.g. "layer3"; "": all are.
      remat: the backward pass computes the inside of a block again instead of keeping it (Chen et
        al. 2016, arXiv:1604.06174).
      dtype: compute dtype.
      axis_name, epsilon: see `layers.BatchNorm`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool = False
    cifar: bool = False
    stride_in: str = "3x3"
    last_layer: str = ""
    remat: bool = False
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None
    epsilon: float = 1e-5

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return group -> top-level parameter names, in order of depth: "stem", "layer1", ..."""
        return Architecture("ResNet", "resnet", self.depths, self.widths).groups(self.last_layer)

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
          dtype[B, h, w, D], D the width of the last layer; h = ceil(H / 32) after four ImageNet
          layers, ceil(H / 4) after three CIFAR layers.
        """
        use_batch_stats = train if use_batch_stats is None else use_batch_stats
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        norm = functools.partial(
            layers.BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name, dtype=self.dtype
        )
        block: Any = Bottleneck if self.bottleneck else BasicBlock
        if self.remat:
            block = nn.remat(block, static_argnums=(2,))  # use_batch_stats
        specific: dict[str, Any] = (
            {"stride_in": self.stride_in} if self.bottleneck else {"pad_shortcut": self.cifar}
        )

        if self.cifar:
            x = conv(self.widths[0], 3, padding=1, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x, use_batch_stats, mask))
        else:
            x = conv(64, 7, 2, padding=3, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x, use_batch_stats, mask))
            x = layers.max_pool(x, size=3, stride=2, padding=1)

        _, *blocks = self.groups().values()
        for i, names in enumerate(blocks):
            for name in names:
                x = block(
                    features=self.widths[i],
                    stride=2 if i > 0 and name == names[0] else 1,
                    conv=conv,
                    norm=norm,
                    name=name,
                    **specific,
                )(x, use_batch_stats, mask)
        return x


def _subsample_and_pad(x: layers.Images, stride: int, features: int) -> layers.FeatureMap:
    """Return every stride-th pixel, with zeros on both sides of its channels."""
    before = (features - x.shape[-1]) // 2
    after = features - x.shape[-1] - before
    return jnp.pad(x[:, ::stride, ::stride], [(0, 0), (0, 0), (0, 0), (before, after)])
