"""The operating threshold of two classes: the one decision rule, chosen on val and described.

The threshold is fixed before the evaluated split is looked at, so the intervals of sensitivity,
specificity and all other metrics at it are those of this threshold. How far another val of as many
patients would move it is its own interval, beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.evaluation.intervals import number_patients
from medtl.evaluation.metrics import operating_threshold
from medtl.evaluation.predictions import Predictions

DEFAULT = "sensitivity=0.9"
_RESAMPLES = 200
_FEWEST = 100
_WORK = 2e7  # examples x resamples that are sorted at most


def fixed(rule: str) -> float | None:
    """Return the threshold of a rule that is a number; None where it is chosen on val."""
    try:
        return float(rule)
    except ValueError:
        return None


def has_both_classes(val: Predictions | None) -> bool:
    """Tell whether a threshold can be chosen: there are two classes, both with examples."""
    return (
        val is not None
        and val.label.ndim == 1
        and val.probability.shape[1] == 2
        and {0, 1} <= set(np.unique(val.label).tolist())
    )


def choose(val: Predictions | None, rule: str, positive: int) -> float:
    """Return the threshold that the rule chooses on val; 0.5 where there is no val for it.

    Args:
      val: a model's predictions of val; examples without a label are passed over.
      rule: see `metrics.operating_threshold`.
      positive: index of the positive class.
    """
    number = fixed(rule)
    if number is not None:
        return number
    if val is None or not has_both_classes(val):
        return 0.5
    known = val.label >= 0
    return operating_threshold(
        val.label[known] == positive, val.probability[known, positive], rule=rule
    )


def card(
    thresholds: Sequence[float],
    val: Sequence[Predictions | None],
    *,
    rule: str,
    positive: int,
    level: float = 0.95,
) -> dict[str, Any]:
    """Describe the operating threshold: the mean over models, its interval, and where it is from.

    Args:
      thresholds: of each model.
      val: each model's predictions of val.
      rule: see `metrics.operating_threshold`.
      positive: index of the positive class.
      level: of the interval.

    Returns:
      "rule", "value", "low", "high" (NaN where nothing was chosen), "chosen_on", and "words".
    """
    number, has_both = fixed(rule), [has_both_classes(v) for v in val]
    low = high = math.nan
    if number is not None:
        words = f"{number:g}, fixed beforehand"
    elif all(has_both):
        words = "by Youden's index" if rule == "youden" else f"for {rule.replace('=', ' ')}"
        words += ", chosen on val"
        low, high = _interval([v for v in val if v is not None], rule, positive, level)
        if not math.isnan(low):
            words += (
                f" ({100 * level:g} % interval {low:.3f} to {high:.3f} in resamples of val); "
                "the intervals of metrics at the threshold take it as fixed"
            )
    else:
        joined = " where" if any(has_both) else ":"
        words = f"0.5{joined} there is no val with both classes to choose it on"
    if min(thresholds) < max(thresholds):
        between = f"from {min(thresholds):.3f} to {max(thresholds):.3f}"
        words += f"; {between} over {len(thresholds)} models"
    return {
        "rule": rule,
        "value": float(np.mean(thresholds)),
        "low": low,
        "high": high,
        "chosen_on": "val" if number is None and all(has_both) else None,
        "words": words,
    }


def _interval(
    val: Sequence[Predictions], rule: str, positive: int, level: float
) -> tuple[float, float]:
    """Return the interval of the mean threshold over resamples of val's patients.

    NaN for so many examples that it would take long: there the threshold hardly moves.
    """
    resamples = min(_RESAMPLES, int(_WORK / max(1, sum(len(v.id) for v in val))))
    if resamples < _FEWEST:
        return math.nan, math.nan
    named = [v.id if v.patient is None else v.patient for v in val]
    patients, numbers = number_patients(named)
    labels = [v.label == positive for v in val]
    # In the order of the models' scores: a resample is a repetition of rows.
    draws = np.full(resamples, np.nan)
    rng = np.random.default_rng(0)
    for r in range(resamples):
        counts = np.bincount(rng.integers(0, patients, patients), minlength=patients)
        made = []
        for v, label, unit in zip(val, labels, numbers, strict=True):
            rows = np.repeat(np.arange(len(unit)), counts[unit] * (v.label >= 0))
            some = label[rows]
            if some.any() and not some.all():
                score = v.probability[rows, positive]
                made.append(operating_threshold(some, score, rule=rule))
        if len(made) == len(val):
            draws[r] = np.mean(made)
    draws = draws[~np.isnan(draws)]
    if len(draws) < 0.95 * resamples:
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
