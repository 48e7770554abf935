"""Losses of the diagnosis against its label, per example, in float32 whatever the dtype of the logits.

Refuses labels whose number of classes is not that of the logits, which would otherwise broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from medtl.errors import UserError, nearest


class Outputs(Protocol):
    """What these losses read of a model's outputs."""

    @property
    def logits(self) -> jax.Array:
        """float[B, K]."""


def cross_entropy(
    outputs: Outputs, batch: Mapping[str, jax.Array], *, label_smoothing: float = 0.0
) -> jax.Array:
    """Softmax cross-entropy, `-Σ_k q_k log softmax(logits)_k` with `q = (1 - α) label + α / K`.

    Label smoothing: Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B] with class indices, or float[B, K] with a distribution over the classes in each row.
      label_smoothing: α, in [0, 1].

    Returns:
      f32[B], in nats.

    Raises:
      UserError: α lies outside [0, 1], or `label` does not fit the logits.
    """
    if not 0 <= label_smoothing <= 1:
        raise UserError(
            f"cross_entropy: label_smoothing is {label_smoothing}; it must be in [0, 1]"
        )
    logits = outputs.logits.astype(jnp.float32)
    labels = optax.losses.smooth_labels(_one_hot(batch["label"], logits), label_smoothing)
    return optax.losses.softmax_cross_entropy(logits, labels)


def mean_squared_error(
    outputs: Outputs, batch: Mapping[str, jax.Array], *, on: str = "probabilities"
) -> jax.Array:
    """Mean squared error over the classes, `1/K Σ_k (p_k - label_k)²`: the Brier score divided by K.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B] with class indices, or float[B, K].
      on: "probabilities" (p is the softmax of the logits, as in Keras' "mse" behind a softmax layer) or "logits" (p is
        the logits themselves; Hui & Belkin 2021, https://arxiv.org/abs/2006.07322).

    Returns:
      f32[B].

    Raises:
      UserError: `on` is something else, or `label` does not fit the logits.
    """
    if on not in ("probabilities", "logits"):
        raise UserError(
            f"mean_squared_error: on is {on!r}{nearest(str(on), ('probabilities', 'logits'))}"
        )
    logits = outputs.logits.astype(jnp.float32)
    predictions = jax.nn.softmax(logits) if on == "probabilities" else logits
    return jnp.mean(jnp.square(predictions - _one_hot(batch["label"], logits)), axis=-1)


def sigmoid_binary_cross_entropy(outputs: Outputs, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Binary cross-entropy of each class on its own, averaged over the classes whose label is known.

    With known classes V of an example: `1/|V| Σ_{k in V} -label_k log σ(logit_k) - (1 - label_k) log σ(-logit_k)`.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, float[B, K] of 0, 1 or NaN (unknown); or int[B] with class indices, taken as one-hot.

    Returns:
      f32[B], in nats; 0 for an example of which no label is known, and no gradient from it.

    Raises:
      UserError: `label` does not fit the logits.
    """
    logits = outputs.logits.astype(jnp.float32)
    labels = _one_hot(batch["label"], logits)
    known = ~jnp.isnan(labels)
    # Unknown labels are replaced before the loss: a `where` behind it would still pass their NaN on to the gradient.
    values = optax.losses.sigmoid_binary_cross_entropy(logits, jnp.where(known, labels, 0.0))
    return jnp.sum(values * known, axis=-1) / jnp.maximum(jnp.sum(known, axis=-1), 1)


def _one_hot(label: jax.Array, logits: jax.Array) -> jax.Array:
    """f32[B, K]: class indices int[B] as one-hot rows (-1 gives zeros), rows float[B, K] as they are."""
    if jnp.issubdtype(label.dtype, jnp.integer) and label.shape == logits.shape[:1]:
        return jax.nn.one_hot(label, logits.shape[-1], dtype=jnp.float32)
    if jnp.issubdtype(label.dtype, jnp.floating) and label.shape == logits.shape:
        return label.astype(jnp.float32)
    raise UserError(
        f"the label is {label.dtype}{list(label.shape)} and the logits are {list(logits.shape)}; the label must be "
        f"int{list(logits.shape[:1])} of class indices or float{list(logits.shape)}"
    )
