"""Losses for classes of unequal frequency, from the class counts of the train split.

`class_counts` f32[K] holds n_k, the number of train examples of class k in the batch's domain;
training gives it, and `progress`, to a loss that has an argument of that name. All take one
diagnosis for each example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from medtl.errors import UserError, nearest
from medtl.losses.supervised import Outputs, one_hot, require

SCHEMES = ("inverse", "square_root", "effective")


def class_weighted(
    outputs: Outputs,
    batch: Mapping[str, Array],
    *,
    class_counts: Any,
    scheme: str = "inverse",
    beta: float = 0.999,
) -> Float[Array, " b"]:
    """Return the softmax cross-entropy, weighted by class.

    `-w_y log softmax(logits)_y`, with the weights of `class_weights`.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B], or float[B, K] with a distribution over the classes in each row.
      class_counts: n f32[K].
      scheme: as in `class_weights`.
      beta: as in `class_weights`.

    Returns:
      f32[B], in nats.

    Raises:
      UserError: an option is out of range, or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((2, 2)))
    >>> print(class_weighted(outputs, {"label": jnp.array([0, 1])}, class_counts=(30, 10)).round(3))
    [0.462 1.386]
    """
    logits = outputs.logits.astype(jnp.float32)
    labels = one_hot(batch["label"], logits)
    weights = class_weights(_counts(class_counts, logits), scheme=scheme, beta=beta)
    return optax.losses.softmax_cross_entropy(logits, labels * weights)


def class_weights(
    counts: Float[Array, " k"], *, scheme: str = "inverse", beta: float = 0.999
) -> Float[Array, " k"]:
    """Return the weight of each class, with a mean of 1 over the train examples.

    | scheme | w_k is proportional to |
    |---|---|
    | "inverse" | 1 / n_k, as in scikit-learn's "balanced" |
    | "square_root" | 1 / sqrt(n_k) |
    | "effective" | (1 - β) / (1 - β^n_k), the inverse effective number of samples |

    Effective number: Cui et al. 2019, https://arxiv.org/abs/1901.05555, section 4; the paper
    scales to a sum of K instead. A class without train examples has the weight 0.

    Args:
      counts: n f32[K].
      scheme: one of the table.
      beta: β in [0, 1): 0 gives equal weights, towards 1 it gives those of "inverse".

    Raises:
      UserError: there is no such scheme, or β is outside [0, 1).

    >>> print(class_weights(jnp.array([10.0, 20.0]), scheme="inverse"))
    [1.5  0.75]
    """
    if scheme not in SCHEMES:
        raise UserError(f"class_weighted: scheme is {scheme!r}{nearest(str(scheme), SCHEMES)}")
    require(0 <= beta < 1, f"class weights: beta is {beta}; it must be at least 0 and below 1")
    n = jnp.maximum(counts, 1.0)
    if scheme == "effective":
        # 1 - β^n by expm1: for β = 0.9999 and small n the difference has no digits in float32.
        inverse = 1 / -jnp.expm1(n * math.log(beta)) if beta > 0 else jnp.ones_like(n)
    else:
        inverse = n**-1.0 if scheme == "inverse" else n**-0.5
    inverse = jnp.where(counts > 0, inverse, 0.0)
    return inverse * jnp.sum(counts) / jnp.maximum(jnp.sum(counts * inverse), 1e-12)


def logit_adjusted(
    outputs: Outputs, batch: Mapping[str, Array], *, class_counts: Any, tau: float = 1.0
) -> Float[Array, " b"]:
    """Return the logit-adjusted softmax cross-entropy.

    `-log softmax(logits + τ log π)_y` with `π = n / Σ n`. The trained logits, without the
    adjustment, rank classes for the balanced error: probabilities are those of equal frequencies.

    Menon et al. 2021, https://arxiv.org/abs/2007.07314, equation 10.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B], or float[B, K] with a distribution over the classes in each row.
      class_counts: n f32[K]; 0 counts as 1/2.
      tau: τ >= 0; 0 is the cross-entropy.

    Returns:
      f32[B], in nats.

    Raises:
      UserError: τ is negative, or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((2, 2)))
    >>> values = logit_adjusted(outputs, {"label": jnp.array([0, 1])}, class_counts=(3, 1))
    >>> [f"{value:.3f}" for value in values.tolist()]  # log 4/3 and log 4
    ['0.288', '1.386']
    """
    require(tau >= 0, f"logit_adjusted: tau is {tau}; it must be at least 0")
    logits = outputs.logits.astype(jnp.float32)
    counts = jnp.maximum(_counts(class_counts, logits), 0.5)
    adjusted = logits + tau * jnp.log(counts / jnp.sum(counts))
    return optax.losses.softmax_cross_entropy(adjusted, one_hot(batch["label"], logits))


def balanced_softmax(
    outputs: Outputs, batch: Mapping[str, Array], *, class_counts: Any
) -> Float[Array, " b"]:
    """Return the balanced softmax's cross-entropy: `logit_adjusted` with τ = 1.

    `-log (n_y exp(logit_y) / Σ_k n_k exp(logit_k))`.

    Ren et al. 2020, https://arxiv.org/abs/2007.10740, theorem 1. Arguments, result and errors are
    those of `logit_adjusted`.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((1, 2)))
    >>> print(balanced_softmax(outputs, {"label": jnp.array([1])}, class_counts=(3, 1)).round(3))
    [1.386]
    """
    return logit_adjusted(outputs, batch, class_counts=class_counts)


def ldam(
    outputs: Outputs,
    batch: Mapping[str, Array],
    *,
    class_counts: Any,
    progress: Any = 0.0,
    margin: float = 0.5,
    scale: float = 1.0,
    deferred: float = 0.8,
    beta: float = 0.9999,
) -> Float[Array, " b"]:
    """Return the label-distribution-aware margin loss, with deferred re-weighting.

    `-w_y log softmax(s (logits - Δ_y e_y))_y` with `Δ_k = margin (min n / n_k)^(1/4)`, where e_y
    is the one-hot label. The weight w is 1 at first; after the share `deferred` of the training
    stage it is that of `class_weights(scheme="effective")`.

    Cao et al. 2019, https://arxiv.org/abs/1906.07413, equation 13 and algorithm 1. The
    authors' head returns cosines and s is 30; a linear head has a scale of its own, so s is 1.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B], or float[B, K] with a distribution over the classes in each row,
        whose margins are in proportion.
      class_counts: n f32[K].
      progress: f32[], the share of the training stage's steps that are done.
      margin: the margin of the rarest class, >= 0.
      scale: s > 0.
      deferred: in [0, 1]; 1: the weights stay 1.
      beta: β of the effective number.

    Returns:
      f32[B], in nats.

    Raises:
      UserError: an option is out of range, or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((2, 2)))
    >>> values = ldam(outputs, {"label": jnp.array([0, 1])}, class_counts=(160, 10))
    >>> [f"{value:.3f}" for value in values.tolist()]  # margins 0.25 and 0.5
    ['0.826', '0.974']
    """
    require(margin >= 0, f"ldam: margin is {margin}; it must be at least 0")
    require(scale > 0, f"ldam: scale is {scale}; it must be above 0")
    require(0 <= deferred <= 1, f"ldam: deferred is {deferred}; it must be in [0, 1]")
    logits = outputs.logits.astype(jnp.float32)
    labels, counts = one_hot(batch["label"], logits), _counts(class_counts, logits)
    quarter = jnp.where(counts > 0, jnp.maximum(counts, 1.0) ** -0.25, 0.0)
    margins = margin * quarter / jnp.maximum(jnp.max(quarter), 1e-12)
    is_late = (jnp.asarray(progress) >= deferred) & (deferred < 1)
    weights = jnp.where(is_late, class_weights(counts, scheme="effective", beta=beta), 1.0)
    return optax.losses.softmax_cross_entropy(scale * (logits - labels * margins), labels * weights)


def _counts(class_counts: Any, logits: Float[Array, "b k"]) -> Float[Array, " k"]:
    counts = jnp.asarray(class_counts, jnp.float32)
    require(
        counts.shape == logits.shape[1:],
        f"class_counts has the shape {list(counts.shape)}; it must be one number for each of the "
        f"{logits.shape[1]} classes",
    )
    return counts
