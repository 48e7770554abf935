"""Metrics in resamples of the patients: the same patients for all arms, which pairs their draws.

The estimate of a metric is the mean over evaluation sets (folds, repeats, seeds) of the metric
within each: scores of different models are not comparable, so ranks are not pooled (Forman & Scholz
2010). The calibration line of two classes is that of all sets together, since probabilities are on
one scale: a small fold in which the model is nearly constant has a slope of any size.

A draw takes as many patients as there are, with replacement, and counts each of their examples as
often as they were drawn, in every set (the cluster bootstrap; Field & Welsh 2007): the interval
includes that images of one patient are alike, which resampling images would leave out.

Refuses arms that differ in their number of evaluation sets.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation.intervals import (
    UNDEFINED_DRAWS,
    interval,
    number_patients,
    predictive_value,
)
from medtl.evaluation.metrics import (
    PROPORTIONS,
    EvaluationSet,
    Options,
    QuantityScorer,
    Scorer,
    kernels,
    quantity_support,
    support,
)
from medtl.examples import is_quantity

AnyScorer = Scorer | QuantityScorer
_RATES = ("sensitivity", "specificity")
_FEWEST = 200
_WORK = 4e8  # examples x classes x resamples that are summed at most, but 200 resamples at least
_POOLED = ("calibration_slope", "calibration_intercept")
_BLOCK = 1 << 18  # examples x resamples that a thread holds at a time: 2 MiB an array


@dataclasses.dataclass(frozen=True)
class Resampled:
    """The metrics of arms, and their values in resamples of the patients.

    Attributes:
      names: the M metrics.
      value: arm -> float64[M], the mean over the splits where the metric is defined, else NaN.
      by_split: arm -> float64[splits, M], of each evaluation set.
      draws: arm -> float64[R, M], means over splits; row r has the same patients for all arms.
      undefined: arm -> metric -> why it is NaN.
      notes: arm -> metric -> in how many splits or resamples it is undefined, where in some.
      support: arm -> int64[M], the patients that bear on each metric, e.g. those with a positive
        for the sensitivity.
      patients: P, the number of units resampled.
      resamples: R, those that were made; see `resample`.
      level: of the intervals that the methods return.
      two_class: whether there are two classes, one rule for all that depends on a decision.
      prevalence: at which PPV and NPV are, by the mean sensitivity and specificity; 0: not stated.
    """

    names: tuple[str, ...]
    value: dict[str, np.ndarray]
    by_split: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    undefined: dict[str, dict[str, str]]
    notes: dict[str, dict[str, str]]
    support: dict[str, np.ndarray]
    patients: int
    resamples: int
    level: float
    prevalence: float = 0.0
    two_class: bool = False

    @property
    def is_share(self) -> np.ndarray:
        """bool[M], the metrics that are shares; see `PROPORTIONS`."""
        return np.array([name in PROPORTIONS for name in self.names])

    def interval(self, arm: str, units: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return low and high of each metric, float64[M].

        Args:
          arm: its name.
          units: int64[M], the patients that bear on each metric; None: `support`.
        """
        value = self.value[arm]
        low, high = interval(
            value,
            self.draws[arm],
            level=self.level,
            units=self.support[arm] if units is None else units,
            proportion=self.is_share,
        )
        has_rates = {*_RATES, "balanced_accuracy"} <= set(self.names)
        if self.two_class and has_rates:
            self._balanced(arm, low, high)
        if self.prevalence:
            one, two = (
                (value[m], low[m], high[m]) for m in (self.names.index(name) for name in _RATES)
            )
            for name, a, b, share in (
                ("ppv", one, two, self.prevalence),
                ("npv", two, one, 1 - self.prevalence),
            ):
                m = self.names.index(name)
                _, low[m], high[m] = predictive_value(a, b, share)
        return low, high

    def _balanced(self, arm: str, low: np.ndarray, high: np.ndarray) -> None:
        """Set the interval of balanced accuracy, half the sum of two rates, from theirs, in place.

        Zou & Donner (2008, Stat Med 27, 1693; MOVER), with the rates' correlation in the draws. At
        a low prevalence nearly all of the variance is that of a sensitivity near 1, whose interval
        is not symmetric; Wilson's for the mean would be.
        """
        index = [self.names.index(n) for n in (*_RATES, "balanced_accuracy")]
        one, two, both = index
        value, draws = self.value[arm], self.draws[arm][:, index[:2]]
        half_sum = (value[one] + value[two]) / 2
        draws = draws[~np.isnan(draws).any(axis=1)]
        if not abs(half_sum - value[both]) < 1e-9 or np.isnan([low[one], low[two]]).any():
            return
        varies = len(draws) > 1 and bool((draws.std(axis=0) > 0).all())
        correlation = float(np.corrcoef(draws.T)[0, 1]) if varies else 0.0

        def half_width(a: float, b: float) -> float:
            return float(np.sqrt(max(a * a + b * b + 2 * correlation * a * b, 0.0))) / 2

        low[both] = half_sum - half_width(value[one] - low[one], value[two] - low[two])
        high[both] = half_sum + half_width(high[one] - value[one], high[two] - value[two])

    def difference(
        self, arm: str, reference: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Subtract the reference from an arm, draw by draw.

        Where a share is the same in every draw, as when both arms are always right, the interval
        holds the differences that n patients do not exclude: n of them all agree with probability
        (1 - d)^n if a share d differs.

        Returns:
          value, low, high: float64[M]; draws: float64[R, M].
        """
        value = self.value[arm] - self.value[reference]
        draws = self.draws[arm] - self.draws[reference]
        units = np.minimum(self.support[arm], self.support[reference])
        low, high = interval(value, draws, level=self.level, units=units)
        still = (value == 0) & (low == 0) & (high == 0) & self.is_share
        bound = 1 - ((1 - self.level) / 2) ** (1 / np.maximum(units, 1))
        return value, np.where(still, -bound, low), np.where(still, bound, high), draws


def resample(
    arms: Mapping[str, Sequence[EvaluationSet]],
    *,
    classes: Sequence[str],
    options: Options,
    names: Sequence[str] | None = None,
) -> Resampled:
    """Compute every metric of every arm, and of resamples of the patients.

    `options.resamples` are made, fewer with many examples: as many as keep examples x classes (of
    a quantity log2 examples) x resamples within 4e8, but 200 at least; a percentile then moves by a
    fifth of a standard error from seed to seed. Draw r depends on (seed, r) and the number of
    patients alone, so not on the number of threads, which is that of the CPUs, at most 4. Patients
    are those that occur in a set.

    Args:
      arms: name -> its evaluation sets; set i of all arms has the same examples.
      classes: the K names.
      options: see there.
      names: the metrics, see `Scorer`; None: all.

    Returns:
      The metrics. Draws in which a set lacks a class are means over the sets that have it.

    Raises:
      UserError: the arms have no sets or not the same number of them, the options do not fit the
        task, or a metric of the user's fails.
    """
    patients, numbered = _numbered(arms)

    make = _scorer_of(numbered)

    def scorer(data: EvaluationSet) -> AnyScorer:
        return make(data, classes=classes, options=options, units=patients, names=names)

    scorers = {arm: list(map(scorer, sets)) for arm, sets in numbered.items()}
    made = next(iter(scorers.values()))[0].names
    support_of: Any = quantity_support if make is QuantityScorer else support
    examples = sum(len(data.label) for sets in numbered.values() for data in sets)
    width = len(classes)
    if make is QuantityScorer:  # whose C-index sums once for each bit of the labels' ranks
        width = max(examples, 2).bit_length()
    resamples = min(options.resamples, max(_FEWEST, int(_WORK / max(1, examples * width))))
    by_split = {
        arm: np.concatenate([score(np.ones((1, patients))) for score in each])
        for arm, each in scorers.items()
    }
    with np.errstate(invalid="ignore"):
        value = {arm: kernels.mean_of_defined(table, axis=0) for arm, table in by_split.items()}
    result = Resampled(
        names=made,
        value=value,
        by_split=by_split,
        draws=_draw(scorers, patients, resamples, options.seed, len(made)),
        undefined={arm: _reasons(scorers[arm], by_split[arm]) for arm in arms},
        notes={},
        support={arm: support_of(scorers[arm]) for arm in arms},
        patients=patients,
        resamples=resamples,
        level=options.level,
        prevalence=options.prevalence,
        two_class=len(classes) == 2 and next(iter(numbered.values()))[0].label.ndim == 1,
    )
    _pool(result, numbered, classes, options)
    _adjust(result)
    notes = {arm: _notes(scorers[arm], by_split[arm], result.draws[arm]) for arm in arms}
    return dataclasses.replace(result, notes=notes)


def _scorer_of(arms: Mapping[str, Sequence[EvaluationSet]]) -> Any:
    """Return the class that computes the metrics of the arms' label."""
    first = next(iter(arms.values()))[0]
    return QuantityScorer if is_quantity(np.asarray(first.label)) else Scorer


def _numbered(
    arms: Mapping[str, Sequence[EvaluationSet]],
) -> tuple[int, dict[str, list[EvaluationSet]]]:
    """Return the number of patients, and the sets with patients numbered from 0 without gaps."""
    lengths = {len(sets) for sets in arms.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise UserError(
            "each arm must have the same number of evaluation sets, at least 1; "
            f"they have {sorted(lengths)}"
        )
    columns = [data.patient for sets in arms.values() for data in sets]
    patients, numbers = number_patients(columns)
    number = iter(numbers)
    return patients, {
        arm: [dataclasses.replace(data, patient=next(number)) for data in sets]
        for arm, sets in arms.items()
    }


def _pool(
    result: Resampled,
    arms: Mapping[str, Sequence[EvaluationSet]],
    classes: Sequence[str],
    options: Options,
) -> None:
    """Take the calibration line from all sets of an arm together, in place; of one set it is so."""
    names = [name for name in result.names if name in _POOLED]
    columns = [result.names.index(name) for name in names]
    if not names or len(next(iter(arms.values()))) == 1:
        return
    make = _scorer_of(arms)
    pooled = {
        arm: [
            make(
                pool(sets),
                classes=classes,
                options=dataclasses.replace(options, extra={}),
                units=result.patients,
                names=names,
            )
        ]
        for arm, sets in arms.items()
    }
    draws = _draw(pooled, result.patients, result.resamples, options.seed, len(names))
    for arm, (scorer,) in pooled.items():
        value = scorer(np.ones((1, result.patients)))[0]
        result.value[arm][columns], result.draws[arm][:, columns] = value, draws[arm]
        result.by_split[arm][:, columns] = np.nan
        for name in names:
            result.undefined[arm].pop(name, None)
        result.undefined[arm].update(scorer.explain(value))


def pool(sets: Sequence[EvaluationSet]) -> EvaluationSet:
    """Put the examples of several sets, with patients numbered alike, into one."""
    return EvaluationSet(
        np.concatenate([data.label for data in sets]),
        np.concatenate([data.probability for data in sets]),
        np.concatenate([data.patient for data in sets]),
    )


def _adjust(result: Resampled) -> None:
    """Put PPV and NPV at the stated prevalence, and center the draws of the ECE, in place."""
    if result.prevalence:
        for tables in (result.value, result.draws):
            for table in tables.values():
                _at_prevalence(table, result.names, result.prevalence)
    if "ece" in result.names:
        ece = result.names.index("ece")
        for arm, table in result.draws.items():
            _center(table[:, ece], result.value[arm][ece])


def _at_prevalence(table: np.ndarray, names: Sequence[str], prevalence: float) -> None:
    """Take PPV and NPV float64[..., M] from the mean rates, in place.

    The mean over small folds of each fold's PPV would be too large: without a false positive it is
    1, whatever the prevalence.
    """
    one, two = (table[..., names.index(name)] for name in _RATES)
    with np.errstate(divide="ignore", invalid="ignore"):
        ppv = one * prevalence / (one * prevalence + (1 - two) * (1 - prevalence))
        npv = two * (1 - prevalence) / (two * (1 - prevalence) + (1 - one) * prevalence)
    table[..., names.index("ppv")], table[..., names.index("npv")] = ppv, npv


def _draw(
    scorers: Mapping[str, Sequence[AnyScorer]],
    patients: int,
    resamples: int,
    seed: int,
    metrics: int,
) -> dict[str, np.ndarray]:
    """Return arm -> float64[R, M]."""
    largest = max(scorer.size for each in scorers.values() for scorer in each)
    block = min(max(1, _BLOCK // max(largest, patients, 1)), 256)
    draws = {arm: np.full((resamples, metrics), np.nan) for arm in scorers}

    def fill(start: int) -> None:
        rows = range(start, min(start + block, resamples))
        counts = np.empty((len(rows), patients))
        for i, r in enumerate(rows):
            chosen = np.random.default_rng([seed, r]).integers(0, patients, patients)
            counts[i] = np.bincount(chosen, minlength=patients)
        for arm, each in scorers.items():
            total, defined = np.zeros((len(rows), metrics)), np.zeros((len(rows), metrics))
            for scorer in each:
                values = scorer(counts)
                is_number = ~np.isnan(values)
                total += np.where(is_number, values, 0.0)
                defined += is_number
            with np.errstate(invalid="ignore"):
                draws[arm][rows.start : rows.stop] = total / defined

    if patients:
        with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(fill, range(0, resamples, block)))
    return draws


def _center(draws: np.ndarray, value: float) -> None:
    """Move draws float64[R] of the ECE to the estimate, in place; none is below 0.

    A draw adds to the gaps of the bins by chance; the draws would add it a second time.
    """
    defined = draws[~np.isnan(draws)]
    if len(defined):
        np.maximum(draws + (value - defined.mean()), 0.0, out=draws)


def _reasons(scorers: Sequence[AnyScorer], by_split: np.ndarray) -> dict[str, str]:
    """Return metric -> why it is NaN in every split: the first split's reason."""
    nowhere = np.isnan(by_split).all(axis=0)
    reasons, names = scorers[0].explain(by_split[0]), scorers[0].names
    return {name: reasons[name] for name, nan in zip(names, nowhere, strict=True) if nan}


def _notes(scorers: Sequence[AnyScorer], by_split: np.ndarray, draws: np.ndarray) -> dict[str, str]:
    """Return metric -> where it is undefined, for those that are defined somewhere."""
    notes = {}
    missing = np.isnan(by_split)
    share = np.isnan(draws).mean(axis=0) if len(draws) else np.zeros(by_split.shape[1])
    for m, name in enumerate(scorers[0].names):
        splits = np.flatnonzero(missing[:, m])
        if len(splits) == len(by_split):
            continue
        parts = []
        if len(splits):
            reason = scorers[splits[0]].explain(by_split[splits[0]])[name]
            parts.append(f"left out in {len(splits)} of {len(by_split)} evaluation sets: {reason}")
        if share[m] > UNDEFINED_DRAWS:
            parts.append(
                f"no interval: undefined in {share[m]:.0%} of the resamples, in which too few "
                "patients are left"
            )
        if parts:
            notes[name] = "; ".join(parts)
    return notes
