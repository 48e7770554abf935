"""A discriminator of the domains behind a gradient reversal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from medtl.errors import UserError
from medtl.losses.terms.domains import DOMAINS, masked_features


class DANN(nn.Module):
    """Domain-adversarial training: a discriminator learns the domain, the features to hide it.

    The mean over the domains of the binary cross-entropy of the discriminator d on the features,
    `-1/2 mean_s log(1 - σ(d(x))) - 1/2 mean_t log σ(d(x))`: log 2 where nothing tells the domains
    apart. The gradient of the features is multiplied by -λ_p, where p is the share of the stage's
    steps that are done: `λ_p = 2 / (1 + exp(-γ p)) - 1` rises from 0 to 1.

    Ganin et al. 2016, https://arxiv.org/abs/1505.07818, equations 9 and 14. The term's `weight`
    scales the gradient of both the features and the discriminator. A domain without rows gives 0.

    Attributes:
      hidden: widths of the discriminator's hidden layers.
      gamma: γ >= 0; 0 switches the reversal off, and the features do not adapt.

    >>> from types import SimpleNamespace as Namespace
    >>> outputs = {d: Namespace(features=jnp.ones((2, 3))) for d in ("source", "target")}
    >>> batch = {d: {"mask": jnp.ones(2)} for d in outputs}
    >>> context = Namespace(outputs=outputs, batch=batch, progress=0.5)
    >>> variables = DANN(hidden=(4,)).init(jax.random.key(0), context)
    >>> bool(DANN(hidden=(4,)).apply(variables, context) >= jnp.log(2) - 1e-6)
    True
    """

    hidden: Sequence[int] = (256,)
    gamma: float = 10.0

    @nn.compact
    def __call__(self, context: Any) -> Float[Array, ""]:
        """Return f32[] from `outputs`, `batch` and `progress` of the context."""
        is_widths = isinstance(self.hidden, tuple | list) and all(
            type(width) is int and width >= 1 for width in self.hidden
        )
        if not is_widths:
            raise UserError(f"DANN: hidden is {self.hidden!r}; it must be widths, such as (256,)")
        if not self.gamma >= 0:
            raise UserError(f"DANN: gamma is {self.gamma}; it must be at least 0")
        strength = 2 * jax.nn.sigmoid(self.gamma * jnp.asarray(context.progress, jnp.float32)) - 1
        parts, masks = zip(*(masked_features(context, d) for d in DOMAINS), strict=True)
        x = reverse_gradient(jnp.concatenate(parts), strength)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        logits = jnp.split(nn.Dense(1)(x)[:, 0], [len(parts[0])])
        value = jnp.zeros(())
        for label, (mask, logit) in enumerate(zip(masks, logits, strict=True)):
            labels = jnp.full_like(logit, float(label))
            losses = mask * optax.losses.sigmoid_binary_cross_entropy(logit, labels)
            value += 0.5 * jnp.sum(losses) / jnp.maximum(jnp.sum(mask), 1.0)
        return value


@jax.custom_vjp
def reverse_gradient(x: Any, strength: Any) -> Any:
    """Return x, float[...]; its gradient is multiplied by -strength, f32[].

    >>> print(jax.grad(lambda x: reverse_gradient(x, jnp.asarray(0.5)) ** 2)(3.0))
    -3.0
    """
    return x


def _forward(x: Any, strength: Any) -> tuple[Any, Any]:
    return x, strength


def _backward(strength: Any, gradient: Any) -> tuple[Any, Any]:
    return (-strength * gradient).astype(gradient.dtype), jnp.zeros_like(strength)


reverse_gradient.defvjp(_forward, _backward)
