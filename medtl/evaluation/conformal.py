"""Prediction sets that hold the right diagnosis with a stated probability, whatever the model: split conformal.

The thresholds are taken on val, which the model must not have been trained on, and nothing is random. Refuses tasks with
several labels an example: their sets are a different problem, and the reason is returned instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError

MULTI_LABEL = "prediction sets are defined here for one label an example, not for several"


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What a class's score may be for the class to be in the set.

    Attributes:
      kind: "split" or "class_conditional".
      level: the probability that the sets are to hold the label with, e.g. 0.9.
      classes: the K names.
      value: float64[K], the largest score 1 - p with which a class is in the set; inf where it always is.
      n: int64[K], how many units of val stand behind each value: examples, or patients where they were given.
      notes: what a reader must know, e.g. that a class is in every set because val has too few examples of it.
    """

    kind: str
    level: float
    classes: tuple[str, ...]
    value: np.ndarray
    n: np.ndarray
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How the sets did on labelled examples.

    Attributes:
      coverage: the share of the examples whose set holds their label; NaN where there is none.
      low, high: its interval.
      n: the number of examples.
      units: the number of patients; of examples where patients are not known.
      size: mean number of classes in a set.
      empty, singleton: the share of sets with no class and with one.
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
    by_class: dict[str, Coverage]

    def as_dict(self) -> dict[str, Any]:
        """Every entry, `by_class` as nested dicts, left out inside a class."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["by_class"]
        if self.by_class:
            fields["by_class"] = {name: own.as_dict() for name, own in self.by_class.items()}
        return fields


def split(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    classes: Sequence[str],
    level: float = 0.9,
    patient: np.ndarray | None = None,
) -> Thresholds | str:
    """One threshold for all classes, so that sets hold the label with probability `level` over all examples.

    The score of a class is 1 - p, which gives the smallest sets on average (Sadinle, Lei & Wasserman 2019, "Least
    ambiguous set-valued classifiers"; sets may be empty). The threshold is the ceil((n + 1) level)-th smallest score of
    the labels of the n examples of val, inf where there are fewer. If those and a new example are exchangeable, its set
    holds its label with a probability in [level, level + 1 / (n + 1)], the upper end if no scores are equal (Vovk,
    Gammerman & Shafer 2005; Lei et al. 2018, theorem 2.2).

    Several images of a patient are not exchangeable with those of others. Given `patient`, each of the G patients of
    val counts once, shared equally among their images, and the threshold is the smallest score below or at which lies a
    weight of (G + 1) level: the set of an image of a new patient then holds its label with a probability of at least
    `level` (hierarchical conformal prediction, Lee, Barber & Willett 2023). Without `patient` the guarantee is
    for exchangeable rows.

    Args:
      label: int[N], an index into `classes`, -1 where unknown.
      probability: float[N, K], the model's probabilities on val.
      classes: the K names.
      level: the probability that is asked for, between 0 and 1.
      patient: int or str [N], or None: every example is its own, as is one whose patient is "", unknown.

    Returns:
      The thresholds, or the reason why there are none: several labels an example, or no labelled example.

    Raises:
      UserError: the level is not between 0 and 1, or arrays do not fit or are not as above.
    """
    rows = _rows(label, probability, patient, classes, level)
    if isinstance(rows, str):
        return rows
    _, score, unit = rows
    value, n = _quantile(score, unit, level)
    few = f"val has {n} {_word(patient)}, fewer than the {_needed(level)} that level {level:g} needs: every set holds every class"
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
    """A threshold for each class from its own examples, so that sets hold the label with probability `level` in each.

    What `split` does, done within each class (Mondrian conformal prediction, Vovk 2012; Sadinle et al. 2019): the
    guarantee holds for the rare class too, at the price of larger sets. A class of too few examples for the
    level is in every set, and `notes` says so. For arguments, patients, results and errors see `split`.
    """
    rows = _rows(label, probability, patient, classes, level)
    if isinstance(rows, str):
        return rows
    known, score, unit = rows
    pairs = [_quantile(score[known == k], unit[known == k], level) for k in range(len(classes))]
    value, n = np.array([v for v, _ in pairs]), np.array([m for _, m in pairs])
    needed = _needed(level)
    notes = tuple(
        f"val has {m} {_word(patient)} of {name!r}, fewer than the {needed} that level {level:g} needs: every set holds it"
        for name, v, m in zip(classes, value, n, strict=True)
        if not math.isfinite(v)
    )
    return Thresholds("class_conditional", level, tuple(classes), value, n, notes)


def sets(probability: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """bool[N, K], which classes are in the set of each example, from its probability float[N, K].

    Raises:
      UserError: the probabilities do not fit the thresholds or are NaN.
    """
    probability = np.asarray(probability, np.float64)
    _check_probability(probability, len(thresholds.classes))
    return 1 - probability <= thresholds.value


def coverage(
    label: np.ndarray,
    sets: np.ndarray,
    *,
    classes: Sequence[str],
    patient: np.ndarray | None = None,
    level: float = 0.95,
) -> Coverage:
    """The share of the sets that hold the label, with an interval, and how large the sets are.

    The interval is Clopper & Pearson's (1934), exact for independent examples. With patients of several examples it is
    that of Korn & Graubard (1998): the number of examples n is replaced by

        n / d * (t(n - 1) / t(G - 1))^2,   never above n,

    with G patients, t the quantiles of Student's distribution, and d the design effect, the variance between patients of
    the share over that of independent examples; all examples their own patients give d = 1. Where every set or none
    holds its label, d has no estimate and each patient counts as one example. The interval is about these thresholds
    on new patients, not about the thresholds that another val would have given.

    Sets of several models (folds, seeds, repeats) may be put together: give the patients the same number in each.

    Args:
      label: int[N], an index into `classes`, -1 where unknown.
      sets: bool[N, K].
      classes: the K names.
      patient: int or str [N], or None: every example is its own, as is one whose patient is "", unknown.
      level: of the interval.

    Returns:
      The measured coverage; its numbers are NaN where there is no labelled example, `low` and `high` also where there
      is only one patient of several examples.

    Raises:
      UserError: arrays do not fit or are not as above.
    """
    label, chosen = np.asarray(label), np.asarray(sets)
    if label.ndim != 1 or chosen.shape != (len(label), len(classes)) or chosen.dtype != bool:
        raise UserError(
            f"label is {list(label.shape)}, sets {chosen.dtype}{list(chosen.shape)}; wanted are int[N] and bool[N, {len(classes)}]"
        )
    unit = _units(patient, len(label))
    _check_label(label, len(classes))
    known = label >= 0
    label, chosen, unit = label[known], chosen[known], unit[known]
    hit = chosen[np.arange(len(label)), label]
    size = chosen.sum(axis=1)
    own = {
        name: _measured(hit[label == k], size[label == k], unit[label == k], level)
        for k, name in enumerate(classes)
    }
    return dataclasses.replace(_measured(hit, size, unit, level), by_class=own)


def _measured(hit: np.ndarray, size: np.ndarray, unit: np.ndarray, level: float) -> Coverage:
    n = len(hit)
    if not n:
        return Coverage(*(math.nan,) * 3, 0, 0, *(math.nan,) * 3, {})
    units = len(np.unique(unit))
    low, high = _interval(hit, unit, units, level)
    share = (float(hit.mean()), low, high, n, units, float(size.mean()))
    return Coverage(*share, float(np.mean(size == 0)), float(np.mean(size == 1)), {})


def _interval(hit: np.ndarray, unit: np.ndarray, units: int, level: float) -> tuple[float, float]:
    """Low and high of a share by Korn & Graubard; Clopper & Pearson's where every example is its own unit."""
    from scipy import stats

    n, share = len(hit), hit.mean()
    effective, tail = float(n), (1 - level) / 2
    if units < n:
        if units == 1:
            return math.nan, math.nan
        _, code = np.unique(unit, return_inverse=True)
        between = units / (units - 1) * np.sum(np.bincount(code, hit - share) ** 2) / n**2
        independent = share * (1 - share) / (n - 1)
        fewer = (stats.t.ppf(tail, n - 1) / stats.t.ppf(tail, units - 1)) ** 2
        if not independent:
            effective = float(units)
        elif between > 0:
            effective = min(n, n * fewer * independent / between)
    x = share * effective
    low = 0.0 if x == 0 else float(stats.beta.ppf(tail, x, effective - x + 1))
    high = 1.0 if share == 1 else float(stats.beta.ppf(1 - tail, x + 1, effective - x))
    return low, high


def _quantile(score: np.ndarray, unit: np.ndarray, level: float) -> tuple[float, int]:
    """The threshold of `split` for these scores, and the number of units; inf where they are too few."""
    _, code, count = np.unique(unit, return_inverse=True, return_counts=True)
    if len(count) < _needed(level):
        return math.inf, len(count)
    order = np.argsort(score, kind="stable")
    weight = np.cumsum((1 / count)[code[order]])
    # Sums of 1 / count and the product are rounded; what is meant to be equal may differ by as much.
    index = int(np.searchsorted(weight, (len(count) + 1) * level - 1e-9))
    return float(score[order[min(index, len(order) - 1)]]), len(count)


def _word(patient: np.ndarray | None) -> str:
    return "examples" if patient is None else "patients"


def _needed(level: float) -> int:
    """The fewest units whose largest score is a threshold: the smallest n with (n + 1) level <= n."""
    return math.ceil(level / (1 - level) - 1e-9)


def _rows(
    label: np.ndarray,
    probability: np.ndarray,
    patient: np.ndarray | None,
    classes: Sequence[str],
    level: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | str:
    """(label, score of the label, unit) of the labelled examples, or why there are no sets."""
    if not 0 < level < 1:
        raise UserError(f"the level of prediction sets is {level}; it must lie between 0 and 1")
    label, probability = np.asarray(label), np.asarray(probability, np.float64)
    if label.ndim == 2:
        return MULTI_LABEL
    _check_probability(probability, len(classes))
    if len(label) != len(probability):
        raise UserError(
            f"there are {len(label)} labels and {len(probability)} rows of probabilities"
        )
    _check_label(label, len(classes))
    unit = _units(patient, len(label))
    known = label >= 0
    if not known.any():
        return "val has no labelled example"
    label = label[known]
    return label, 1 - probability[known][np.arange(len(label)), label], unit[known]


def _units(patient: np.ndarray | None, n: int) -> np.ndarray:
    unit = np.arange(n) if patient is None else np.asarray(patient)
    if unit.shape != (n,):
        raise UserError(f"patient is {list(unit.shape)}; {n} labels want {[n]}")
    if unit.dtype.kind not in "UT" or not (unit == "").any():
        return unit
    distinct, number = np.unique(unit, return_inverse=True)
    return np.where(unit == "", len(distinct) + np.arange(n), number)


def _check_label(label: np.ndarray, k: int) -> None:
    if not (np.issubdtype(label.dtype, np.integer) and np.all((label >= -1) & (label < k))):
        raise UserError(f"one label an example is int[N], -1 (unknown) or 0..{k - 1}")


def _check_probability(probability: np.ndarray, k: int) -> None:
    if probability.ndim != 2 or probability.shape[1] != k:
        raise UserError(f"probability is {list(probability.shape)}; {k} classes want [N, {k}]")
    wrong = np.flatnonzero(~np.all((probability >= 0) & (probability <= 1 + 1e-5), axis=1))
    if len(wrong):
        raise UserError(
            f"probability[{wrong[0]}] is {probability[wrong[0]].tolist()}; each must be from 0 to 1"
        )
