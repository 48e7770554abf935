"""Losses that give less weight to examples which are classified with ease."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medtl.losses.supervised import Outputs, one_hot, require


def focal(
    outputs: Outputs, batch: Mapping[str, Array], *, gamma: float = 2.0
) -> Float[Array, " b"]:
    """Return the focal loss of the softmax.

    `-Σ_k q_k (1 - p_k)^γ log p_k` with `p = softmax(logits)` and the label q.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 4. The power is taken of at least
    1e-7, so that its derivative is finite for γ < 1.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B], or float[B, K] with a distribution over the classes in each row.
      gamma: γ >= 0; 0 is the cross-entropy.

    Returns:
      f32[B].

    Raises:
      UserError: γ is negative, or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((1, 2)))
    >>> print(focal(outputs, {"label": jnp.array([0])}).round(4))
    [0.1733]
    """
    require(gamma >= 0, f"focal: gamma is {gamma}; it must be at least 0")
    logits = outputs.logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits)
    rest = jnp.maximum(-jnp.expm1(log_p), 1e-7)
    return -jnp.sum(one_hot(batch["label"], logits) * rest**gamma * log_p, axis=-1)


def sigmoid_focal(
    outputs: Outputs,
    batch: Mapping[str, Array],
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
) -> Float[Array, " b"]:
    """Return the focal loss of the sigmoid, the mean over the classes with a known label.

    For a class with the label y, the probability p_t of the label is σ(logit) or σ(-logit):
    `-α_t (1 - p_t)^γ log p_t` with `α_t = α y + (1 - α)(1 - y)`.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 5. Powers are exponentials of
    log σ, which are finite for all logits.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, float[B, K] of 0, 1 or NaN (unknown); or int[B], taken as one-hot.
      gamma: γ >= 0.
      alpha: α in [0, 1], the weight of positives; None: all have the weight 1.

    Returns:
      f32[B]; 0 and without a gradient for an example without a known label.

    Raises:
      UserError: an option is out of range, or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((1, 2)))
    >>> print(sigmoid_focal(outputs, {"label": jnp.array([[1.0, jnp.nan]])}).round(4))
    [0.0433]
    """
    require(gamma >= 0, f"sigmoid_focal: gamma is {gamma}; it must be at least 0")
    require(
        alpha is None or 0 <= alpha <= 1,
        f"sigmoid_focal: alpha is {alpha}; it must be in [0, 1] or None",
    )
    logits = outputs.logits.astype(jnp.float32)
    positive, negative, n_known = _known(one_hot(batch["label"], logits))
    log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    weights = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    values = weights[0] * positive * jnp.exp(gamma * log_q) * log_p
    values += weights[1] * negative * jnp.exp(gamma * log_p) * log_q
    return -jnp.sum(values, axis=-1) / n_known


def asymmetric(
    outputs: Outputs,
    batch: Mapping[str, Array],
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    shift: float = 0.05,
) -> Float[Array, " b"]:
    """Return the asymmetric loss for several diagnoses, the mean over the known classes.

    With `p = σ(logit)` and `p_m = max(p - m, 0)`:
    `-y (1 - p)^γ₊ log p - (1 - y) p_m^γ₋ log(1 - p_m)`.

    Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, section 2; the defaults are the paper's.
    A negative with p <= m has neither a loss nor a gradient.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, float[B, K] of 0, 1 or NaN (unknown); or int[B], taken as one-hot.
      gamma_positive: γ₊ >= 0.
      gamma_negative: γ₋ >= 0.
      shift: m in [0, 1).

    Returns:
      f32[B]; 0 and without a gradient for an example without a known label.

    Raises:
      UserError: an option is out of range, or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.array([[0.0, -4.0]]))
    >>> print(asymmetric(outputs, {"label": jnp.array([[1.0, 0.0]])}).round(4))
    [0.3466]
    """
    for name, value in (("gamma_positive", gamma_positive), ("gamma_negative", gamma_negative)):
        require(value >= 0, f"asymmetric: {name} is {value}; it must be at least 0")
    require(0 <= shift < 1, f"asymmetric: shift is {shift}; it must be at least 0 and below 1")
    logits = outputs.logits.astype(jnp.float32)
    positive, negative, n_known = _known(one_hot(batch["label"], logits))
    log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    values = positive * jnp.exp(gamma_positive * log_q) * log_p
    if shift > 0:
        shifted = jnp.maximum(jax.nn.sigmoid(logits) - shift, 1e-7)
        is_above = shifted > 1e-7
        values += jnp.where(is_above, negative * shifted**gamma_negative * jnp.log1p(-shifted), 0.0)
    else:
        values += negative * jnp.exp(gamma_negative * log_p) * log_q
    return -jnp.sum(values, axis=-1) / n_known


def _known(
    labels: Float[Array, "b k"],
) -> tuple[Float[Array, "b k"], Float[Array, "b k"], Float[Array, " b"]]:
    """Return the positives, the negatives (both 0 where unknown), and 1 or the number of known."""
    is_known = ~jnp.isnan(labels)
    positive = jnp.where(is_known, labels, 0.0)
    n_known = jnp.maximum(jnp.sum(is_known, axis=-1), 1).astype(jnp.float32)
    return positive, jnp.where(is_known, 1.0 - labels, 0.0), n_known
