"""Metrics from a user's file, called with labels, probabilities and weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from medtl import plugins
from medtl.errors import UserError
from medtl.evaluation.metrics.names import ALL_NAMES

# (y_true int[N] or float[N, K], y_prob float64[N, K], weight float64[N]) -> a number.
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def from_config(evaluation: Mapping[str, Any]) -> dict[str, Metric]:
    """Find the metrics that a config's section `evaluation` names under `metrics`.

    Args:
      evaluation: the section; "metrics" maps a name to a plug-in string and may be absent.

    Returns:
      The name of each metric and its function, with the options of the plug-in string.

    Raises:
      UserError: a name is that of a built-in metric, or a plug-in string cannot be resolved.

    >>> list(from_config({"metrics": {"error": "math:fabs"}}))
    ['error']
    """
    metrics: dict[str, Metric] = {}
    for name, text in (evaluation.get("metrics") or {}).items():
        key = f"config.evaluation.metrics.{name}"
        if name in ALL_NAMES:
            raise UserError(f"{key}: there is a built-in metric of this name; give another name")
        metrics[name] = plugins.resolve(text, "", key=key)
    return metrics


def value_of(
    name: str, metric: Metric, label: np.ndarray, probability: np.ndarray, weight: np.ndarray
) -> float:
    """Call a user's metric; return its value, NaN where it is NaN or infinite.

    Raises:
      UserError: the metric raises, or returns something other than one number; names it.
    """
    try:
        value = metric(label, probability, weight)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"metric {name!r} fails: {type(error).__name__}: {error}") from error
    try:
        if np.ndim(value) or np.asarray(value).dtype.kind not in "buif":
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        shown = " ".join(repr(value).split())[:60]
        raise UserError(
            f"metric {name!r} returned {shown}; it must return one number, NaN where undefined"
        ) from None
    return number if math.isfinite(number) else math.nan
