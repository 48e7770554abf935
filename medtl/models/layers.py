"""Convolution, BatchNorm and pooling: the one place where the primitive operations of a backbone are chosen.

Everything is NHWC with explicit symmetric padding, as PyTorch pads; "SAME" would shift the grid of a strided convolution.
Parameters and running statistics are float32, whatever the compute dtype.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Dtype = Any

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Weights of variance 2 / (k * k * features): He et al. 2015 (arXiv:1502.01852, eq. 14), as torchvision starts its models."""


class Conv(nn.Module):
    """A square convolution, cross-correlation as in every deep-learning library.

    Parameters: `kernel` float32[size, size, C, features] (HWIO), and with `use_bias` `bias` float32[features].

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: step of the kernel in both directions.
      padding: zeros on each of the four sides.
      use_bias: whether a bias is added.
      dtype: compute dtype.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> dtype[B, h, w, features], h = floor((H + 2 padding - size) / stride) + 1."""
        kernel = self.param("kernel", he_normal, (self.size, self.size, x.shape[-1], self.features), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.size == 1 and self.padding == 0:
            # XLA's CPU backend runs a matrix product faster than a 1x1 convolution, above all in the backward pass.
            y = jnp.dot(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=[(self.padding, self.padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation over the whole global batch, padding excluded (Ioffe & Szegedy 2015, arXiv:1502.03167).

        y = (x - mean) / sqrt(var + epsilon) * scale + bias

    In place of `flax.linen.BatchNorm` because
    - over devices it adds sums and counts; a mean of the devices' means would be wrong where they hold unequal numbers of
      real examples, and NaN where one holds none,
    - the running variance takes the unbiased estimator n / (n - 1), as PyTorch does, so that both agree after training,
    - the variance is that of the centred values: E[x^2] - E[x]^2 loses all digits where |mean| is large beside the deviation.

    Parameters: `scale`, `bias` float32[C]. Collection `batch_stats`: `mean`, `var` float32[C].

    Attributes:
      epsilon: added to the variance.
      momentum: share of the old running statistics that is kept; 1 minus PyTorch's momentum.
      axis_name: axis of `jax.pmap` over which the statistics are taken; None on one device, or under `jit` over a mesh, where
        the batch axis is already the global one.
      dtype: dtype of the result; statistics are computed in float32.
      scale_init: initializer of `scale`.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: Dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, use_batch_stats: bool, mask: jax.Array | None = None) -> jax.Array:
        """Normalises x, and updates the running statistics where `batch_stats` is mutable.

        Args:
          x: [B, H, W, C].
          use_batch_stats: normalise with this batch's statistics instead of the running ones.
          mask: float32[B], 1 real, 0 padding; None where all are real. Padded rows do not count, and come out finite.

        Returns:
          dtype[B, H, W, C].
        """
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x = x.astype(jnp.float32)

        if not use_batch_stats:
            y = (x - running_mean.value) * (scale * jax.lax.rsqrt(running_var.value + self.epsilon)) + bias
            return y.astype(self.dtype)

        # The axis is not bound while the variables are initialised.
        axis_name = None if self.is_initializing() else self.axis_name
        count = _count(x, mask, axis_name)
        mean = _masked_sum(x, mask, axis_name) / jnp.maximum(count, 1.0)
        # With a constant c, var = E[(x - c)^2] - (mean - c)^2 and x - mean = (x - c) - (mean - c) hold for any c. Taking
        # the mean's value for c makes mean - c zero, so nothing cancels, while its gradient stays exact and needs two
        # sums over the batch where differentiating through x - mean needs four.
        centre = jax.lax.stop_gradient(mean)
        offset = mean - centre
        centred = x - centre
        var = _masked_sum(jnp.square(centred), mask, axis_name) / jnp.maximum(count, 1.0) - jnp.square(offset)
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        y = centred * gain + (bias - offset * gain)

        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            unbiased = var * (count / jnp.maximum(count - 1.0, 1.0))
            # A batch of padding alone says nothing.
            keep = jnp.where(count > 0, self.momentum, 1.0)
            running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
            running_var.value = keep * running_var.value + (1.0 - keep) * unbiased
        return y.astype(self.dtype)


def _masked_sum(x: jax.Array, mask: jax.Array | None, axis_name: str | None) -> jax.Array:
    """float32[C], the sum of [B, H, W, C] over real examples, pixels and devices.

    Space first: the mask then costs nothing, and two short sums round less than a long one.
    """
    per_example = jnp.sum(x, axis=(1, 2))
    if mask is not None:
        per_example = jnp.where(mask[:, None] > 0, per_example, 0.0)
    total = jnp.sum(per_example, axis=0)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _count(x: jax.Array, mask: jax.Array | None, axis_name: str | None) -> jax.Array:
    """float32[], how many pixels of real examples all devices hold."""
    examples = jnp.float32(x.shape[0]) if mask is None else jnp.sum((mask > 0).astype(jnp.float32))
    count = examples * (x.shape[1] * x.shape[2])
    return count if axis_name is None else jax.lax.psum(count, axis_name)


def max_pool(x: jax.Array, *, size: int, stride: int, padding: int = 0) -> jax.Array:
    """[B, H, W, C] -> [B, h, w, C], h = floor((H + 2 padding - size) / stride) + 1; the padding never wins."""
    return nn.max_pool(x, (size, size), strides=(stride, stride), padding=[(padding, padding)] * 2)
