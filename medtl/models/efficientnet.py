"""EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946, table 1) and EfficientNet-Lite0.

Lite0 has no squeeze-and-excitation, and ReLU6 instead of SiLU. Convolutions pad as TensorFlow does,
in which both were trained. Parameters have timm's names: `blocks.0.0.conv_dw`. There is no
stochastic depth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medtl.models import layers, presets
from medtl.models.convs import DepthwiseConv, same_padding

Mask = Float[Array, " b"] | None
_MOMENTUM = 0.99  # of TensorFlow's BatchNorm; PyTorch's 0.01
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_STEM, _HEAD, _EXPANSION, _REDUCTION = 32, 1280, 6, 4


class SqueezeExcite(nn.Module):
    """Scale channels by a function of their means (Hu et al. 2018, arXiv:1709.01507).

    Attributes:
      width: of the hidden layer.
      activation: of the hidden layer.
      dtype: compute dtype.
    """

    width: int
    activation: Callable[[Any], Any]
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.Images:
        """Map [B, H, W, C] to [B, H, W, C]."""
        conv = functools.partial(layers.Conv, use_bias=True, dtype=self.dtype)
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = self.activation(conv(self.width, 1, name="conv_reduce")(y))
        return x * nn.sigmoid(conv(x.shape[-1], 1, name="conv_expand")(y))


class Block(nn.Module):
    """Expand with 1x1, convolve each channel, project with 1x1 (MBConv; Sandler et al. 2018).

    Attributes:
      features: output channels.
      size: side of the kernel of the middle convolution.
      stride: of the middle convolution.
      expands: the first stage does not, and names its convolutions differently.
      lite: see `EfficientNet`.
      conv, norm: the layers, with the options that all blocks share.
      dtype: compute dtype.
    """

    features: int
    size: int
    stride: int
    expands: bool
    lite: bool
    conv: Any
    norm: Any
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: layers.Images, use_batch_stats: bool, mask: Mask) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        activation = nn.relu6 if self.lite else nn.silu
        y, inputs = x, x.shape[-1]
        if self.expands:
            y = self.conv(_EXPANSION * inputs, 1, name="conv_pw")(y)
            y = activation(self.norm(name="bn1")(y, use_batch_stats, mask))
        depthwise = DepthwiseConv(
            self.size,
            self.stride,
            same=True,
            dtype=self.dtype,
            kernel_init=_depthwise_init,
            name="conv_dw",
        )
        y = self.norm(name="bn2" if self.expands else "bn1")(depthwise(y), use_batch_stats, mask)
        y = activation(y)
        if not self.lite:
            y = SqueezeExcite(inputs // _REDUCTION, activation, self.dtype, name="se")(y)
        y = self.conv(self.features, 1, name="conv_pwl" if self.expands else "conv_pw")(y)
        y = self.norm(name="bn3" if self.expands else "bn2")(y, use_batch_stats, mask)
        return x + y if self.stride == 1 and inputs == self.features else y


_depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class EfficientNet(nn.Module):
    """An EfficientNet from image to feature map; `medtl.models.backbone` builds it by name.

    Attributes:
      depths: blocks of each of the seven stages.
      widths: output channels of each stage.
      lite: EfficientNet-Lite.
      last_layer: the last stage that is kept, e.g. "layer5"; "": all are, with the 1x1 convolution
        to 1,280 channels.
      remat: the backward pass computes the inside of a block again instead of keeping it.
      dtype: compute dtype.
      axis_name, epsilon: see `layers.BatchNorm`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    lite: bool = False
    last_layer: str = ""
    remat: bool = False
    dtype: layers.Dtype = jnp.float32
    axis_name: str | None = None
    epsilon: float = 1e-3

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return group -> top-level parameter names, in order of depth: "stem", "layer1", ..."""
        every = presets.groups("efficientnet", {"depths": self.depths})
        return presets.kept(every, self.last_layer, family="efficientnet")

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
          dtype[B, h, w, D], h = ceil(H / 32) and D = 1280 after all stages.
        """
        use_batch_stats = train if use_batch_stats is None else use_batch_stats
        activation = nn.relu6 if self.lite else nn.silu
        conv = functools.partial(layers.Conv, dtype=self.dtype)
        norm = functools.partial(
            layers.BatchNorm,
            self.epsilon,
            momentum=_MOMENTUM,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        block: Any = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        rows, columns = (same_padding(side, 3, 2) for side in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
        x = conv(_STEM, 3, 2, name="conv_stem")(x)
        x = activation(norm(name="bn1")(x, use_batch_stats, mask))
        groups = self.groups()
        for i, width in enumerate(self.widths):
            for j, name in enumerate(groups.get(f"layer{i + 1}", ())):
                stride = _STRIDES[i] if j == 0 else 1
                make = block(
                    width, _KERNELS[i], stride, i > 0, self.lite, conv, norm, self.dtype, name=name
                )
                x = make(x, use_batch_stats, mask)
        if "head" in groups:
            x = conv(_HEAD, 1, name="conv_head")(x)
            x = activation(norm(name="bn2")(x, use_batch_stats, mask))
        return x
