"""How many patients and images an evaluation needs, before any are collected.

From an expected prevalence, AUROC, sensitivity and specificity to the number of patients whose
intervals have a wanted width, and to the number that shows a wanted difference between two arms.
Formulas are those of Hanley & McNeil (1982, 1983), Wilson (1927) and Riley et al. (2021, Stat Med
40, 4230; 2024, BMJ 384, e074821). Needs no data. Refuses assumptions that contradict each other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation import intervals, sample_size, wording

WIDTH = 80  # columns of the terminal
MOST = 10**8  # patients; more is "no number of patients"
_CURVE = 60  # sizes along the curve


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What is expected and wanted; each is a field of `config.plan`.

    Attributes:
      prevalence: share of positive patients, from 0 to 1.
      auroc, sensitivity, specificity: expected of the model; of the reference arm for `difference`.
      width: wanted full width of the intervals of these three.
      calibration_width: wanted full width of the intervals of O:E and the calibration slope.
      difference: in AUROC between two arms, which the comparison should detect; 0: none.
      margin: in AUROC, within which arms that do not differ should be shown equivalent; 0: none.
      power: the chance of either.
      correlation: of the two arms' AUROC over samples of patients.
      training_sd: standard deviation over seeds of the difference in AUROC.
      seeds: how many times each arm is trained.
      images_per_patient: mean number, at least 1.
      icc: correlation of two images of a patient, from 0 to 1.
      level: of the intervals and the test.
    """

    prevalence: float = 0.2
    auroc: float = 0.85
    sensitivity: float = 0.9
    specificity: float = 0.8
    width: float = 0.1
    calibration_width: float = 0.2
    difference: float = 0.05
    margin: float = 0.0
    power: float = 0.8
    correlation: float = 0.5
    training_sd: float = 0.01
    seeds: int = 3
    images_per_patient: float = 1.0
    icc: float = 0.5
    level: float = 0.95

    @classmethod
    def of(cls, section: Mapping[str, Any], *, seeds: int) -> Assumptions:
        """Take the assumptions from a config's section `plan`.

        Args:
          section: the section; each field by itself is checked.
          seeds: the number of seeds of the config.

        Raises:
          UserError: two fields contradict each other.
        """
        a = cls(seeds=seeds, **section)
        if a.auroc + a.difference >= 1:
            raise UserError(
                f"config.plan.difference is {a.difference:g}, but an AUROC of {a.auroc:g} can rise "
                f"by less than {1 - a.auroc:.3g}; give a smaller difference"
            )
        if a.auroc + a.width / 2 >= 1:
            raise UserError(
                f"config.plan.width is {a.width:g}, but an interval around an AUROC of {a.auroc:g} "
                f"must be narrower than {2 * (1 - a.auroc):.3g}; give a smaller width"
            )
        return a

    @property
    def z(self) -> float:
        """The normal quantile of the level."""
        return intervals.normal_quantile(self.level)

    @property
    def design_effect(self) -> float:
        """Return 1 + (m - 1) ICC, by which m alike images of a patient inflate a variance."""
        return 1 + (self.images_per_patient - 1) * self.icc

    def effective(self, patients: float) -> float:
        """Return how many independent examples the patients' images are worth."""
        return patients * self.images_per_patient / self.design_effect


@dataclasses.dataclass(frozen=True)
class Goal:
    """One thing that is wanted.

    Attributes:
      key: of its column in the curve's table.
      name, wanted: in words, as "AUROC 0.85" and "interval 0.1 wide".
      value: float -> float, the width, or the power, that a number of patients gives.
      target: the wanted one.
      rises: a power, which rises with the patients; a width falls.
    """

    key: str
    name: str
    wanted: str
    value: Callable[[float], float]
    target: float
    rises: bool = False

    def is_met(self, patients: int) -> bool:
        """Tell whether that many patients are enough."""
        value = self.value(patients)
        return value >= self.target if self.rises else value <= self.target + 1e-12


@dataclasses.dataclass(frozen=True)
class Need:
    """How many are needed for a goal.

    Attributes:
      goal: the goal.
      patients, positive, images: numbers; `positive` counts patients.
      undefined: why no number of patients is enough, else ""; the numbers are then 0.
    """

    goal: Goal
    patients: int
    positive: int
    images: int
    undefined: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of all goals, by `plan`.

    Attributes:
      assumptions: on which they rest.
      needs: one for each goal.
      total: the largest, that of all goals that can be met.
      headline: the result.
      notes: further sentences on the assumptions and the result.
      curve: column -> values at rising numbers of "patients": "positive_patients", "images", and
        the `key` of each goal.
    """

    assumptions: Assumptions
    needs: Sequence[Need]
    total: Need
    headline: str
    notes: Sequence[str]
    curve: Mapping[str, Sequence[float]]


def plan(assumptions: Assumptions) -> Plan:
    """Compute how many patients each goal needs.

    >>> needs = plan(Assumptions(prevalence=0.5, auroc=0.8)).needs
    >>> [f"{need.goal.name}: {need.patients}" for need in needs][:2]
    ['AUROC 0.8: 302', 'sensitivity 0.9: 282']
    """
    needs = [_need(goal, assumptions) for goal in goals(assumptions)]
    met = [need for need in needs if not need.undefined]
    total = max(met, key=lambda need: need.patients)
    which = "all goals" if len(met) == len(needs) else "all other goals"
    headline = (
        f"{total.patients:,} patients, {total.positive:,} of them positive, meet {which}; the "
        f"{total.goal.name} needs the most."
    )
    notes = _notes(assumptions, needs, total)
    return Plan(assumptions, needs, total, headline, notes, _curve(needs, total))


def goals(a: Assumptions) -> list[Goal]:
    """Return what the assumptions ask for, with the width or power that patients give."""
    wide, slope = f"interval {a.width:g} wide", sample_size.slope_variance(a.auroc, a.prevalence)
    positive, negative = a.prevalence, 1 - a.prevalence

    def auroc(n: float) -> float:
        cases = a.effective(n)
        return (
            2
            * a.z
            * math.sqrt(sample_size.auroc_variance(a.auroc, positive * cases, negative * cases))
        )

    def share(value: float, part: float) -> Callable[[float], float]:
        def width(n: float) -> float:
            low, high = intervals.wilson(np.array(value), part * a.effective(n), a.z)
            return float(high - low)

        return width

    def ratio(n: float) -> float:
        error = a.z * math.sqrt(negative / (positive * a.effective(n)))
        return 2 * math.sinh(min(error, 50.0))

    similar, chance = f"interval {a.calibration_width:g} wide", f"power {wording.percent(a.power)}"
    return [
        Goal("auroc_width", f"AUROC {a.auroc:g}", wide, auroc, a.width),
        Goal(
            "sensitivity_width",
            f"sensitivity {a.sensitivity:g}",
            wide,
            share(a.sensitivity, positive),
            a.width,
        ),
        Goal(
            "specificity_width",
            f"specificity {a.specificity:g}",
            wide,
            share(a.specificity, negative),
            a.width,
        ),
        Goal("o_e_width", "O:E", similar, ratio, a.calibration_width),
        Goal(
            "slope_width",
            "calibration slope",
            similar,
            lambda n: 2 * a.z * math.sqrt(slope / a.effective(n)),
            a.calibration_width,
        ),
        *(
            Goal(key, name, chance, functools.partial(value, a), a.power, rises=True)
            for key, name, value, size in (
                ("power", f"difference of {a.difference:g} in AUROC", power, a.difference),
                ("equivalence_power", f"equivalence within ±{a.margin:g}", equivalence, a.margin),
            )
            if size
        ),
    ]


def power(a: Assumptions, patients: float) -> float:
    """Compute the chance that the verdict detects the wanted difference between two arms.

    The test is Student's t, see `_error`.

    Args:
      a: the assumptions.
      patients: how many are evaluated on.
    """
    from scipy.stats import nct, t

    error, df = _error(a, patients, a.difference)
    chance = nct.sf(t.isf((1 - a.level) / 2, df), df, a.difference / error)
    return float(np.nan_to_num(chance))


def equivalence(a: Assumptions, patients: float) -> float:
    """Compute the chance that the interval of arms that do not differ is within ± the margin.

    It is at least 1 - 2 times the chance that one end is beyond (two one-sided tests; Schuirmann
    1987, J Pharmacokinet Biopharm 15, 657).

    Args:
      a: the assumptions.
      patients: how many are evaluated on.
    """
    from scipy.stats import nct, t

    error, df = _error(a, patients, 0.0)
    beyond = nct.cdf(t.isf((1 - a.level) / 2, df), df, a.margin / error)
    return float(max(0.0, 1 - 2 * np.nan_to_num(beyond, nan=0.5)))


def _error(a: Assumptions, patients: float, difference: float) -> tuple[float, float]:
    """Return the standard error of a difference in AUROC, and its degrees of freedom.

    The variance of the patients is that of two correlated AUROC, V1 + V2 - 2 r sqrt(V1 V2) (Hanley
    & McNeil 1983, Radiology 148, 839); training adds `training_sd`² / seeds. Degrees of freedom are
    Satterthwaite's, as in `differences`.
    """
    cases = a.effective(patients)
    positive, negative = a.prevalence * cases, (1 - a.prevalence) * cases
    one, two = (
        sample_size.auroc_variance(value, positive, negative)
        for value in (a.auroc, a.auroc + difference)
    )
    sampled = one + two - 2 * a.correlation * math.sqrt(one * two)
    trained = a.training_sd**2 / a.seeds if a.seeds > 1 else 0.0
    parts = sampled**2 / max(patients - 1, 1) + trained**2 / max(a.seeds - 1, 1)
    return math.sqrt(sampled + trained), (sampled + trained) ** 2 / parts


def _need(goal: Goal, a: Assumptions) -> Need:
    """Find the least number of patients, by doubling and halving."""
    high = 2
    while not goal.is_met(high):
        if high >= MOST:
            reason = _seeds_needed(goal, a) if goal.rises else f"more than {MOST:,} patients"
            return Need(goal, 0, 0, 0, reason)
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if goal.is_met(middle) else (middle, high)
    positive, images = high * a.prevalence, high * a.images_per_patient
    return Need(goal, high, math.ceil(positive - 1e-9), math.ceil(images - 1e-9))


def _seeds_needed(goal: Goal, a: Assumptions) -> str:
    """Say why no number of patients reaches a power, and how many seeds would."""
    if a.seeds == 1 or a.training_sd == 0:
        return f"more than {MOST:,} patients"
    sizes = [2**k for k in range(4, 27)]
    with_seeds = (dataclasses.replace(a, seeds=seeds) for seeds in range(2, 101))
    enough = next(
        (
            other.seeds
            for other in with_seeds
            for same in goals(other)
            if same.key == goal.key and any(map(same.is_met, sizes))
        ),
        None,
    )
    more = f"{enough} seeds would do" if enough else "100 seeds are too few, too"
    return (
        f"more seeds: with {a.seeds} and a standard deviation of {a.training_sd:g} between them, "
        f"no number of patients is enough; {more}"
    )


def _notes(a: Assumptions, needs: Sequence[Need], total: Need) -> list[str]:
    others = [need.patients for need in needs if need is not total and not need.undefined]
    notes = [f"The {need.goal.name} needs {need.undefined}." for need in needs if need.undefined]
    if others:
        notes.append(f"Without the {total.goal.name}, {max(others):,} patients would do.")
    notes += [
        "These patients are evaluated on: the test split, in a cross-validation all. The images to "
        "train on and to choose thresholds on (train, val) come on top.",
        *_other_variance(a, needs[0]),
    ]
    if a.seeds == 1:
        notes.append(
            "With one seed the variance of training is unknown: the power is that for two trained "
            "models, not for the methods."
        )
    if a.images_per_patient > 1:
        notes.append(
            f"{a.images_per_patient:g} images of a patient with an ICC of {a.icc:g} are worth "
            f"{a.effective(1):.3g} independent ones (design effect {a.design_effect:.3g})."
        )
    return notes


def _other_variance(a: Assumptions, need: Need) -> list[str]:
    """Return a note where Newcombe's variance of the AUROC gives another number of patients."""

    def width(patients: float) -> float:
        n = a.effective(patients)
        return 2 * a.z * math.sqrt(sample_size.newcombe_variance(a.auroc, a.prevalence, n))

    other = _need(dataclasses.replace(need.goal, value=width), a)
    if other.undefined or need.undefined or abs(other.patients / need.patients - 1) < 0.05:
        return []
    return [
        "The variance of the AUROC is that of Hanley and McNeil; Newcombe's, as in Riley et al., "
        f"which holds for scores of equal spread in both classes, gives {other.patients:,} "
        "patients."
    ]


def _curve(needs: Sequence[Need], total: Need) -> dict[str, list[float]]:
    """Return widths and power at numbers of patients from a quarter of the least need on."""
    least = max(4, min(need.patients for need in needs if not need.undefined) // 4)
    sizes = np.unique(np.geomspace(least, 2 * total.patients, _CURVE).astype(int)).tolist()
    share = total.positive / total.patients, total.images / total.patients
    curve: dict[str, list[float]] = {"patients": sizes}
    curve["positive_patients"], curve["images"] = (
        [round(n * part) for n in sizes] for part in share
    )
    return curve | {need.goal.key: [need.goal.value(n) for n in sizes] for need in needs}


def render(made: Plan) -> str:
    """Write a plan as a table and sentences, at most `WIDTH` columns wide.

    Args:
      made: the plan.
    """
    lines = wording.text_table([table_head(made), *table_rows(made)], left=2, width=WIDTH)
    sentences = [made.headline, assumed(made.assumptions), *made.notes]
    wrapped = [textwrap.fill(sentence, WIDTH, subsequent_indent="  ") for sentence in sentences]
    return "\n".join([wrapped[0], "", *lines, "", *wrapped[1:]])


def table_head(made: Plan) -> tuple[str, ...]:
    """Return the heads of the columns of `table_rows`."""
    images = ("images",) if made.assumptions.images_per_patient > 1 else ()
    return ("goal", "wanted", "patients", "positive patients", *images)


def table_rows(made: Plan) -> list[tuple[str, ...]]:
    """Return a row for each goal and one for all of them; numbers that do not exist are a dash."""
    several = made.assumptions.images_per_patient > 1
    shown = [(need.goal.name, need.goal.wanted, need) for need in made.needs]
    rows = []
    for name, wanted, need in [*shown, ("all of these", "", made.total)]:
        numbers = (need.patients, need.positive, *((need.images,) if several else ()))
        rows.append((name, wanted, *("–" if need.undefined else f"{n:,}" for n in numbers)))
    return rows


def assumed(a: Assumptions) -> str:
    """Write the assumptions as a sentence."""
    return (
        f"Assumed: prevalence {wording.percent(a.prevalence)}; AUROC {a.auroc:g}, sensitivity "
        f"{a.sensitivity:g}, specificity {a.specificity:g}; {a.images_per_patient:g} image"
        f"{'s' if a.images_per_patient > 1 else ''} per patient; two arms of {a.seeds} seed"
        f"{'s' if a.seeds > 1 else ''} each, whose AUROC correlate by {a.correlation:g} and whose "
        f"difference varies by {a.training_sd:g} between seeds; level {wording.percent(a.level)}."
    )
