"""One arm's results: its evaluation sets, its metrics with intervals, and its conformal sets.

Thresholds, calibration maps and conformal quantiles are fitted on the val predictions of the same
model and used on the evaluated split; where there are none, the results say so.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.evaluation import bootstrap, conformal, ensembles, operating
from medtl.evaluation.intervals import number_patients
from medtl.evaluation.metrics import EvaluationSet, Options, kernels
from medtl.evaluation.predictions import Predictions
from medtl.examples import class_counts, is_quantity

NO_VAL = "there are no predictions of val to fit it on"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One arm's labelled predictions of the evaluated split, model by model.

    The examples are in the same order for every arm.

    Attributes:
      arm: its name.
      predictions: of each model.
      val: the same model's predictions of val; None where there are none.
      sets: each model's input of the metrics, patients numbered alike in all arms and sets.
      positive: the positive class of two.
      patients: how many there are; None where they are unknown.
      n: the number of different examples.
      notes: remarks for the reader.
    """

    arm: str
    predictions: list[Predictions]
    val: list[Predictions | None]
    sets: list[EvaluationSet]
    positive: int
    patients: int | None
    n: int
    notes: list[str]

    @property
    def task(self) -> str:
        first = self.sets[0]
        if is_quantity(first.label):
            return "regression"
        if first.label.ndim == 2:
            return "multi_label"
        return "two_class" if first.probability.shape[1] == 2 else "multi_class"

    @property
    def same_examples(self) -> bool:
        """Whether all models predict the same examples, as several seeds on one split do."""
        return all(np.array_equal(p.id, self.predictions[0].id) for p in self.predictions[1:])

    @property
    def once(self) -> list[int]:
        """The models that together predict each example once: the first seed's and repeat's."""
        of = [(p.seed, p.repeat) for p in self.predictions]
        return [i for i, model in enumerate(of) if model == of[0]]

    @property
    def once_words(self) -> str:
        """Which of several seeds and repeats those are, in words."""
        several = [word for word in ("seed", "repeat") if self.number(word) > 1]
        return f" in the first {' and '.join(several)}" if several else ""

    @property
    def several_splits(self) -> bool:
        """Whether models are tested on different parts of the examples: folds, repeated splits.

        Repeats of one split are trainings like those of several seeds.
        """
        return self.number("fold") > 0 or (self.number("repeat") > 1 and not self.same_examples)

    @property
    def grouped(self) -> bool:
        """Whether no patient is tested on in two folds of a repeat."""
        patients = [np.unique(self.sets[i].patient) for i in self.once]
        return sum(map(len, patients)) == len(np.unique(np.concatenate(patients)))

    @property
    def columns(self) -> list[str]:
        """The columns of groups that every model has, not all empty."""
        shared = [
            name
            for name in self.predictions[0].groups
            if all(name in p.groups for p in self.predictions)
        ]
        return [
            name for name in shared if any((p.groups[name] != "").any() for p in self.predictions)
        ]

    def number(self, name: str) -> int:
        """Count the seeds, repeats or folds; 0 where they are unknown."""
        return len({getattr(p, name) for p in self.predictions} - {None})

    @property
    def train_size(self) -> int:
        """Mean number of examples that are neither test nor val; 0 outside cross-validation."""
        if not self.several_splits:
            return 0
        ids = [p.id for p in (*self.predictions, *self.val) if p is not None]
        total = len(np.unique(np.concatenate(ids)))
        held = [
            len(p.id) + (len(v.id) if v is not None else 0)
            for p, v in zip(self.predictions, self.val, strict=True)
        ]
        return max(round(total - float(np.mean(held))), 0)

    @property
    def test_share(self) -> float:
        """n_test / n_train of the folds."""
        return float(np.mean([len(p.id) for p in self.predictions])) / max(self.train_size, 1)

    def counts(self, classes: Sequence[str]) -> dict[str, Any]:
        """Count examples, patients, and the examples of each class."""
        label = np.concatenate([p.label for p in self.predictions])
        _, first = np.unique(np.concatenate([p.id for p in self.predictions]), return_index=True)
        return {
            "n": self.n,
            "patients": self.patients,
            "class_counts": class_counts(label[first], classes),
        }

    def threshold_card(self, rule: str) -> dict[str, Any] | None:
        """Describe the operating threshold; see `operating.card`."""
        if self.task != "two_class":
            return None
        thresholds = [data.threshold for data in self.sets]
        return operating.card(thresholds, self.val, rule=rule, positive=self.positive)

    def called(self, i: int) -> np.ndarray:
        """Return int[N], the class that model i calls: one rule for all metrics and tests."""
        data = self.sets[i]
        if self.task != "two_class":
            return data.probability.argmax(axis=1)
        is_called = data.probability[:, self.positive] >= data.threshold
        return np.where(is_called, self.positive, 1 - self.positive)

    def confusion(self) -> list[Any]:
        """Count labels (rows) against predictions; at the threshold for two classes.

        Counts are summed over folds and averaged over seeds and repeats.
        """
        tables = [
            kernels.confusion(
                data.label,
                data.probability,
                guess=None if data.label.ndim == 2 else self.called(i),
            )
            for i, data in enumerate(self.sets)
        ]
        return (np.sum(tables, axis=0) / (len(self.sets) / len(self.once))).tolist()


def of_all_labels(predictions: Sequence[Predictions]) -> list[Predictions]:
    """Return the predictions of models that were trained on all target labels.

    These are the ones without a size, or else those of the largest size.
    """
    unsized = any(p.size is None for p in predictions)
    sizes = (p.size for p in predictions if p.size is not None)
    largest = None if unsized else max(sizes, default=None)
    return [p for p in predictions if p.size == largest]


def collect(
    predictions: Sequence[Predictions], split: str, options: Options, *, rule: str
) -> dict[str, Evaluated]:
    """Collect each arm's evaluation sets of a split, with thresholds from val.

    Args:
      predictions: of all arms, splits and models; arms share their models and examples, see
        `predictions.check`.
      split: which is evaluated.
      options: the positive class.
      rule: of the operating threshold, see `metrics.operating_threshold`.
    """
    by_arm: dict[str, list[Predictions]] = collections.defaultdict(list)
    val: dict[Any, Predictions] = {}
    for p in predictions:
        if p.split == split:
            by_arm[p.arm].append(_labelled(p))
        elif p.split == "val":
            val[p.arm, p.model] = _labelled(p)
    first = next(iter(by_arm.values()))
    # Models of the same examples, as several seeds on one split, in one order.
    first = [_like(p, first[0]) if _same_ids(p, first[0]) else p for p in first]
    by_arm[first[0].arm] = first
    with_patients = all(p.patient is not None for p in first)
    patients, numbers = number_patients(
        [p.patient if with_patients and p.patient is not None else p.id for p in first]
    )
    n = len(np.unique(np.concatenate([p.id for p in first])))
    position = {p.model: i for i, p in enumerate(first)}
    notes = []
    if not with_patients and any(p.patient is not None for p in first):
        notes.append(
            "Patients are known for some predictions only; intervals take each example for a "
            "patient of its own."
        )
    evaluated = {}
    for arm, models in by_arm.items():
        models = sorted(
            (_like(p, first[position[p.model]]) for p in models), key=lambda p: position[p.model]
        )
        tuned = [val.get((arm, p.model)) for p in models]
        sets = [
            EvaluationSet(
                p.label,
                np.asarray(p.probability, np.float64),
                number,
                operating.choose(v, rule, options.positive),
            )
            for p, v, number in zip(models, tuned, numbers, strict=True)
        ]
        count = patients if with_patients else None
        evaluated[arm] = Evaluated(arm, models, tuned, sets, options.positive, count, n, notes)
    return evaluated


def _labelled(p: Predictions) -> Predictions:
    """Leave out the examples whose label is unknown."""
    return p if p.labelled.all() else p.take(np.flatnonzero(p.labelled))


def _like(p: Predictions, other: Predictions) -> Predictions:
    """Put the examples into the order of another one's."""
    if np.array_equal(p.id, other.id):
        return p
    order = np.argsort(p.id)
    return p.take(order[np.searchsorted(p.id, other.id, sorter=order)])


def _same_ids(p: Predictions, other: Predictions) -> bool:
    return len(p.id) == len(other.id) and (
        p.id is other.id or np.array_equal(np.sort(p.id), np.sort(other.id))
    )


def estimate(
    value: float, low: float, high: float, *, std: float | None = None, reason: str = ""
) -> dict[str, Any]:
    """Return a number with its interval, and the reason where it is NaN."""
    entry: dict[str, Any] = {"value": float(value), "low": float(low), "high": float(high)}
    if std is not None:
        entry["std"] = float(std)
    if math.isnan(entry["value"]) or math.isnan(entry["low"]):
        entry["undefined"] = reason or "it is undefined in too many resamples for an interval"
    return entry


def estimates(resampled: bootstrap.Resampled, arm: str) -> dict[str, dict[str, Any]]:
    """Return every metric of an arm: interval, and standard deviation and values of its models."""
    by_split = resampled.by_split[arm]
    by_split = by_split[ensembles.models(arm, by_split.tolist())]
    low, high = resampled.interval(arm)
    made = {
        name: estimate(
            resampled.value[arm][m],
            low[m],
            high[m],
            std=_std(by_split[:, m]),
            reason=resampled.undefined[arm].get(name, ""),
        )
        for m, name in enumerate(resampled.names)
    }
    for m, name in enumerate(resampled.names):
        if "std" in made[name]:
            made[name]["models"] = by_split[:, m].tolist()
    return made


def _std(values: np.ndarray) -> float | None:
    """Return the standard deviation over splits that have the metric; None of fewer than 2."""
    values = values[~np.isnan(values)]
    return float(values.std(ddof=1)) if len(values) > 1 else None


def chosen_classes(e: Evaluated, classes: Sequence[str]) -> Sequence[int]:
    """Return the classes that are shown one against the rest: of two the positive one."""
    return [e.positive] if e.task == "two_class" else range(len(classes))


def class_column(data: EvaluationSet, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one class against the rest where its label is known.

    (label bool[n], probability f[n], patient int[n])
    """
    if data.label.ndim == 1:
        return data.label == k, data.probability[:, k], data.patient
    rows = ~np.isnan(data.label[:, k])
    return data.label[rows, k] == 1, data.probability[rows, k], data.patient[rows]


def conformal_sets(e: Evaluated, classes: Sequence[str], *, level: float) -> dict[str, Any]:
    """Fit conformal prediction sets on val; return how often they hold the label.

    Those that hold it in each class come first: overall ones may leave out a rare class altogether.
    """
    measured: dict[str, Any] = {}
    for kind in (conformal.class_conditional, conformal.split):
        labels, sets, units = [], [], []
        reason, notes = "", []
        for data, v in zip(e.sets, e.val, strict=True):
            fitted: conformal.Thresholds | str = NO_VAL
            if v is not None:
                patient = v.patient if e.patients is not None else None
                fitted = kind(v.label, v.probability, classes=classes, level=level, patient=patient)
            if isinstance(fitted, str):
                reason = reason or fitted
                continue
            notes += [note for note in fitted.notes if note not in notes]
            labels.append(data.label)
            sets.append(conformal.sets(data.probability, fitted))
            units.append(data.patient)
        if reason:
            return {"undefined": reason}
        label, chosen, patient = (np.concatenate(parts) for parts in (labels, sets, units))
        coverage = conformal.coverage(label, chosen, classes=classes, patient=patient)
        entry = {"level": level, **coverage.as_dict()}
        measured[kind.__name__] = entry | ({"notes": notes[:3]} if notes else {})
    return measured
