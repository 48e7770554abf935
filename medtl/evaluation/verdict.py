"""The verdict on two arms in words, from a difference, its interval and its p value.

Refuses a verdict that only the interval or only the p value would give.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from medtl.errors import UserError
from medtl.evaluation import wording
from medtl.evaluation.intervals import normal_quantile


def needed(
    difference: float, standard_error: float, n: int, *, power: float = 0.8, level: float = 0.95
) -> float:
    """Estimate how many patients would show a true difference of this size.

    n ((z_{(1 + level) / 2} + z_power) se / |difference|)², because the standard error falls with
    √n. It takes the observed difference for the true one, so it is an order of magnitude. NaN where
    something is undefined, infinite for no difference.
    """
    if math.isnan(difference) or math.isnan(standard_error):
        return math.nan
    z = normal_quantile(level) + NormalDist().inv_cdf(power)
    return math.inf if difference == 0 else n * (z * standard_error / abs(difference)) ** 2


def direction(low: float, high: float, *, lower_is_better: bool = False) -> str:
    """Return "helps" or "hurts" by the side of 0 on which an interval is, else "cannot_tell".

    The last one is for intervals that hold 0 or NaN.

    >>> direction(0.01, 0.2), direction(0.01, 0.2, lower_is_better=True), direction(-0.1, 0.2)
    ('helps', 'hurts', 'cannot_tell')
    """
    if lower_is_better:
        low, high = -high, -low
    return "helps" if low > 0 else "hurts" if high < 0 else "cannot_tell"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A verdict on an arm against a reference, by `judge`.

    Attributes:
      verdict: "helps", "hurts" or "cannot_tell".
      headline, sentence: the verdict in short, and with its numbers.
      needed: about how many patients would show a difference of this size; None where that says
        nothing.
    """

    arm: str
    reference: str
    metric: str
    verdict: str
    headline: str
    sentence: str
    needed: float | None = None


def judge(
    arm: str,
    reference: str,
    metric: str,
    *,
    difference: float,
    low: float,
    high: float,
    p: float,
    n: int,
    p_holm: float | None = None,
    standard_error: float = math.nan,
    unit: str = "patients",
    lower_is_better: bool = False,
    negative_transfer: bool = False,
    level: float = 0.95,
    undefined: str = "",
) -> Comparison:
    """Put a difference in words.

    An arm helps or hurts only if the difference's interval leaves out 0 and p_holm < 1 - level.

    Args:
      arm: its name.
      reference: the name of the arm it is compared with.
      metric: a metric's name, which must have a better side: not the calibration slope or
        intercept.
      difference: of the metric, arm minus reference.
      low: the lower end of its interval.
      high: the upper end.
      p: of the difference by itself.
      n: how many patients, or `unit`, there are.
      p_holm: after the correction for several comparisons; None: there is one, so `p`.
      standard_error: of the difference, for the number needed; NaN: unknown.
      unit: what was resampled, in the plural.
      lower_is_better: of the metric.
      negative_transfer: whether harm is called so: the arm learns from the source and the reference
        does not.
      level: of the interval.
      undefined: why one of the numbers is NaN.

    Raises:
      UserError: the metric has no better side, or `level` is not between 0 and 1.

    >>> numbers = dict(difference=0.05, low=0.01, high=0.09, p=0.01, n=118)
    >>> judge("transfer", "scratch", "auroc", **numbers).headline
    'transfer helps.'
    >>> judge("transfer", "scratch", "auroc", **{**numbers, "low": -0.02}).headline
    'Inconclusive: 118 patients are too few to tell whether transfer helps.'
    """
    if metric.startswith("calibration_"):
        raise UserError(
            f"arms cannot be compared in {metric}: neither more nor less of it is better; "
            "brier has a better side"
        )
    p_holm, name = p if p_holm is None else p_holm, wording.metric_in_a_sentence(metric)
    if math.isnan(difference) or math.isnan(low) or math.isnan(high):
        short = f"Inconclusive: the difference in {name} of {arm} against {reference} is undefined"
        reason = undefined or "no reason was recorded"
        return Comparison(arm, reference, metric, "cannot_tell", f"{short}.", f"{short}: {reason}.")
    shown = _numbers(difference, low, high, p, p_holm, lower_is_better, level)
    numbers = f"{name} {shown} against {reference}"
    verdict = "cannot_tell"
    if 1 - p_holm > level:
        verdict = direction(low, high, lower_is_better=lower_is_better)
    if verdict != "cannot_tell":
        harm = " (negative transfer)" if verdict == "hurts" and negative_transfer else ""
        short = f"{arm} {verdict}{harm}"
        return Comparison(arm, reference, metric, verdict, f"{short}.", f"{short}: {numbers}.")
    short = f"Inconclusive: {n:,} {unit} are too few to tell whether {arm} helps."
    numbers = numbers[0].upper() + numbers[1:]
    enough = needed(difference, standard_error, n, level=level)
    if not n < enough < math.inf:
        return Comparison(arm, reference, metric, verdict, short, f"{short} {numbers}.")
    more = f"a difference of this size would need about {wording.about(enough)}"
    return Comparison(arm, reference, metric, verdict, short, f"{short} {numbers}; {more}.", enough)


def headline(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the verdict of several comparisons, the first of which is the main arm's.

    The headline is the main arm's, followed by the other arms that help or hurt; the sentences are
    all of them in order.
    """
    if not comparisons:
        return {
            "kind": "no_comparison",
            "headline": "There is no second arm to compare with.",
            "sentences": [],
        }
    main, *others = comparisons
    first = main.headline if main.verdict == "cannot_tell" else main.sentence
    rest = [other.headline for other in others if other.verdict != "cannot_tell"]
    return {
        "kind": main.verdict,
        "headline": " ".join([first, *rest]),
        "sentences": [c.sentence for c in comparisons],
    }


def _numbers(
    value: float, low: float, high: float, p: float, p_holm: float, lower: bool, level: float
) -> str:
    shown, *ends = wording.signed_alike((value, low, high))
    parts = ["lower is better"] if lower else []
    parts.append(f"{wording.percent(level)} interval {ends[0]} to {ends[1]}")
    if not math.isnan(p):
        parts.append(f"p {wording.p_relation(p)}")
    if p_holm > p:
        parts.append(f"{wording.p_relation(p_holm).removeprefix('= ')} after Holm's correction")
    return f"{shown} ({', '.join(parts)})"
