"""Convolution, BatchNorm and pooling: the primitive operations of the backbones.

Everything is NHWC with explicit symmetric padding, as PyTorch pads; "SAME" would shift the grid of
a strided convolution. Parameters and running statistics are float32, whatever the compute dtype.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Dtype = Any
Images = Float[Array, "b h w c"]
FeatureMap = Float[Array, "b h2 w2 d"]
Pooled = Float[Array, "b h2 w2 c"]
Kernel = Float[Array, "k k c d"]
Rows = Float[Array, "m c"]
Weights = Float[Array, "c d"]
Products = Float[Array, "m d"]

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Initial kernels of variance 2 / (k * k * features): He et al. 2015 (arXiv:1502.01852, eq. 14), as
in torchvision."""


def lowering() -> str:
    """Return the form of the primitives: "cpu" where XLA is slow on the plain form, else "plain".

    The choice is made here alone, when a function is traced. On GPU and TPU XLA hands the plain
    forms to vendor libraries; docs/performance.md has the gain of each form on a CPU. The forms
    differ by rounding only.
    """
    return "cpu" if jax.default_backend() == "cpu" else "plain"


def mark_feature_map(module: nn.Module, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
    """Let `saliency.grad_cam` see the last feature map, and return it.

    Sows it as "feature_map" into `intermediates`, and adds the perturbation of that name. Both do
    nothing unless `apply` is given these collections.

    Args:
      module: the module whose method calls this.
      x: what is pooled next, or goes into fully connected layers.
    """
    if module.is_initializing():
        return x
    x = module.perturb("feature_map", x)
    module.sow("intermediates", "feature_map", x)
    return x


def convolve(
    x: Images, kernel: Kernel, *, stride: int = 1, padding: int = 0, form: str | None = None
) -> FeatureMap:
    """Return the cross-correlation of images with a kernel.

    The result has h = floor((H + 2 padding - k) / stride) + 1 rows.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C, D], of the same dtype.
      stride: step in both directions.
      padding: zeros on each of the four sides.
      form: "plain" or "cpu"; None: see `lowering`.

    Returns:
      [B, h, w, D].
    """
    if (form or lowering()) == "plain":
        return _correlate(x, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1) and padding == 0:
        # XLA's CPU backend runs a matrix product faster than a 1x1 convolution, above all in the
        # backward pass.
        x = x[:, ::stride, ::stride]
        rows = x.shape[0] * x.shape[1] * x.shape[2]
        return _product(x.reshape(rows, -1), kernel[0, 0]).reshape(*x.shape[:3], -1)
    return _windowed(x, kernel, stride, padding)


def _correlate(x: Images, kernel: Kernel, stride: int, padding: int) -> FeatureMap:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _windowed(x: Images, kernel: Kernel, stride: int, padding: int) -> FeatureMap:
    """Return `_correlate`, whose gradient by the kernel reads its operands without transposing."""
    return _correlate(x, kernel, stride, padding)


def _windowed_forward(
    x: Images, kernel: Kernel, stride: int, padding: int
) -> tuple[FeatureMap, tuple[Images, Kernel]]:
    return _correlate(x, kernel, stride, padding), (x, kernel)


def _windowed_backward(
    stride: int, padding: int, residuals: tuple[Images, Kernel], dy: FeatureMap
) -> tuple[Images, Kernel]:
    # XLA transposes both operands for the gradient by the kernel. Without the barrier it computes
    # the BatchNorm and ReLU before them again within the transposition, pixel by pixel, which takes
    # longer than the convolution.
    x, dy = jax.lax.optimization_barrier((residuals[0], dy))
    _, pull = jax.vjp(lambda x, kernel: _correlate(x, kernel, stride, padding), x, residuals[1])
    return pull(dy)


_windowed.defvjp(_windowed_forward, _windowed_backward)


@jax.custom_vjp
def _product(x: Rows, w: Weights) -> Products:
    """Return x @ w, whose gradient by w transposes the narrower of the two tall operands."""
    return jnp.dot(x, w)


def _product_forward(x: Rows, w: Weights) -> tuple[Products, tuple[Rows, Weights]]:
    return jnp.dot(x, w), (x, w)


def _product_backward(residuals: tuple[Rows, Weights], dy: Products) -> tuple[Rows, Weights]:
    x, w = residuals
    over_rows = (((0,), (0,)), ((), ()))
    if x.shape[1] <= w.shape[1]:
        dw = jax.lax.dot_general(x, dy, over_rows)
    else:
        # The barrier keeps XLA from turning this back into the product above, which is half as
        # fast.
        dw = jax.lax.optimization_barrier(jax.lax.dot_general(dy, x, over_rows)).T
    return jnp.dot(dy, w.T), dw


_product.defvjp(_product_forward, _product_backward)


class Conv(nn.Module):
    """A square convolution: a cross-correlation, as in every deep-learning library.

    Parameters: `kernel` float32[size, size, C, features] (HWIO), and with `use_bias` `bias`
    float32[features].

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
    def __call__(self, x: Images) -> FeatureMap:
        """Convolve; see `convolve`.

        Args:
          x: [B, H, W, C].

        Returns:
          dtype[B, h, w, features].
        """
        kernel = self.param(
            "kernel", he_normal, (self.size, self.size, x.shape[-1], self.features), jnp.float32
        )
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        y = convolve(x, kernel, stride=self.stride, padding=self.padding)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(
                self.dtype
            )
        return y


class BatchNorm(nn.Module):
    """Batch normalization over the global batch, without its padding.

        y = (x - mean) / sqrt(var + epsilon) * scale + bias

    Ioffe & Szegedy 2015, arXiv:1502.03167. It differs from `flax.linen.BatchNorm` in three points:

    - Over devices it adds sums and counts. A mean of the devices' means would be wrong where their
      numbers of real examples differ, and NaN where one device has none.
    - The running variance takes the unbiased estimator n / (n - 1), as in PyTorch, so that both
      agree after training.
    - The variance is that of the centred values: E[x^2] - E[x]^2 loses all digits where the mean is
      much larger than the deviation.

    | case | result |
    |---|---|
    | padded rows | do not count; their output is finite |
    | a batch of padding alone | running statistics are kept |
    | one real pixel | variance 0: the output is the bias; n - 1 counts as 1 |
    | initialization | running statistics stay mean 0, variance 1 |

    Parameters: `scale`, `bias` float32[C]. Collection `batch_stats`: `mean`, `var` float32[C].

    Attributes:
      epsilon: added to the variance.
      momentum: share of the old running statistics that is kept; 1 minus PyTorch's momentum.
      axis_name: axis of `jax.pmap` over which the statistics are taken; None on one device, or
        under `jit` over a mesh, where the batch axis is already the global one.
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
        self, x: Images, use_batch_stats: bool, mask: Float[Array, " b"] | None = None
    ) -> Images:
        """Normalize x, and update the running statistics where `batch_stats` is mutable.

        Args:
          x: [B, H, W, C].
          use_batch_stats: normalize with this batch's statistics instead of the running ones.
          mask: float32[B], 1 real, 0 padding; None where all are real.

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

        # The axis is not bound while the variables are initialized.
        axis_name = None if self.is_initializing() else self.axis_name
        count = _count(x, mask, axis_name)
        mean = _masked_sum(x, mask, axis_name) / jnp.maximum(count, 1.0)
        # With a constant c, var = E[(x - c)^2] - (mean - c)^2 and x - mean = (x - c) - (mean - c)
        # hold for any c. Taking the mean's value for c makes mean - c zero, so nothing cancels,
        # while its gradient stays exact and needs two sums over the batch where differentiating
        # through x - mean needs four.
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
            # A batch of padding alone has no statistics.
            keep = jnp.where(count > 0, self.momentum, 1.0)
            running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
            running_var.value = keep * running_var.value + (1.0 - keep) * unbiased
        return y.astype(self.dtype)


def _masked_sum(
    x: Images, mask: Float[Array, " b"] | None, axis_name: str | None
) -> Float[Array, " c"]:
    """Return the sum over real examples, pixels and devices.

    Pixels come first: the mask then costs nothing, and two short sums round less than a long one.
    """
    per_example = jnp.sum(x, axis=(1, 2))
    if mask is not None:
        per_example = jnp.where(mask[:, None] > 0, per_example, 0.0)
    total = jnp.sum(per_example, axis=0)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _count(x: Images, mask: Float[Array, " b"] | None, axis_name: str | None) -> Float[Array, ""]:
    """Return the number of pixels of real examples on all devices."""
    examples = jnp.float32(x.shape[0]) if mask is None else jnp.sum((mask > 0).astype(jnp.float32))
    count = examples * (x.shape[1] * x.shape[2])
    return count if axis_name is None else jax.lax.psum(count, axis_name)


def max_pool(
    x: Images, *, size: int, stride: int, padding: int = 0, form: str | None = None
) -> Pooled:
    """Return the largest value of each window; padding never wins.

    The result has h = floor((H + 2 padding - size) / stride) + 1 rows. The gradient goes to the
    first of equal values.

    Args:
      x: [B, H, W, C].
      size: side of the window.
      stride: step in both directions.
      padding: pixels on each of the four sides.
      form: "plain" or "cpu"; None: see `lowering`.

    Returns:
      [B, h, w, C].
    """
    if (form or lowering()) == "cpu":
        return _max_pool(x, size, stride, padding)
    return nn.max_pool(x, (size, size), strides=(stride, stride), padding=[(padding, padding)] * 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Images, size: int, stride: int, padding: int) -> Pooled:
    """Pool, and keep a byte for the position of each maximum.

    XLA's own gradient searches every window again, one by one.
    """
    return nn.max_pool(x, (size, size), strides=(stride, stride), padding=[(padding, padding)] * 2)


def _max_pool_forward(
    x: Images, size: int, stride: int, padding: int
) -> tuple[Pooled, tuple[jax.Array, jax.Array]]:
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
            best = jnp.maximum(best, here)  # passes a NaN on
    # The barrier keeps XLA from computing the positions again, pixel by pixel, in the backward
    # pass.
    best, where = jax.lax.optimization_barrier((best, where))
    # Residuals are arrays: the empty one carries the size.
    return best, (where, jnp.zeros((height, width, 0)))


def _max_pool_backward(
    size: int, stride: int, padding: int, residuals: Any, dy: Pooled
) -> tuple[Images]:
    where, image = residuals
    height, width = image.shape[:2]
    batch, h, w, channels = dy.shape
    reach = -(-size // stride)  # windows over one pixel, in one direction
    rows, columns = h + reach - 1, w + reach - 1

    def phase(row: int, column: int) -> jax.Array:
        """Return the gradient of every stride-th pixel of the padded image from (row, column) on.

        It is [B, rows, columns, C].
        """
        total = jnp.zeros((batch, rows, columns, channels), dy.dtype)
        for i in range(reach):
            for j in range(reach):
                in_window = (row + stride * i, column + stride * j)
                if max(in_window) < size:
                    part = jnp.where(where == in_window[0] * size + in_window[1], dy, 0)
                    total += jnp.pad(part, ((0, 0), (i, reach - 1 - i), (j, reach - 1 - j), (0, 0)))
        return total

    phases = jnp.stack([phase(row, column) for row in range(stride) for column in range(stride)])
    phases = phases.reshape(stride, stride, batch, rows, columns, channels).transpose(
        2, 3, 0, 4, 1, 5
    )
    dx = phases.reshape(batch, rows * stride, columns * stride, channels)
    # No window covers the pixels beyond the last one.
    beyond = [
        max(0, side + padding - covered)
        for side, covered in zip((height, width), dx.shape[1:3], strict=True)
    ]
    dx = jnp.pad(dx, ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0)))
    return (dx[:, padding : padding + height, padding : padding + width],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
