"""The head of a kernel machine: logits are weighted sums of Gaussian kernels about centres."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key


class KernelHead(nn.Module):
    """Map features to the logits of a kernel machine.

        logits = k(u, c) α + b,   k(u, c_j) = exp(-γ |u - c_j|²),   u = (x - mean) / scale

    The parameters are α f32[M, K] (`coefficients`), b f32[K] (`bias`), c f32[M, D] (`centres`),
    γ f32[] (`gamma`), `mean` and `scale` f32[D]. `KernelProbe` fits them; a head without a fit
    gives zeros. A centre whose coefficients are 0 is padding, so that the shapes do not depend on
    the number of train examples. The centres are features of train examples: a model that is
    passed on passes them on.

    Attributes:
      classes: K.
      centres: M.
    """

    classes: int
    centres: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "b d"], keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b k"]:
        """Return the logits; `keys` are those of `Head` and change nothing."""
        zeros, ones, width = nn.initializers.zeros, nn.initializers.ones, features.shape[-1]
        mean = self.param("mean", zeros, (width,))
        scale = self.param("scale", ones, (width,))
        centres = self.param("centres", zeros, (self.centres, width))
        gamma = self.param("gamma", ones, ())
        coefficients = self.param("coefficients", zeros, (self.centres, self.classes))
        bias = self.param("bias", zeros, (self.classes,))
        x = (features.astype(jnp.float32) - mean) / scale
        # In the short floats of an accelerator's products the distances would cancel.
        exact = jax.lax.Precision.HIGHEST
        products = jnp.matmul(x, centres.T, precision=exact)
        squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(centres**2, axis=1)
        kernel = jnp.exp(-gamma * jnp.maximum(squares - 2 * products, 0))
        return jnp.matmul(kernel, coefficients, precision=exact) + bias
