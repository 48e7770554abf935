"""Supervised losses per example, in float32 whatever the dtype of the logits.

A label with another number of classes than the logits would broadcast; it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num

from medtl.errors import UserError, nearest


@runtime_checkable
class Outputs(Protocol):
    """The part of a model's outputs that these losses read."""

    @property
    def logits(self) -> Float[Array, "b k"]:
        """Return the logits, float[B, K]."""


def cross_entropy(
    outputs: Outputs, batch: Mapping[str, Array], *, label_smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Return the softmax cross-entropy.

    `-Σ_k q_k log softmax(logits)_k` with `q = (1 - α) label + α / K`.

    Label smoothing: Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B] with class indices, or float[B, K] with a distribution over the classes
        in each row.
      label_smoothing: α, in [0, 1].

    Returns:
      f32[B], in nats.

    Raises:
      UserError: α is outside [0, 1], or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((2, 4)))
    >>> print(cross_entropy(outputs, {"label": jnp.array([0, 3])}).round(4))
    [1.3863 1.3863]
    """
    require(
        0 <= label_smoothing <= 1,
        f"cross_entropy: label_smoothing is {label_smoothing}; it must be in [0, 1]",
    )
    logits = outputs.logits.astype(jnp.float32)
    labels = optax.losses.smooth_labels(one_hot(batch["label"], logits), label_smoothing)
    return optax.losses.softmax_cross_entropy(logits, labels)


def mean_squared_error(
    outputs: Outputs, batch: Mapping[str, Array], *, on: str = "probabilities"
) -> Float[Array, " b"]:
    """Return the mean squared error over the classes: the Brier score divided by K.

    `1/K Σ_k (p_k - label_k)²`.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, int[B] with class indices, or float[B, K].
      on: "probabilities" (p is the softmax of the logits, as in Keras' "mse" behind a softmax
        layer) or "logits" (p is the logits themselves; Hui & Belkin 2021,
        https://arxiv.org/abs/2006.07322).

    Returns:
      f32[B].

    Raises:
      UserError: `on` is something else, or `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.array([[1.0, 0.0], [0.0, 0.5]]))
    >>> print(mean_squared_error(outputs, {"label": jnp.array([0, 1])}, on="logits"))
    [0.    0.125]
    """
    if on not in ("probabilities", "logits"):
        raise UserError(
            f"mean_squared_error: on is {on!r}{nearest(str(on), ('probabilities', 'logits'))}"
        )
    logits = outputs.logits.astype(jnp.float32)
    predictions = jax.nn.softmax(logits) if on == "probabilities" else logits
    return jnp.mean(jnp.square(predictions - one_hot(batch["label"], logits)), axis=-1)


def sigmoid_binary_cross_entropy(
    outputs: Outputs, batch: Mapping[str, Array]
) -> Float[Array, " b"]:
    """Return the mean binary cross-entropy over the classes with a known label.

    With known classes V of an example:
    `1/|V| Σ_{k in V} -label_k log σ(logit_k) - (1 - label_k) log σ(-logit_k)`.

    Args:
      outputs: `logits` float[B, K].
      batch: `label`, float[B, K] of 0, 1 or NaN (unknown); or int[B] with class indices, taken as
        one-hot.

    Returns:
      f32[B], in nats; 0 and without a gradient for an example without a known label.

    Raises:
      UserError: `label` does not fit the logits.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.zeros((2, 2)))
    >>> label = jnp.array([[1.0, jnp.nan], [jnp.nan, jnp.nan]])
    >>> print(sigmoid_binary_cross_entropy(outputs, {"label": label}).round(4))
    [0.6931 0.    ]
    """
    logits = outputs.logits.astype(jnp.float32)
    labels = one_hot(batch["label"], logits)
    is_known = ~jnp.isnan(labels)
    # Unknown labels are replaced before the loss: a `where` after it would still pass their NaN on
    # to the gradient.
    values = optax.losses.sigmoid_binary_cross_entropy(logits, jnp.where(is_known, labels, 0.0))
    return jnp.sum(values * is_known, axis=-1) / jnp.maximum(jnp.sum(is_known, axis=-1), 1)


def one_hot(label: Num[Array, " ..."], logits: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """Return class indices int[B] as one-hot rows (-1 gives zeros), or rows float[B, K]."""
    if jnp.issubdtype(label.dtype, jnp.integer) and label.shape == logits.shape[:1]:
        return jax.nn.one_hot(label, logits.shape[-1], dtype=jnp.float32)
    if jnp.issubdtype(label.dtype, jnp.floating) and label.shape == logits.shape:
        return label.astype(jnp.float32)
    raise UserError(
        f"the label is {label.dtype}{list(label.shape)} and the logits are {list(logits.shape)}; "
        f"the label must be int{list(logits.shape[:1])} of class indices or "
        f"float{list(logits.shape)}"
    )


def require(holds: bool, problem: str) -> None:
    """Raise UserError with the problem unless an option's condition holds."""
    if not holds:
        raise UserError(problem)
