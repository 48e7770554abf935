"""Convolutions of the later networks: of patches, groups, channels, and TensorFlow's padding.

Parameters are named and shaped as `layers.Conv` has them, so that weights of PyTorch's Conv2d fit.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medtl.models import layers

Padding = tuple[tuple[int, int], ...]
_DENSE = 64  # channels of a dense convolution; the fastest of 32 to 128 on two cores
_PARTS = 8  # blocks of rows that one loop adds; more compile longer, fewer are slower

truncated_normal = nn.initializers.truncated_normal(0.02)
"""Initial kernels of transformers and ConvNeXts, as in timm."""


class PatchConv(nn.Module):
    """A convolution whose stride is the side of its kernel: a matrix product over patches.

    Rows and columns beyond the last whole patch are left out, as by a convolution.

    Parameters: `kernel` float32[size, size, C, features], and with `use_bias` `bias`
    float32[features].

    Attributes:
      features: output channels.
      size: side of the kernel, and its step.
      use_bias: whether a bias is added.
      dtype: compute dtype.
    """

    features: int
    size: int
    use_bias: bool = True
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to dtype[B, H // size, W // size, features]."""
        n, channels = self.size, x.shape[-1]
        kernel = self.param(
            "kernel", truncated_normal, (n, n, channels, self.features), jnp.float32
        )
        h, w = x.shape[1] // n, x.shape[2] // n
        x = jnp.asarray(x, self.dtype)[:, : h * n, : w * n].reshape(-1, h, n, w, n, channels)
        patches = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, h, w, n * n * channels)
        y = patches @ kernel.astype(self.dtype).reshape(n * n * channels, self.features)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class DepthwiseConv(nn.Module):
    """A convolution of every channel with a kernel of its own.

    Parameters: `kernel` float32[size, size, 1, C], and with `use_bias` `bias` float32[C].

    Attributes:
      size: side of the kernel.
      stride: step of the kernel in both directions.
      same: TensorFlow's padding, see `same_padding`; else size // 2 zeros on each side.
      use_bias: whether a bias is added.
      dtype: compute dtype.
      kernel_init: initializer of `kernel`.
    """

    size: int
    stride: int = 1
    same: bool = False
    use_bias: bool = False
    dtype: layers.Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = truncated_normal

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to dtype[B, ceil(H / stride), ceil(W / stride), C]."""
        channels = x.shape[-1]
        kernel = self.param(
            "kernel", self.kernel_init, (self.size, self.size, 1, channels), jnp.float32
        )
        x, kernel = jnp.asarray(x, self.dtype), kernel.astype(self.dtype)
        if self.same:
            padding = [same_padding(side, self.size, self.stride) for side in x.shape[1:3]]
        else:
            padding = [(self.size // 2, self.size // 2)] * 2
        y = depthwise(x, kernel, stride=self.stride, padding=padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class GroupedConv(nn.Module):
    """A convolution of each group of neighbouring channels to as many groups of features.

    Parameters: `kernel` float32[size, size, C / groups, features].

    Attributes:
      features: output channels; `groups` divides them and C.
      size: side of the kernel.
      stride: step of the kernel in both directions.
      padding: zeros on each of the four sides.
      groups: number of groups.
      dtype: compute dtype.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to dtype[B, h, w, features]."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", layers.he_normal, shape, jnp.float32).astype(self.dtype)
        x = jnp.asarray(x, self.dtype)
        return grouped(x, kernel, stride=self.stride, padding=self.padding, groups=self.groups)


def grouped(
    x: layers.Images,
    kernel: layers.Kernel,
    *,
    stride: int,
    padding: int,
    groups: int,
    form: str | None = None,
) -> layers.FeatureMap:
    """Return the cross-correlation of each group of channels with its part of the kernel.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, D], of the same dtype.
      stride: step in both directions.
      padding: zeros on each of the four sides.
      groups: number of groups.
      form: "plain" or "cpu"; None: see `layers.lowering`.

    Returns:
      [B, h, w, D].
    """
    make = _grouped if (form or layers.lowering()) == "cpu" else _correlate
    return make(x, kernel, stride, ((padding, padding), (padding, padding)), groups)


def _correlate(x: Any, kernel: Any, stride: int, padding: Padding, groups: int) -> Any:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _grouped(x: Any, kernel: Any, stride: int, padding: Padding, groups: int) -> Any:
    """Return `_correlate`, whose gradient by the kernel is that of dense kernels."""
    return _correlate(x, kernel, stride, padding, groups)


def _grouped_forward(x: Any, kernel: Any, stride: int, padding: Padding, groups: int) -> Any:
    return _correlate(x, kernel, stride, padding, groups), (x, kernel)


def _grouped_backward(
    stride: int, padding: Padding, groups: int, residuals: tuple[Any, Any], dy: Any
) -> tuple[Any, Any]:
    """Return both gradients.

    XLA's CPU backend takes the gradient by a grouped kernel group by group, up to 200 times as long
    as the forward pass. Here some neighbouring groups are one dense convolution of about 64
    channels, whose gradient has theirs on its diagonal.
    """
    x, kernel = jax.lax.optimization_barrier(residuals)
    (dx,) = jax.vjp(lambda x: _correlate(x, kernel, stride, padding, groups), x)[1](dy)
    size, _, inner, features = kernel.shape
    outer = features // groups
    count = math.gcd(groups, max(_DENSE // inner, 1))
    parts = []
    for i in range(0, groups, count):
        part = x[..., i * inner : (i + count) * inner]
        dense = jnp.zeros((size, size, count * inner, count * outer), kernel.dtype)
        _, pull = jax.vjp(lambda k, part=part: _correlate(part, k, stride, padding, 1), dense)
        (dense,) = pull(dy[..., i * outer : (i + count) * outer])
        dense = dense.reshape(size, size, count, inner, count, outer)
        parts.append(jnp.einsum("ijgcgd->ijcgd", dense))
    return dx, jnp.concatenate(parts, axis=3).reshape(kernel.shape)


_grouped.defvjp(_grouped_forward, _grouped_backward)


def depthwise(
    x: layers.Images,
    kernel: Float[Array, "k k 1 c"],
    *,
    stride: int,
    padding: list[tuple[int, int]],
    form: str | None = None,
) -> layers.FeatureMap:
    """Return the cross-correlation of each channel with its own kernel.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, 1, C], of the same dtype.
      stride: step in both directions.
      padding: zeros before and after the rows, and the columns.
      form: "plain" or "cpu"; None: see `layers.lowering`.

    Returns:
      [B, h, w, C].
    """
    pads = (padding[0], padding[1])
    if (form or layers.lowering()) == "cpu":
        return _depthwise(x, kernel, stride, pads)
    return _correlate(x, kernel, stride, pads, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: Any, kernel: Any, stride: int, padding: Padding) -> Any:
    """Return `_shifted`, whose gradient by the kernel adds rows before it adds pixels."""
    return _shifted(x, kernel, stride, padding)


def _depthwise_forward(x: Any, kernel: Any, stride: int, padding: Padding) -> Any:
    return _shifted(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(
    stride: int, padding: Padding, residuals: tuple[Any, Any], dy: Any
) -> tuple[Any, Any]:
    x, kernel = residuals
    if stride == 1:
        size = len(kernel)
        mirrored = tuple((size - 1 - before, size - 1 - after) for before, after in padding)
        dx = _shifted(dy, kernel[::-1, ::-1], 1, mirrored)
    else:
        (dx,) = jax.vjp(lambda x: _shifted(x, kernel, stride, padding), x)[1](dy)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return dx, _kernel_gradient(padded, dy, len(kernel), stride).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _shifted(
    x: layers.Images, kernel: Float[Array, "k k 1 c"], stride: int, padding: Padding
) -> layers.FeatureMap:
    """Return the sum of the shifted images, each times its row of the kernel.

    XLA's CPU backend runs a grouped convolution channel by channel; the sum is one loop over
    neighbouring channels, many times as fast. It is in float32, as that of a convolution.
    """
    size = kernel.shape[0]
    h, w = (
        (side + sum(pad) - size) // stride + 1
        for side, pad in zip(x.shape[1:3], padding, strict=True)
    )
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    total = jnp.zeros((len(x), h, w, x.shape[-1]), jnp.float32)
    for i in range(size):
        for j in range(size):
            rows = slice(i, i + (h - 1) * stride + 1, stride)
            columns = slice(j, j + (w - 1) * stride + 1, stride)
            total = total + padded[:, rows, columns].astype(jnp.float32) * kernel[i, j, 0]
    return total.astype(x.dtype)


def _kernel_gradient(padded: Any, dy: Any, size: int, stride: int) -> Any:
    """Return float32[size, size, 1, C], for each tap the sum of its pixels times dy.

    XLA's CPU backend computes the product within the sum over all pixels, which takes 20 times as
    long as the forward pass. Here a loop over neighbouring channels multiplies and adds up to
    `_PARTS` blocks of rows, and what is left is summed. One row of the kernel at a time: all taps
    written out compile five times as long.
    """
    h, w = dy.shape[1:3]
    parts = min(h, _PARTS)
    rows = -(-h // parts)
    extra = rows * parts - h
    dy = jnp.pad(dy, ((0, 0), (0, extra), (0, 0), (0, 0))).astype(jnp.float32)
    padded = jnp.pad(padded, ((0, 0), (0, extra * stride), (0, 0), (0, 0)))

    def of_row(i: Any) -> Any:
        length = (rows * parts - 1) * stride + 1
        x = jax.lax.dynamic_slice_in_dim(padded, i, length, axis=1)[:, ::stride]
        taps = []
        for j in range(size):
            columns = x[:, :, j : j + (w - 1) * stride + 1 : stride].astype(jnp.float32)
            blocks = [slice(p * rows, (p + 1) * rows) for p in range(parts)]
            added = sum(columns[:, block] * dy[:, block] for block in blocks)
            # The barrier keeps XLA from computing the products within the sum again.
            taps.append(jnp.sum(jax.lax.optimization_barrier(added), axis=(0, 1, 2)))
        return jnp.stack(taps)

    return jax.lax.map(of_row, jnp.arange(size))[:, :, None]


def same_padding(side: int, size: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after a side, so that it becomes ceil(side / stride).

    TensorFlow's "SAME": of an odd number of zeros one more is after the side, so that the grid of
    a strided convolution depends on the image's size.

    >>> same_padding(224, 3, 2), same_padding(225, 3, 2)
    ((0, 1), (1, 1))
    """
    total = max((-(-side // stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2
