"""Differentiable forms of measures that no single example has: F1 and the area under the ROC.

Both are taken over one domain of the batch and are means over the classes, each against the rest.
In a training stage without that domain they are left out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medtl.errors import UserError, nearest
from medtl.losses.supervised import one_hot
from medtl.losses.terms.domains import DOMAINS


def soft_f1(context: Any, *, domain: str = "target") -> Float[Array, ""]:
    """Return 1 - F1 with probabilities in place of decisions, the mean over the classes.

    `1 - 2 Σ p y / (Σ p + Σ y)` for each class that has a positive in the batch; the sums are over
    its rows, each times its weight.

    Pastor-Pellicer et al. 2013, https://doi.org/10.1007/978-3-642-38679-4_37; Bénédict et al. 2021,
    https://arxiv.org/abs/2108.10566. It is biased in small batches: use it beside a loss.

    Args:
      context: `outputs[domain].logits`; `batch[domain]` with `label` int[B] (softmax) or
        float[B, K] of 0, 1 or NaN (sigmoid), `mask` and, optionally, `weight`.
      domain: "source" or "target".

    Returns:
      f32[] in [0, 1]; 0 where no class has a positive.

    Raises:
      UserError: there is no such domain, or `label` does not fit the logits.

    >>> from types import SimpleNamespace as Namespace
    >>> outputs = {"target": Namespace(logits=jnp.zeros((4, 2)))}
    >>> batch = {"target": {"label": jnp.array([0, 0, 1, 1]), "mask": jnp.ones(4)}}
    >>> print(soft_f1(Namespace(outputs=outputs, batch=batch)))
    0.5
    """
    p, y, weight = _scores(context, domain, "soft_f1")
    positives = jnp.sum(weight * y, axis=0)
    overlap = 2 * jnp.sum(weight * p * y, axis=0)
    values = 1 - overlap / jnp.maximum(jnp.sum(weight * p, axis=0) + positives, 1e-12)
    return _mean(values, positives > 0)


def auc_margin(context: Any, *, domain: str = "target", margin: float = 1.0) -> Float[Array, ""]:
    """Return the AUC margin loss, the mean over the classes.

    For each class that has positives and negatives in the batch, with the probabilities h of the
    class: `Var₊ h + Var₋ h + max(0, m - mean₊ h + mean₋ h)²`.

    Yuan et al. 2021, https://arxiv.org/abs/2012.03173, equation 5: the minimum over a and b and the
    maximum over α >= 0 of its min-max form are taken exactly, within the batch.

    Args:
      context: as in `soft_f1`.
      domain: "source" or "target".
      margin: m >= 0.

    Returns:
      f32[]; 0 where no class has positives and negatives.

    Raises:
      UserError: there is no such domain, m is negative, or `label` does not fit the logits.

    >>> from types import SimpleNamespace as Namespace
    >>> outputs = {"target": Namespace(logits=jnp.zeros((4, 2)))}
    >>> batch = {"target": {"label": jnp.array([0, 0, 1, 1]), "mask": jnp.ones(4)}}
    >>> print(auc_margin(Namespace(outputs=outputs, batch=batch)))
    1.0
    """
    if not margin >= 0:
        raise UserError(f"auc_margin: margin is {margin}; it must be at least 0")
    p, y, weight = _scores(context, domain, "auc_margin")

    def moments(share: Array) -> tuple[Array, Array]:
        total = jnp.maximum(jnp.sum(share, axis=0), 1e-12)
        mean = jnp.sum(share * p, axis=0) / total
        return mean, jnp.sum(share * (p - mean) ** 2, axis=0) / total

    (high, spread), (low, other_spread) = moments(weight * y), moments(weight * (1 - y))
    values = spread + other_spread + jnp.maximum(margin - high + low, 0.0) ** 2
    has_both = (jnp.sum(weight * y, axis=0) > 0) & (jnp.sum(weight * (1 - y), axis=0) > 0)
    return _mean(values, has_both)


def _scores(
    context: Any, domain: str, name: str
) -> tuple[Float[Array, "b k"], Float[Array, "b k"], Float[Array, "b k"]]:
    """Return probabilities, labels, and weights, which are 0 for padding and unknown labels."""
    if domain not in DOMAINS:
        raise UserError(f"{name}: domain is {domain!r}{nearest(str(domain), DOMAINS)}")
    batch, logits = context.batch[domain], context.outputs[domain].logits.astype(jnp.float32)
    label, mask = batch["label"], batch["mask"].astype(jnp.float32)
    weight = mask * batch["weight"] if "weight" in batch else mask
    logits = jnp.where(mask[:, None] > 0, logits, 0.0)
    several = label.ndim == 2
    p = jax.nn.sigmoid(logits) if several else jax.nn.softmax(logits)
    y = one_hot(label, logits)
    is_known = ~jnp.isnan(y) if several else (label >= 0)[:, None]
    return p, jnp.where(is_known, y, 0.0), jnp.broadcast_to(weight[:, None] * is_known, y.shape)


def _mean(values: Float[Array, " k"], chosen: Array) -> Float[Array, ""]:
    return jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(jnp.sum(chosen), 1)
