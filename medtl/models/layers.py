"""Convolution, BatchNorm and pooling: the one place where the primitive operations of a backbone are chosen.

Everything is NHWC with explicit symmetric padding, as PyTorch pads; "SAME" would shift the grid of a strided convolution.
Parameters and running statistics are float32, whatever the compute dtype.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Dtype = Any

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Weights of variance 2 / (k * k * features): He et al. 2015 (arXiv:1502.01852, eq. 14), as torchvision starts its models."""


def lowering() -> str:
    """How the primitives below are written: "cpu" where XLA has slow code for the plain form, else "plain".

    The one place where the choice is made, when a function is traced. On GPU and TPU XLA hands the plain forms to libraries
    that know them; what each rewriting gave on a CPU stands in docs/performance.md. All forms give equal numbers, but for
    rounding.
    """
    return "cpu" if jax.default_backend() == "cpu" else "plain"


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, form: str | None = None
) -> jax.Array:
    """Cross-correlation of [B, H, W, C] with [k, k, C, D] -> [B, h, w, D], h = floor((H + 2 padding - k) / stride) + 1.

    Args:
      x: the images.
      kernel: HWIO, of the same dtype.
      stride: step in both directions.
      padding: zeros on each of the four sides.
      form: "plain" or "cpu"; None: what `lowering` says.
    """
    if (form or lowering()) == "plain":
        return _correlate(x, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1) and padding == 0:
        # XLA's CPU backend runs a matrix product faster than a 1x1 convolution, above all in the backward pass.
        x = x[:, ::stride, ::stride]
        rows = x.shape[0] * x.shape[1] * x.shape[2]
        return _product(x.reshape(rows, -1), kernel[0, 0]).reshape(*x.shape[:3], -1)
    return _windowed(x, kernel, stride, padding)


def _correlate(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _windowed(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """`_correlate`, whose gradient by the kernel reads its operands as they lie in memory."""
    return _correlate(x, kernel, stride, padding)


def _windowed_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _correlate(x, kernel, stride, padding), (x, kernel)


def _windowed_backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # XLA transposes both operands for the gradient by the kernel. Without the barrier it computes the BatchNorm and ReLU that
    # made them anew within the transposition, pixel by pixel, which takes longer than the convolution.
    x, dy = jax.lax.optimization_barrier((residuals[0], dy))
    _, pull = jax.vjp(lambda x, kernel: _correlate(x, kernel, stride, padding), x, residuals[1])
    return pull(dy)


_windowed.defvjp(_windowed_forward, _windowed_backward)


@jax.custom_vjp
def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    """[M, C] @ [C, D], whose gradient by w transposes the narrower of the two tall operands."""
    return jnp.dot(x, w)


def _product_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.dot(x, w), (x, w)


def _product_backward(
    residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = residuals
    over_rows = (((0,), (0,)), ((), ()))
    if x.shape[1] <= w.shape[1]:
        dw = jax.lax.dot_general(x, dy, over_rows)
    else:
        # The barrier keeps XLA from turning this back into the product above, which is half as fast.
        dw = jax.lax.optimization_barrier(jax.lax.dot_general(dy, x, over_rows)).T
    return jnp.dot(dy, w.T), dw


_product.defvjp(_product_forward, _product_backward)


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
        kernel = self.param(
            "kernel", he_normal, (self.size, self.size, x.shape[-1], self.features), jnp.float32
        )
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = convolve(x, kernel, stride=self.stride, padding=self.padding)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(
                self.dtype
            )
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
    def __call__(
        self, x: jax.Array, use_batch_stats: bool, mask: jax.Array | None = None
    ) -> jax.Array:
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
            y = (x - running_mean.value) * (
                scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            ) + bias
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
        var = _masked_sum(jnp.square(centred), mask, axis_name) / jnp.maximum(
            count, 1.0
        ) - jnp.square(offset)
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


def max_pool(
    x: jax.Array, *, size: int, stride: int, padding: int = 0, form: str | None = None
) -> jax.Array:
    """[B, H, W, C] -> [B, h, w, C], h = floor((H + 2 padding - size) / stride) + 1; the padding never wins.

    Args:
      x: the images.
      size: side of the window.
      stride: step in both directions.
      padding: pixels on each of the four sides.
      form: "plain" or "cpu"; None: what `lowering` says. The gradient goes to the first of equal values in both.
    """
    if (form or lowering()) == "cpu":
        return _max_pool(x, size, stride, padding)
    return nn.max_pool(x, (size, size), strides=(stride, stride), padding=[(padding, padding)] * 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Remembers where each maximum was, a byte each: XLA's own gradient searches every window again, one by one."""
    return nn.max_pool(x, (size, size), strides=(stride, stride), padding=[(padding, padding)] * 2)


def _max_pool_forward(
    x: jax.Array, size: int, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    height, width = x.shape[1:3]
    h, w = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    padded = jnp.pad(
        x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-jnp.inf
    )
    best: Any = None
    where: Any = None
    for row in range(size):
        for column in range(size):
            here = padded[
                :,
                row : row + (h - 1) * stride + 1 : stride,
                column : column + (w - 1) * stride + 1 : stride,
            ]
            if best is None:
                best, where = here, jnp.zeros(here.shape, jnp.int8)
                continue
            where = jnp.where(here > best, jnp.int8(row * size + column), where)
            best = jnp.maximum(best, here)  # of a NaN, too
    # The barrier keeps XLA from computing the places again, pixel by pixel, in the backward pass.
    best, where = jax.lax.optimization_barrier((best, where))
    return best, (
        where,
        jnp.zeros((height, width, 0)),
    )  # residuals are arrays: the empty one carries the size


def _max_pool_backward(
    size: int, stride: int, padding: int, residuals: Any, dy: jax.Array
) -> tuple[jax.Array]:
    where, image = residuals
    height, width = image.shape[:2]
    batch, h, w, channels = dy.shape
    reach = -(-size // stride)  # windows over one pixel, in one direction
    rows, columns = h + reach - 1, w + reach - 1

    def phase(row: int, column: int) -> jax.Array:
        """The gradient of every stride-th pixel of the padded image, from (row, column) on: [B, rows, columns, C]."""
        total = jnp.zeros((batch, rows, columns, channels), dy.dtype)
        for i in range(reach):
            for j in range(reach):
                place = (row + stride * i, column + stride * j)
                if max(place) < size:
                    part = jnp.where(where == place[0] * size + place[1], dy, 0)
                    total += jnp.pad(part, ((0, 0), (i, reach - 1 - i), (j, reach - 1 - j), (0, 0)))
        return total

    phases = jnp.stack([phase(row, column) for row in range(stride) for column in range(stride)])
    phases = phases.reshape(stride, stride, batch, rows, columns, channels).transpose(
        2, 3, 0, 4, 1, 5
    )
    dx = phases.reshape(batch, rows * stride, columns * stride, channels)
    # Pixels beyond the last window: none looked at them.
    beyond = [
        max(0, side + padding - found)
        for side, found in zip((height, width), dx.shape[1:3], strict=True)
    ]
    dx = jnp.pad(dx, ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0)))
    return (dx[:, padding : padding + height, padding : padding + width],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
