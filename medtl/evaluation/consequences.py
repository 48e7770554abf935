"""Decisions at a threshold: the 2 x 2 table per 1,000 patients, who is reclassified, net benefit.

Two classes only. A patient here is one with an image like those that are evaluated; at a stated
prevalence the shares within each class are weighted to it. Differences of arms have the standard
error of every other difference, see `differences.standard_error`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import arm_results, curves, differences
from medtl.evaluation.arm_results import Evaluated
from medtl.evaluation.intervals import wilson
from medtl.evaluation.metrics import kernels

THRESHOLDS = 46  # in the range of thresholds; steps of 0.01 from 0.05 to 0.5
_LACKING = "a split lacks a class"


def prevalence_of(e: Evaluated, stated: float = 0.0) -> float:
    """Return the stated prevalence of the positive class; 0: that of the examples."""
    if stated:
        return stated
    ids = np.concatenate([p.id for p in e.predictions])
    _, first = np.unique(ids, return_index=True)
    label = np.concatenate([p.label for p in e.predictions])[first]
    return float(np.mean(label == e.positive)) if len(label) else math.nan


def per_1000(estimates: Mapping[str, Mapping[str, Any]], prevalence: float) -> dict[str, Any]:
    """Return the 2 x 2 table of 1,000 patients at a prevalence.

    Its intervals are those of sensitivity and specificity: the prevalence does not vary.

    Args:
      estimates: with "sensitivity" and "specificity".
      prevalence: of the positive class.

    >>> rates = {"sensitivity": {"value": 0.9, "low": 0.8, "high": 0.95},
    ...          "specificity": {"value": 0.8, "low": 0.75, "high": 0.85}}
    >>> table = per_1000(rates, 0.1)
    >>> [round(table[cell]["value"]) for cell in ("true_positive", "false_positive")]
    [90, 180]
    """
    cells: dict[str, Any] = {"prevalence": prevalence}
    for name, right, wrong, n in (
        ("sensitivity", "true_positive", "false_negative", 1000 * prevalence),
        ("specificity", "true_negative", "false_positive", 1000 * (1 - prevalence)),
    ):
        value, low, high = (estimates[name][part] for part in ("value", "low", "high"))
        reason = estimates[name].get("undefined", "")
        cells[right] = arm_results.estimate(n * value, n * low, n * high, reason=reason)
        ends = (n * (1 - x) for x in (value, high, low))
        cells[wrong] = arm_results.estimate(*ends, reason=reason)
    return cells


def compare(
    a: Evaluated, b: Evaluated, *, bounds: Sequence[float], prevalence: float, level: float
) -> dict[str, Any]:
    """Compare the decisions of two arms; {} where there are not two classes.

    Args:
      a: an arm.
      b: the reference.
      bounds: the lowest and the highest threshold of the net benefit.
      prevalence: that is stated; 0: that of the examples.
      level: of the intervals.

    Returns:
      "net_benefit" and "reclassified", see `net_benefit` and `reclassified`.
    """
    if a.task != "two_class":
        return {}
    lowest, highest = bounds
    t = np.linspace(lowest, highest, THRESHOLDS)
    return {
        "net_benefit": net_benefit(a, b, t, prevalence=prevalence, level=level),
        "reclassified": reclassified(a, b, prevalence=prevalence, level=level),
    }


def net_benefit(
    a: Evaluated, b: Evaluated, thresholds: np.ndarray, *, prevalence: float, level: float
) -> dict[str, Any]:
    """Subtract the net benefit of the reference from an arm's, at each threshold.

    The variance over patients has the closed form of `curves.decision_curve`, of both arms on the
    same patients. The intervals hold at each threshold by itself.

    Args:
      a: the arm.
      b: the reference.
      thresholds: float64[T].
      prevalence: that is stated; 0: that of the examples.
      level: of the intervals.

    Returns:
      "threshold", "difference", "low" and "high", each of T numbers; "undefined" where they are
      NaN.
    """
    from scipy.stats import t as student

    columns = [[(s.label == e.positive, *_scores(e, s)) for s in e.sets] for e in (a, b)]
    one, two = (
        np.stack([curves.net_benefit(y, p, thresholds, prevalence=prevalence)[0] for y, p, _ in of])
        for of in columns
    )
    patients, width = _patients(a)
    variance, is_defined = np.full(len(thresholds), np.nan), not np.isnan(one - two).any()
    if is_defined and patients > 1:
        both = (
            curves.net_benefit_shares(of, thresholds, width, prevalence=prevalence)
            for of in columns
        )
        total = [np.sum(np.square(x - y)) for x, y in zip(*both, strict=True)]
        variance = patients / (patients - 1) * np.array(total)
    se, df = differences.standard_error(a, one - two, variance, max(patients, 2))
    middle, half = (one - two).mean(axis=0), student.isf((1 - level) / 2, df) * se
    curve = {"threshold": thresholds, "difference": middle, "low": middle - half}
    made = {k: x.tolist() for k, x in (curve | {"high": middle + half}).items()}
    reason = _LACKING if not is_defined else "one patient or one fold has no interval"
    return made | ({"undefined": reason} if np.isnan(half).any() else {})


def reclassified(a: Evaluated, b: Evaluated, *, prevalence: float, level: float) -> dict[str, Any]:
    """Count the patients of 1,000 that an arm calls otherwise than the reference does.

    Both call at their operating thresholds. An interval is Wilson's of the share of a class, with
    as many examples as have the share's standard error.

    Args:
      a: the arm.
      b: the reference.
      prevalence: that is stated; 0: that of the examples.
      level: of the intervals.

    Returns:
      "newly_found" and "newly_missed" of the positives, "newly_false_alarm" and "newly_cleared" of
      the negatives.
    """
    q = prevalence_of(a, prevalence)
    if any(math.isnan(s.threshold) for e in (a, b) for s in e.sets):
        reason = "there is no operating threshold"
        nothing = arm_results.estimate(math.nan, math.nan, math.nan, reason=reason)
        return {name: nothing for name, *_ in _MOVES}
    made = {}
    for name, is_positive, by_arm in _MOVES:
        sides = [(s.label == a.positive) == is_positive for s in a.sets]
        first, second = (a, b) if by_arm else (b, a)
        changed = [
            (first.called(i) == a.positive) & (second.called(i) != a.positive)
            for i in range(len(a.sets))
        ]
        n = 1000 * (q if is_positive else 1 - q)
        share, low, high = _share(a, sides, changed, level)
        made[name] = arm_results.estimate(n * share, n * low, n * high, reason=_LACKING)
    return made


# Entry, whether it is of the positives, whether the arm calls them and the reference does not.
_MOVES = (
    ("newly_found", True, True),
    ("newly_missed", True, False),
    ("newly_false_alarm", False, True),
    ("newly_cleared", False, False),
)


def _share(
    a: Evaluated, sides: Sequence[np.ndarray], hits: Sequence[np.ndarray], level: float
) -> tuple[float, float, float]:
    """Return the mean over models of the share of hits among the examples of a side."""
    from scipy.stats import t as student

    by_model = np.array(
        [h[s].mean() if s.any() else np.nan for s, h in zip(sides, hits, strict=True)]
    )
    value = float(kernels.mean_of_defined(by_model[:, None], axis=0)[0])
    if np.isnan(by_model).any():
        return value, math.nan, math.nan
    _, width = _patients(a)
    deviation, bears = np.zeros(width), np.zeros(width, bool)
    for data, side, hit, share in zip(a.sets, sides, hits, by_model, strict=True):
        who = data.patient[side]
        bears[who] = True
        weight = (hit[side] - share) / side.sum() / len(sides)
        deviation += np.bincount(who, weight, minlength=width)
    units = max(int(bears.sum()), 2)
    variance = np.array(units / (units - 1) * np.sum(deviation**2))
    se, df = differences.standard_error(a, by_model, variance, units)
    quantile = student.isf((1 - level) / 2, np.where(np.isnan(df), units - 1, df))
    varies = se > 0 and 0 < value < 1
    n = value * (1 - value) / float(se) ** 2 if varies else units
    low, high = wilson(np.array(value), n, quantile)
    return value, float(low), float(high)


def _scores(e: Evaluated, data: Any) -> tuple[np.ndarray, np.ndarray]:
    return data.probability[:, e.positive], data.patient


def _patients(e: Evaluated) -> tuple[int, int]:
    """Return how many patients there are, and one more than the largest number."""
    numbers = np.unique(np.concatenate([data.patient for data in e.sets]))
    return len(numbers), int(numbers.max(initial=-1)) + 1
