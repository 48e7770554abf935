"""ResNets for ImageNet (He et al. 2015, arXiv:1512.03385, table 1) and for CIFAR (section 4.2).

Also Wide ResNets (arXiv:1605.07146), ResNeXts (arXiv:1611.05431) and ResNet-D (arXiv:1812.01187,
section 4.1). They have no classifier and no pooling over space. Variables are named as in
torchvision (`layer1_0/downsample_0/kernel`), those of ResNet-D as in timm, and those for CIFAR as
in the widely used PyTorch port whose shortcuts have no parameters.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medtl.models import layers
from medtl.models.architectures import Architecture
from medtl.models.convs import GroupedConv

Mask = Float[Array, " b"] | None


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Attributes:
      features: output channels.
      stride: of the first convolution.
      pad_shortcut: where the shape changes, the shortcut subsamples and pads the channels with
        zeros on both sides (option A of the paper), instead of a 1x1 convolution (option B).
      pool_shortcut: see `ResNet`.
      conv, norm: the layers, with the options that all blocks share.
    """

    features: int
    stride: int
    pad_shortcut: bool
    pool_shortcut: bool
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
            shortcut = _project(self, x, use_batch_stats, mask)
        return nn.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Attributes:
      features: output channels.
      stride: of the block.
      stride_in: the convolution that takes the stride: "3x3" (torchvision, "v1.5") or the first
        "1x1" (the paper, "v1").
      cardinality, base_width, pool_shortcut: see `ResNet`.
      conv, norm: the layers, with the options that all blocks share.
    """

    features: int
    stride: int
    stride_in: str
    cardinality: int
    base_width: int
    pool_shortcut: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: layers.Images, use_batch_stats: bool, mask: Mask) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        width = self.features // 4 * self.base_width // 64 * self.cardinality
        first, second = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
        y = self.conv(width, 1, first, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, use_batch_stats, mask))
        conv = self.conv
        if self.cardinality > 1:
            conv = functools.partial(GroupedConv, groups=self.cardinality, dtype=x.dtype)
        y = conv(width, 3, second, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, use_batch_stats, mask))
        y = self.conv(self.features, 1, name="conv3")(y)
        y = self.norm(name="bn3")(y, use_batch_stats, mask)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = _project(self, x, use_batch_stats, mask)
        return nn.relu(y + shortcut)


class ResNet(nn.Module):
    """A ResNet from image to feature map; `medtl.models.backbone` builds it by name.

    Attributes:
      depths: blocks of each layer.
      widths: output channels of each layer.
      bottleneck: `Bottleneck` blocks, else `BasicBlock`.
      cifar: a 3x3 stem without pooling, and shortcuts without parameters.
      stride_in: see `Bottleneck`.
      cardinality: groups of the 3x3 convolutions of bottleneck blocks (ResNeXt).
      base_width: channels of a group of the 3x3 convolution in the first layer, whose `widths` is
        256; 128 in a Wide ResNet.
      deep_stem: three 3x3 convolutions instead of the 7x7 one (ResNet-D).
      pool_shortcut: a shortcut that halves the map takes means of 2x2 pixels, of those inside at
        the border, before its 1x1 convolution of stride 1 (ResNet-D).
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
    cardinality: int = 1
    base_width: int = 64
    deep_stem: bool = False
    pool_shortcut: bool = False
    last_layer: str = ""
    remat: bool = False
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None
    epsilon: float = 1e-5

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return group -> top-level parameter names, in order of depth: "stem", "layer1", ..."""
        settings = {"deep_stem": self.deep_stem}
        table_entry = Architecture("ResNet", "resnet", self.depths, self.widths, settings=settings)
        return table_entry.groups(self.last_layer)

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
        specific: dict[str, Any] = {"pad_shortcut": self.cifar}
        if self.bottleneck:
            fields = ("stride_in", "cardinality", "base_width")
            specific = {field: getattr(self, field) for field in fields}

        if self.cifar:
            x = conv(self.widths[0], 3, padding=1, name="conv1")(x)
        elif self.deep_stem:  # numbers as in timm's nn.Sequential
            for i, (features, stride) in zip((0, 3), ((32, 2), (32, 1)), strict=True):
                x = conv(features, 3, stride, padding=1, name=f"conv1_{i}")(x)
                x = nn.relu(norm(name=f"conv1_{i + 1}")(x, use_batch_stats, mask))
            x = conv(64, 3, padding=1, name="conv1_6")(x)
        else:
            x = conv(64, 7, 2, padding=3, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, use_batch_stats, mask))
        if not self.cifar:
            x = layers.max_pool(x, size=3, stride=2, padding=1)

        _, *blocks = self.groups().values()
        for i, names in enumerate(blocks):
            for name in names:
                x = block(
                    features=self.widths[i],
                    stride=2 if i > 0 and name == names[0] else 1,
                    pool_shortcut=self.pool_shortcut,
                    conv=conv,
                    norm=norm,
                    name=name,
                    **specific,
                )(x, use_batch_stats, mask)
        return x


def _project(
    block: BasicBlock | Bottleneck, x: layers.Images, use_batch_stats: bool, mask: Mask
) -> layers.FeatureMap:
    """Return the shortcut of a block whose output has another shape, within its `__call__`."""
    first, stride = 0, block.stride
    if block.pool_shortcut:
        odd = [(0, side % 2) for side in x.shape[1:3]]
        if stride == 2:
            x = nn.avg_pool(x, (2, 2), (2, 2), odd, count_include_pad=False)
        first, stride = 1, 1
    x = block.conv(block.features, 1, stride, name=f"downsample_{first}")(x)
    return block.norm(name=f"downsample_{first + 1}")(x, use_batch_stats, mask)


def _subsample_and_pad(x: layers.Images, stride: int, features: int) -> layers.FeatureMap:
    """Return every stride-th pixel, with zeros on both sides of its channels."""
    before = (features - x.shape[-1]) // 2
    after = features - x.shape[-1] - before
    return jnp.pad(x[:, ::stride, ::stride], [(0, 0), (0, 0), (0, 0), (before, after)])
