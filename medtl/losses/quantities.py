"""Losses of a number: of the model's one output against the standardized label.

A label of `data.task="regression"` is standardized by the mean and standard deviation of its
domain's train rows, so that 1 is one standard deviation whatever the column's unit.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from medtl.errors import UserError
from medtl.losses.supervised import Outputs, require


def mean_squared_error_regression(
    outputs: Outputs, batch: Mapping[str, Array]
) -> Float[Array, " b"]:
    """Return the squared error, `(output - label)²`; its minimizer is the conditional mean.

    Args:
      outputs: `logits` float[B, 1].
      batch: `label`, float[B].

    Returns:
      f32[B].

    Raises:
      UserError: `label` does not fit the output.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.array([[1.0], [0.0]]))
    >>> print(mean_squared_error_regression(outputs, {"label": jnp.array([0.5, 2.0])}))
    [0.25 4.  ]
    """
    return jnp.square(_error(outputs, batch))


def absolute_error(outputs: Outputs, batch: Mapping[str, Array]) -> Float[Array, " b"]:
    """Return the absolute error, `|output - label|`; its minimizer is the conditional median.

    Args, returns and errors are those of `mean_squared_error_regression`.
    """
    return jnp.abs(_error(outputs, batch))


def huber(
    outputs: Outputs, batch: Mapping[str, Array], *, delta: float = 1.0
) -> Float[Array, " b"]:
    """Return Huber's loss of the error e: `e² / 2` up to δ, `δ (|e| - δ / 2)` beyond it.

    Few extreme labels then move the model less than in the squared error. Huber 1964, Ann Math
    Statist 35, 73.

    Args:
      outputs: `logits` float[B, 1].
      batch: `label`, float[B].
      delta: δ > 0, in standard deviations of the label.

    Returns:
      f32[B].

    Raises:
      UserError: δ is not above 0, or `label` does not fit the output.

    >>> from types import SimpleNamespace
    >>> outputs = SimpleNamespace(logits=jnp.array([[1.0], [0.0]]))
    >>> print(huber(outputs, {"label": jnp.array([0.5, 3.0])}))
    [0.125 2.5  ]
    """
    require(delta > 0, f"huber: delta is {delta}; it must be above 0")
    return optax.losses.huber_loss(_error(outputs, batch), delta=delta)


def _error(outputs: Outputs, batch: Mapping[str, Array]) -> Float[Array, " b"]:
    logits, label = outputs.logits.astype(jnp.float32), batch["label"]
    is_number = jnp.issubdtype(label.dtype, jnp.floating) and label.shape == logits.shape[:1]
    if not is_number or logits.shape[-1] != 1:
        raise UserError(
            f"the label is {label.dtype}{list(label.shape)} and the output {list(logits.shape)}; "
            f"a loss of numbers takes float{list(logits.shape[:1])} and "
            f"{[logits.shape[0], 1]}, as config.data.task='regression' gives them"
        )
    return logits[:, 0] - label.astype(jnp.float32)
