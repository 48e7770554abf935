"""The verdict on two arms in words, from a difference, its interval and a margin.

Refuses metrics without a better side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from medtl.errors import UserError
from medtl.evaluation import wording
from medtl.evaluation.metrics import LOWER_IS_BETTER

_ONE_SEED = "training variance is unknown with one seed"
# The metrics of the headline of a single arm, after the one that the config names.
_SINGLE = {
    "two_class": ("auroc", "sensitivity", "specificity"),
    "multi_class": ("auroc", "balanced_accuracy", "accuracy"),
    "multi_label": ("auroc", "auprc", "f1_macro"),
    "regression": ("mae", "r2", "c_index"),
}


def margin_of(metric: str, margin: float, reference: float) -> float:
    """Return the margin of equivalence in the unit of a metric.

    A metric of which more is better takes it as it is. For one of which less is better, as the
    loss, which has no upper end, it is a share of the reference's value.

    >>> margin_of("auroc", 0.02, 0.8), margin_of("brier", 0.02, 0.15)
    (0.02, 0.003)
    """
    return margin * reference if metric in LOWER_IS_BETTER else margin


def zone(low: float, high: float, *, margin: float = 0.0, lower_is_better: bool = False) -> str:
    """Return where the interval of a difference is: in which of four zones.

    - "equivalent": wholly within ± margin, also where it leaves out 0.
    - "better" or "worse": on one side of 0.
    - "inconclusive": everything else, also NaN.

    >>> zone(0.01, 0.2), zone(0.01, 0.2, lower_is_better=True), zone(-0.1, 0.2)
    ('better', 'worse', 'inconclusive')
    >>> zone(-0.005, 0.005, margin=0.02), zone(0.001, 0.015, margin=0.02)
    ('equivalent', 'equivalent')
    """
    if lower_is_better:
        low, high = -high, -low
    if -margin < low and high < margin:
        return "equivalent"
    return "better" if low > 0 else "worse" if high < 0 else "inconclusive"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A difference of two arms that is to be judged.

    Attributes:
      arm, reference: their names.
      metric: a metric's name, which must have a better side: not the calibration slope or
        intercept.
      difference, low, high: of the metric, arm minus reference, and the ends of its interval.
      p: of the difference by itself.
      sample: how much the comparison rests on, in words: "118 patients and 3 seeds".
      one_model: each arm was trained once, on one split.
      margin: differences below it do not matter, in the unit of the metric; 0: all of them do.
      p_adjusted: for the number of arms; None: there is one other, so `p`.
      negative_transfer: whether harm is called so: the arm learns from the source and the reference
        does not.
      level: of the interval.
      undefined: why one of the numbers is NaN.
    """

    arm: str
    reference: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    sample: str
    one_model: bool
    margin: float = 0.0
    p_adjusted: float | None = None
    negative_transfer: bool = False
    level: float = 0.95
    undefined: str = ""

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER

    @property
    def name(self) -> str:
        return wording.metric_in_a_sentence(self.metric)

    @property
    def numbers(self) -> str:
        """The difference with its interval and p, in words."""
        p, adjusted = self.p, self.p if self.p_adjusted is None else self.p_adjusted
        shown, *ends = wording.signed_alike((self.difference, self.low, self.high))
        parts = ["lower is better"] if self.lower_is_better else []
        parts.append(f"{wording.percent(self.level)} interval {ends[0]} to {ends[1]}")
        if not math.isnan(p):
            parts.append(f"p {wording.p_relation(p)}")
        if adjusted > p:
            among_arms = wording.p_relation(adjusted).removeprefix("= ")
            parts.append(f"{among_arms} adjusted for the number of arms")
        return f"{shown} ({', '.join(parts)})"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A verdict on an arm against a reference, by `judge`.

    Attributes:
      verdict: "better", "worse" or "equivalent", of an arm that was trained several times;
        "model_better", "model_worse" or "model_equivalent", of one trained model; else
        "inconclusive".
      headline, sentence: the verdict in short, and with its numbers.
    """

    arm: str
    reference: str
    metric: str
    verdict: str
    headline: str
    sentence: str


def judge(measured: Measured) -> Comparison:
    """Put a difference in words.

    The interval decides, see `zone`. Of one trained model an arm nothing is known about another
    training: the words are about these models, never about the arm.

    Raises:
      UserError: the metric has no better side.

    >>> m = Measured(arm="transfer", reference="scratch", metric="auroc", difference=0.05,
    ...              low=0.01, high=0.09, p=0.01, sample="118 patients", one_model=False)
    >>> judge(m).headline
    'transfer helps.'
    >>> judge(dataclasses.replace(m, one_model=True)).headline
    'This trained model of transfer scores higher than that of scratch.'
    >>> judge(dataclasses.replace(m, low=-0.02)).headline
    'Inconclusive: 118 patients are too few to tell whether transfer helps.'
    >>> judge(dataclasses.replace(m, margin=0.1)).headline
    'transfer and scratch are equivalent within ±0.1 AUROC.'
    """
    if measured.metric.startswith("calibration_"):
        raise UserError(
            f"arms cannot be compared in {measured.metric}: neither more nor less of it is better; "
            "brier has a better side"
        )
    kind = zone(
        measured.low,
        measured.high,
        margin=measured.margin,
        lower_is_better=measured.lower_is_better,
    )
    ends = (measured.difference, measured.low, measured.high)
    write = _undefined if any(map(math.isnan, ends)) else _WORDS[kind]
    short, rest = write(measured)
    if kind != "inconclusive" and measured.one_model:
        kind = f"model_{kind}"
    about = (measured.arm, measured.reference, measured.metric)
    return Comparison(*about, kind, f"{short}.", f"{short}{rest}.")


def headline(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the verdict of several comparisons, the first of which is the main arm's.

    The headline is the main arm's sentence, followed by the other arms that differ or are
    equivalent; the sentences are all of them in order.
    """
    main, *others = comparisons
    rest = [other.headline for other in others if other.verdict != "inconclusive"]
    return {
        "kind": main.verdict,
        "headline": " ".join([main.sentence, *rest]),
        "sentences": [c.sentence for c in comparisons],
    }


def single(
    arm: str,
    estimates: Mapping[str, Mapping[str, Any]],
    *,
    task: str,
    metric: str,
    sample: str,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return the headline of an arm that is compared with none: its main metrics.

    Args:
      arm: its name.
      estimates: metric -> its value with low and high.
      task: "two_class", "multi_class", "multi_label" or "regression".
      metric: the one that comes first.
      sample: how much the estimates rest on, in words: "118 patients".
      level: of the intervals.

    >>> auroc = {"auroc": {"value": 0.83, "low": 0.77, "high": 0.88}}
    >>> single("mine", auroc, task="two_class", metric="auroc", sample="118 patients")["headline"]
    'mine: AUROC 0.830 (95 % interval 0.770 to 0.880).'
    """
    parts: list[str] = []
    for name in dict.fromkeys((metric, *_SINGLE[task])):
        if name not in estimates:
            continue
        entry = estimates[name]
        between = wording.interval(entry["low"], entry["high"])
        between = (
            f"{wording.percent(level)} interval {between}" if between and not parts else between
        )
        shown = f"{wording.metric_in_a_sentence(name)} {wording.number(entry['value'])}"
        parts.append(f"{shown} ({between or entry.get('undefined', wording.NO_REASON)})")
    short = f"{arm}: {', '.join(parts)}."
    basis = f"The intervals cover other samples of {sample}, not another training."
    return {"kind": "no_comparison", "headline": short, "sentences": [short, basis]}


def _undefined(m: Measured) -> tuple[str, str]:
    short = f"Inconclusive: the difference in {m.name} of {m.arm} against {m.reference}"
    return f"{short} is undefined", f": {m.undefined or wording.NO_REASON}"


def _inconclusive(m: Measured) -> tuple[str, str]:
    question = f"whether {m.arm} helps"
    if m.one_model:
        question = f"which of these trained models of {m.arm} and {m.reference} is better"
    rest = f". {m.name[0].upper()}{m.name[1:]} {m.numbers} against {m.reference}"
    rest += f"; {_ONE_SEED}" if m.one_model else ""
    return f"Inconclusive: {m.sample} are too few to tell {question}", rest


def _equivalent(m: Measured) -> tuple[str, str]:
    arms = f"{m.arm} and {m.reference}"
    who = f"These trained models of {arms}" if m.one_model else arms
    rest = f": {m.numbers}"
    if m.low > 0 or m.high < 0:
        rest += "; the difference is distinguishable from 0 but smaller than the margin"
    rest += f"; {_ONE_SEED}" if m.one_model else ""
    return f"{who} are equivalent within ±{m.margin:.3g} {m.name}", rest


def _better(m: Measured) -> tuple[str, str]:
    return _one_side(m, "helps", "better" if m.lower_is_better else "higher")


def _worse(m: Measured) -> tuple[str, str]:
    return _one_side(m, "hurts", "worse" if m.lower_is_better else "lower")


def _one_side(m: Measured, verb: str, side: str) -> tuple[str, str]:
    if m.one_model:
        short = f"This trained model of {m.arm} scores {side} than that of {m.reference}"
        rest = f": {m.name} {m.numbers}; {_ONE_SEED}: three seeds would tell whether {m.arm} {verb}"
        return short, rest
    harm = " (negative transfer)" if verb == "hurts" and m.negative_transfer else ""
    return f"{m.arm} {verb}{harm}", f": {m.name} {m.numbers} against {m.reference}"


_WORDS = {
    "better": _better,
    "worse": _worse,
    "equivalent": _equivalent,
    "inconclusive": _inconclusive,
}
