"""The loss of ordered grades; `medtl.models.ordinal` has the head that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Array, Float

from medtl.losses.supervised import Outputs, cross_entropy


def cumulative_link(outputs: Outputs, batch: Mapping[str, Array]) -> Float[Array, " b"]:
    """Return the negative log likelihood of the grade under the cumulative-link model.

    `-log P(label)`, with `P(grade <= k) = σ(c_k - f)` for the latent score f and rising cutpoints
    c_k. McCullagh 1980, J R Stat Soc B 42, 109, sections 2.1 and 2.5. With
    `data.task="ordinal"` the head returns the log probabilities of the grades as its logits, so
    that this is their cross-entropy.

    Args:
      outputs: `logits` float[B, K], log probabilities.
      batch: `label`, int[B], the grades from 0.

    Returns:
      f32[B], in nats.

    Raises:
      UserError: `label` does not fit the logits.

    >>> import jax.numpy as jnp
    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.log(jnp.array([[0.5, 0.3, 0.2]])))
    >>> print(cumulative_link(outputs, {"label": jnp.array([1])}).round(4))  # -log 0.3
    [1.204]
    """
    return cross_entropy(outputs, batch)
