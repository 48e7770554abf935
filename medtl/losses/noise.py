"""Losses that wrong labels harm less than they harm the cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medtl.losses.supervised import Outputs, one_hot, require


def generalized_cross_entropy(
    outputs: Outputs, batch: Mapping[str, Array], *, q: float = 0.7
) -> Float[Array, " b"]:
    """Return the generalized cross-entropy, between cross-entropy (q -> 0) and 1 - p_y (q = 1).

    `(1 - p_y^q) / q` with `p = softmax(logits)`, computed as `-expm1(q log p_y) / q`.

    Zhang and Sabuncu 2018, https://arxiv.org/abs/1805.07836, section 3, without the truncation.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B], or float[B, K] with a distribution over the classes in each row.
      q: in (0, 1]; the paper's default is 0.7.

    Returns:
      f32[B].

    Raises:
      UserError: q is out of range, or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((1, 2)))
    >>> print(generalized_cross_entropy(outputs, {"label": jnp.array([0])}, q=1.0))
    [0.5]
    """
    require(0 < q <= 1, f"generalized_cross_entropy: q is {q}; it must be above 0 and at most 1")
    logits = outputs.logits.astype(jnp.float32)
    powers = -jnp.expm1(q * jax.nn.log_softmax(logits)) / q
    return jnp.sum(one_hot(batch["label"], logits) * powers, axis=-1)


def symmetric_cross_entropy(
    outputs: Outputs,
    batch: Mapping[str, Array],
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
) -> Float[Array, " b"]:
    """Return the symmetric cross-entropy: the cross-entropy plus the reverse one.

    `-α Σ_k q_k log p_k - β Σ_k p_k log q_k`, with `p = softmax(logits)`, the label q, and A in
    place of log 0. With one class per label the second part is `-β A (1 - p_y)`.

    Wang et al. 2019, https://arxiv.org/abs/1908.06112, section 3; the defaults are the
    paper's for CIFAR-10.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B], or float[B, K] with a distribution over the classes in each row.
      alpha: α >= 0.
      beta: β >= 0.
      log_zero: A < 0; also the least value of log q.

    Returns:
      f32[B]; 0 for an example without a label.

    Raises:
      UserError: an option is out of range, or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((1, 2)))
    >>> print(symmetric_cross_entropy(outputs, {"label": jnp.array([0])}).round(4))
    [2.0693]
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        require(value >= 0, f"symmetric_cross_entropy: {name} is {value}; it must be at least 0")
    require(log_zero < 0, f"symmetric_cross_entropy: log_zero is {log_zero}; it must be below 0")
    logits = outputs.logits.astype(jnp.float32)
    labels, log_p = one_hot(batch["label"], logits), jax.nn.log_softmax(logits)
    log_q = jnp.maximum(jnp.log(jnp.maximum(labels, 1e-30)), log_zero)
    forward = -jnp.sum(labels * log_p, axis=-1)
    reverse = -jnp.sum(jnp.exp(log_p) * log_q, axis=-1) * jnp.sum(labels, axis=-1)
    return alpha * forward + beta * reverse
