"""Prediction sets that hold the right diagnosis with a stated probability: split conformal.

This holds for any model. The thresholds are taken on val, on which the model must not have been
trained, and nothing is random. Refuses tasks with several labels per example: their sets are a
different problem, and the reason is returned instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation.checks import check_label, check_probability
from medtl.evaluation.intervals import patient_numbers

MULTI_LABEL = "prediction sets are defined here for one label per example, not for several"


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The largest score with which a class is in the set.

    Attributes:
      kind: "split" or "class_conditional".
      level: the probability with which the sets are to hold the label, e.g. 0.9.
      classes: the K names.
      value: float64[K], the largest score 1 - p with which a class is in the set; inf where it
        always is.
      n: int64[K], the units of val from which each value comes: examples, or patients where they
        were given.
      notes: remarks for the reader, e.g. that a class is in every set because val has too few
        examples of it.
    """

    kind: str
    level: float
    classes: tuple[str, ...]
    value: np.ndarray
    n: np.ndarray
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How often the sets hold the label of labelled examples.

    Attributes:
      coverage: the mean over patients of the share of their examples whose set holds their label;
        NaN where there is none.
      low, high: its interval.
      n: the number of examples.
      units: the number of patients; of examples where patients are unknown.
      size: mean number of classes in a set, each patient weighing one, as below.
      empty, singleton: the share of sets with no class and with one.
      of_examples: the share of all examples whose set holds their label, which patients of many
        examples dominate.
      by_class: class -> the same over the examples of that label; empty there.
    """

    coverage: float
    low: float
    high: float
    n: int
    units: int
    size: float
    empty: float
    singleton: float
    of_examples: float
    by_class: dict[str, Coverage]

    def as_dict(self) -> dict[str, Any]:
        """Return the entries, `by_class` as nested dicts that have none."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["by_class"]
        if self.by_class:
            fields["by_class"] = {name: one.as_dict() for name, one in self.by_class.items()}
        return fields


def split(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    classes: Sequence[str],
    level: float = 0.9,
    patient: np.ndarray | None = None,
) -> Thresholds | str:
    """Choose one threshold for all classes: sets hold the label with probability `level` overall.

    The score of a class is 1 - p, which gives the smallest sets on average (Sadinle, Lei &
    Wasserman 2019, "Least ambiguous set-valued classifiers"; sets may be empty). The threshold is
    the ceil((n + 1) level)-th smallest score of the labels of the n examples of val, inf where
    there are fewer. If those and a new example are exchangeable, its set holds its label with a
    probability in [level, level + 1 / (n + 1)], the upper end if no scores are equal (Vovk,
    Gammerman & Shafer 2005; Lei et al. 2018, theorem 2.2).

    Several images of a patient are not exchangeable with those of others. Given `patient`, each of
    the G patients of val counts once, shared equally among their images, and the threshold is the
    smallest score at or below which there is a weight of (G + 1) level: the set of an image of a
    new patient then holds its label with a probability of at least `level` (hierarchical conformal
    prediction, Lee, Barber & Willett 2023). Without `patient` the guarantee is for exchangeable
    rows.

    Args:
      label: int[N], an index into `classes`, -1 where unknown.
      probability: float[N, K], the model's probabilities on val.
      classes: the K names.
      level: the probability that is asked for, between 0 and 1.
      patient: int or str [N], or None: every example is its own, as is one whose patient is "",
        unknown.

    Returns:
      The thresholds, or the reason why there are none: several labels per example, or no labelled
      example.

    Raises:
      UserError: the level is not between 0 and 1, or arrays do not fit or are not as above.
    """
    rows = _rows(label, probability, patient, classes, level)
    if isinstance(rows, str):
        return rows
    _, score, unit = rows
    value, n = _quantile(score, unit, level)
    few = (
        f"val has {n} {_word(patient)}, fewer than the {_needed(level)} that level {level:g} "
        "needs: every set holds every class"
    )
    k, notes = len(classes), () if math.isfinite(value) else (few,)
    return Thresholds("split", level, tuple(classes), np.full(k, value), np.full(k, n), notes)


def class_conditional(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    classes: Sequence[str],
    level: float = 0.9,
    patient: np.ndarray | None = None,
) -> Thresholds | str:
    """Choose a threshold for each class: sets hold the label with probability `level` in each.

    Do what `split` does within each class (Mondrian conformal prediction, Vovk 2012; Sadinle et al.
    2019): the guarantee holds for the rare class too, at the price of larger sets. A class of too
    few examples for the level is in every set, and `notes` says so. For arguments, patients,
    results and errors see `split`.
    """
    rows = _rows(label, probability, patient, classes, level)
    if isinstance(rows, str):
        return rows
    label, score, unit = rows
    pairs = [_quantile(score[label == k], unit[label == k], level) for k in range(len(classes))]
    value, n = np.array([v for v, _ in pairs]), np.array([m for _, m in pairs])
    needed = _needed(level)
    notes = tuple(
        f"val has {m} {_word(patient)} of {name!r}, fewer than the {needed} that level {level:g} "
        "needs: every set holds it"
        for name, v, m in zip(classes, value, n, strict=True)
        if not math.isfinite(v)
    )
    return Thresholds("class_conditional", level, tuple(classes), value, n, notes)


def sets(probability: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Return bool[N, K], the classes in the set of each example.

    Args:
      probability: float[N, K].
      thresholds: of `split` or `class_conditional`.

    Raises:
      UserError: the probabilities do not fit the thresholds or are NaN.
    """
    probability = np.asarray(probability, np.float64)
    check_probability(probability, len(probability), len(thresholds.classes))
    return 1 - probability <= thresholds.value


def coverage(
    label: np.ndarray,
    sets: np.ndarray,
    *,
    classes: Sequence[str],
    patient: np.ndarray | None = None,
    level: float = 0.95,
) -> Coverage:
    """Measure the share of the sets that hold the label, with an interval, and the sets' size.

    Each patient weighs one, shared equally among the examples, as in the guarantee of `split`.

    The interval is Clopper & Pearson's (1934), exact for independent examples. With patients of
    several examples it is that of Korn & Graubard (1998): the number of examples n is replaced by

        c (1 - c) / v * (G - 1) / G * n / (n - 1) * (t(n - 1) / t(G - 1))^2,   never above n,

    with c the coverage, v the variance of a mean over G patients, and t the quantiles of Student's
    distribution; all examples their own patients give n. Where every set or none holds its label, v
    has no estimate and each patient counts as one example. The interval is about these thresholds
    on new patients, not about the thresholds that another val would have given.

    Sets of several models (folds, seeds, repeats) may be put together: give the patients the same
    number in each.

    Args:
      label: int[N], an index into `classes`, -1 where unknown.
      sets: bool[N, K].
      classes: the K names.
      patient: int or str [N], or None: every example is its own, as is one whose patient is "",
        unknown.
      level: of the interval.

    Returns:
      The measured coverage; its numbers are NaN where there is no labelled example, `low` and
      `high` also where there is only one patient of several examples.

    Raises:
      UserError: arrays do not fit or are not as above.
    """
    label, chosen = np.asarray(label), np.asarray(sets)
    if label.ndim != 1 or chosen.shape != (len(label), len(classes)) or chosen.dtype != bool:
        raise UserError(
            f"label is {list(label.shape)}, sets {chosen.dtype}{list(chosen.shape)}; "
            f"wanted are int[N] and bool[N, {len(classes)}]"
        )
    unit = patient_numbers(patient, len(label))
    check_label(label, len(label), len(classes))
    rows = label >= 0
    label, chosen, unit = label[rows], chosen[rows], unit[rows]
    hit = chosen[np.arange(len(label)), label]
    size = chosen.sum(axis=1)
    by_class = {
        name: _measured(hit[label == k], size[label == k], unit[label == k], level)
        for k, name in enumerate(classes)
    }
    return dataclasses.replace(_measured(hit, size, unit, level), by_class=by_class)


def _measured(hit: np.ndarray, size: np.ndarray, unit: np.ndarray, level: float) -> Coverage:
    n = len(hit)
    if not n:
        return Coverage(*(math.nan,) * 3, 0, 0, *(math.nan,) * 4, {})
    _, code, count = np.unique(unit, return_inverse=True, return_counts=True)

    def by_patient(value: np.ndarray) -> np.ndarray:
        return np.bincount(code, value) / count

    held = by_patient(hit)
    low, high = _interval(held, n, level)
    return Coverage(
        float(held.mean()),
        low,
        high,
        n,
        units=len(count),
        size=float(by_patient(size).mean()),
        empty=float(by_patient(size == 0).mean()),
        singleton=float(by_patient(size == 1).mean()),
        of_examples=float(hit.mean()),
        by_class={},
    )


def _interval(held: np.ndarray, n: int, level: float) -> tuple[float, float]:
    """Return Korn & Graubard's interval of the mean of shares float64[G] of `n` examples in all."""
    from scipy import stats

    units, share = len(held), float(held.mean())
    effective, tail = float(units), (1 - level) / 2
    if units == 1 < n:
        return math.nan, math.nan
    variance = float(held.var()) / units
    if units < n and variance > 0:
        fewer = (stats.t.ppf(tail, n - 1) / stats.t.ppf(tail, units - 1)) ** 2
        independent = share * (1 - share) / variance * n / (n - 1) * (units - 1) / units
        effective = min(n, fewer * independent)
    x = share * effective
    low = 0.0 if x == 0 else float(stats.beta.ppf(tail, x, effective - x + 1))
    high = 1.0 if share == 1 else float(stats.beta.ppf(1 - tail, x + 1, effective - x))
    return low, high


def _quantile(score: np.ndarray, unit: np.ndarray, level: float) -> tuple[float, int]:
    """Return the threshold of `split` for these scores, inf where they are too few, and units."""
    _, code, count = np.unique(unit, return_inverse=True, return_counts=True)
    if len(count) < _needed(level):
        return math.inf, len(count)
    order = np.argsort(score, kind="stable")
    weight = np.cumsum((1 / count)[code[order]])
    # Sums of 1 / count and the product are rounded; equal numbers may differ by as much.
    index = int(np.searchsorted(weight, (len(count) + 1) * level - 1e-9))
    return float(score[order[min(index, len(order) - 1)]]), len(count)


def _word(patient: np.ndarray | None) -> str:
    return "examples" if patient is None else "patients"


def _needed(level: float) -> int:
    """Return the smallest n with (n + 1) level <= n: so many units give a finite threshold."""
    return math.ceil(level / (1 - level) - 1e-9)


def _rows(
    label: np.ndarray,
    probability: np.ndarray,
    patient: np.ndarray | None,
    classes: Sequence[str],
    level: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | str:
    """Return (label, score of the label, unit) of labelled examples, or why there are no sets."""
    if not 0 < level < 1:
        raise UserError(f"the level of prediction sets is {level}; it must be between 0 and 1")
    label, probability = np.asarray(label), np.asarray(probability, np.float64)
    if label.ndim == 2:
        return MULTI_LABEL
    check_probability(probability, len(label), len(classes))
    check_label(label, len(label), len(classes))
    unit = patient_numbers(patient, len(label))
    labelled = label >= 0
    if not labelled.any():
        return "val has no labelled example"
    label = label[labelled]
    return label, 1 - probability[labelled][np.arange(len(label)), label], unit[labelled]
