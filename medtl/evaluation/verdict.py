"""The verdict on two arms in words, from a difference and its interval.

Refuses metrics without a better side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from medtl.errors import UserError
from medtl.evaluation import wording


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
      verdict: "helps" or "hurts", of an arm that was trained several times; "model_better" or
        "model_worse", of one trained model; else "cannot_tell".
      headline, sentence: the verdict in short, and with its numbers.
    """

    arm: str
    reference: str
    metric: str
    verdict: str
    headline: str
    sentence: str


def judge(
    arm: str,
    reference: str,
    metric: str,
    *,
    difference: float,
    low: float,
    high: float,
    p: float,
    sample: str,
    one_model: bool,
    p_adjusted: float | None = None,
    lower_is_better: bool = False,
    negative_transfer: bool = False,
    level: float = 0.95,
    undefined: str = "",
) -> Comparison:
    """Put a difference in words.

    An arm helps or hurts where the difference's interval leaves out 0. Of one trained model an arm
    nothing is known about another training: the words are about these models, never about the arm.

    Args:
      arm: its name.
      reference: the name of the arm it is compared with.
      metric: a metric's name, which must have a better side: not the calibration slope or
        intercept.
      difference: of the metric, arm minus reference.
      low: the lower end of its interval.
      high: the upper end.
      p: of the difference by itself.
      sample: how much the comparison rests on, in words: "118 patients and 3 seeds".
      one_model: each arm was trained once, on one split.
      p_adjusted: for the number of arms; None: there is one other, so `p`.
      lower_is_better: of the metric.
      negative_transfer: whether harm is called so: the arm learns from the source and the reference
        does not.
      level: of the interval.
      undefined: why one of the numbers is NaN.

    Raises:
      UserError: the metric has no better side.

    >>> numbers = dict(difference=0.05, low=0.01, high=0.09, p=0.01, sample="118 patients")
    >>> judge("transfer", "scratch", "auroc", **numbers, one_model=False).headline
    'transfer helps.'
    >>> judge("transfer", "scratch", "auroc", **numbers, one_model=True).headline
    'This trained model of transfer scores higher than that of scratch.'
    >>> numbers["low"] = -0.02
    >>> judge("transfer", "scratch", "auroc", **numbers, one_model=False).headline
    'Inconclusive: 118 patients are too few to tell whether transfer helps.'
    """
    if metric.startswith("calibration_"):
        raise UserError(
            f"arms cannot be compared in {metric}: neither more nor less of it is better; "
            "brier has a better side"
        )
    p_adjusted, name = p if p_adjusted is None else p_adjusted, wording.metric_in_a_sentence(metric)
    if math.isnan(difference) or math.isnan(low) or math.isnan(high):
        short = f"Inconclusive: the difference in {name} of {arm} against {reference} is undefined"
        reason = undefined or "no reason was recorded"
        return Comparison(arm, reference, metric, "cannot_tell", f"{short}.", f"{short}: {reason}.")
    shown = _numbers(difference, low, high, p, p_adjusted, lower_is_better, level)
    verdict = direction(low, high, lower_is_better=lower_is_better)
    if verdict == "cannot_tell":
        what = (
            f"which of these trained models of {arm} and {reference} is better"
            if one_model
            else f"whether {arm} helps"
        )
        short = f"Inconclusive: {sample} are too few to tell {what}"
        numbers = f"{name[0].upper()}{name[1:]} {shown} against {reference}"
        rest = "; training variance is unknown with one seed." if one_model else "."
        sentence = f"{short}. {numbers}{rest}"
        return Comparison(arm, reference, metric, verdict, f"{short}.", sentence)
    if one_model:
        side = _SIDES[lower_is_better][verdict]
        short = f"This trained model of {arm} scores {side} than that of {reference}"
        kind = "model_better" if verdict == "helps" else "model_worse"
        sentence = (
            f"{short}: {name} {shown}; training variance is unknown with one seed: three seeds "
            f"would tell whether {arm} {verdict}."
        )
        return Comparison(arm, reference, metric, kind, f"{short}.", sentence)
    harm = " (negative transfer)" if verdict == "hurts" and negative_transfer else ""
    short = f"{arm} {verdict}{harm}"
    sentence = f"{short}: {name} {shown} against {reference}."
    return Comparison(arm, reference, metric, verdict, f"{short}.", sentence)


_SIDES = (
    {"helps": "higher", "hurts": "lower"},
    {"helps": "better", "hurts": "worse"},
)


def headline(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the verdict of several comparisons, the first of which is the main arm's.

    The headline is the main arm's, followed by the other arms that differ; the sentences are all of
    them in order.
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
    value: float, low: float, high: float, p: float, p_adjusted: float, lower: bool, level: float
) -> str:
    shown, *ends = wording.signed_alike((value, low, high))
    parts = ["lower is better"] if lower else []
    parts.append(f"{wording.percent(level)} interval {ends[0]} to {ends[1]}")
    if not math.isnan(p):
        parts.append(f"p {wording.p_relation(p)}")
    if p_adjusted > p:
        adjusted = wording.p_relation(p_adjusted).removeprefix("= ")
        parts.append(f"{adjusted} adjusted for the number of arms")
    return f"{shown} ({', '.join(parts)})"
