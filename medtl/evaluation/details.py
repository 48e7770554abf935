"""One arm in detail: its cells with their operating thresholds, its curves, calibration, conformal sets and worst mistakes.

What needs val (thresholds, calibration maps, conformal quantiles) is fitted on the val predictions of the same model and used on
the evaluated split; where there are none, it says so.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import bootstrap, calibration, conformal, curves, scores
from medtl.evaluation.bootstrap import Cell
from medtl.evaluation.predictions import Predictions
from medtl.examples import class_counts

CALIBRATED = ("loss", "brier", "ece", "calibration_slope", "calibration_intercept")
MISTAKES = 12


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One arm's labelled predictions of the evaluated split, cell by cell; examples in the same order for every arm.

    Attributes:
      arm: its name.
      said: of each cell.
      val: the same model's predictions of val; None where there are none.
      cells: what the metrics take, patients numbered alike in all arms and cells.
      units: int64[N], the patients of the first cell.
      positive: the positive class of two.
      patients: how many there are; None where they are not known.
      n: the number of different examples.
      notes: what a reader must know.
    """

    arm: str
    said: list[Predictions]
    val: list[Predictions | None]
    cells: list[Cell]
    positive: int
    patients: int | None
    n: int
    notes: list[str]

    @property
    def task(self) -> str:
        first = self.cells[0]
        return (
            "multi_label"
            if first.label.ndim == 2
            else "two_class"
            if first.probability.shape[1] == 2
            else "multi_class"
        )

    @property
    def units(self) -> np.ndarray:
        return self.cells[0].patient

    @property
    def same_examples(self) -> bool:
        """Whether all cells are of the same examples, as several seeds on one split are."""
        return all(np.array_equal(p.id, self.said[0].id) for p in self.said[1:])

    @property
    def once(self) -> list[int]:
        """The cells that together hold each example once: the first seed's and repeat's."""
        first = self.said[0]
        return [
            i for i, p in enumerate(self.said) if (p.seed, p.repeat) == (first.seed, first.repeat)
        ]

    @property
    def once_words(self) -> str:
        """Says which of several those are."""
        several = [word for word in ("seed", "repeat") if self.number(word) > 1]
        return f" in the first {' and '.join(several)}" if several else ""

    @property
    def several_splits(self) -> bool:
        """Whether models were trained on overlapping parts of the same examples: folds, or repeated splits."""
        return self.number("fold") > 0 or self.number("repeat") > 1

    @property
    def grouped(self) -> bool:
        """Whether no patient is tested on in two folds of a repeat."""
        patients = [np.unique(self.cells[i].patient) for i in self.once]
        return sum(map(len, patients)) == len(np.unique(np.concatenate(patients)))

    @property
    def columns(self) -> list[str]:
        """The group columns that every cell has and one fills."""
        shared = [name for name in self.said[0].groups if all(name in p.groups for p in self.said)]
        return [name for name in shared if any((p.groups[name] != "").any() for p in self.said)]

    def number(self, name: str) -> int:
        """How many seeds, repeats or folds there are; 0 where they are not told."""
        return len({getattr(p, name) for p in self.said} - {None})

    @property
    def train_size(self) -> int:
        """In cross-validation the mean number of examples that are neither tested on nor val; 0 outside of one."""
        if not self.several_splits:
            return 0
        known = [p.id for p in (*self.said, *self.val) if p is not None]
        total = len(np.unique(np.concatenate(known)))
        held = [
            len(p.id) + (len(v.id) if v is not None else 0)
            for p, v in zip(self.said, self.val, strict=True)
        ]
        return max(round(total - float(np.mean(held))), 0)

    @property
    def test_share(self) -> float:
        """n_test / n_train of the folds."""
        return float(np.mean([len(p.id) for p in self.said])) / max(self.train_size, 1)

    def counts(self, classes: Sequence[str]) -> dict[str, Any]:
        """n, patients, and the examples of each class."""
        label = np.concatenate([p.label for p in self.said])
        _, first = np.unique(np.concatenate([p.id for p in self.said]), return_index=True)
        return {
            "n": self.n,
            "patients": self.patients,
            "class_counts": class_counts(label[first], classes),
        }

    def threshold_card(self, rule: str) -> dict[str, Any] | None:
        """The operating threshold: the mean over the cells, each with its own."""
        if self.task != "two_class":
            return None
        values = np.array([cell.threshold for cell in self.cells])
        fixed = _number_of(rule)
        chosen = fixed is None and all(_chooses(v) for v in self.val)
        if fixed is not None:
            words = f"{fixed:g}, fixed beforehand"
        elif chosen:
            by = "by Youden's index" if rule == "youden" else f"for {rule.replace('=', ' ')}"
            words = f"{by}, chosen on val"
        else:
            joined = " where" if any(_chooses(v) for v in self.val) else ":"
            words = f"0.5{joined} there is no val with both classes to choose it on"
        if values.min() < values.max():
            words += f"; from {values.min():.3f} to {values.max():.3f} over {len(values)} models"
        return {
            "rule": rule,
            "value": float(values.mean()),
            "chosen_on": "val" if chosen else None,
            "words": words,
        }

    def confusion(self) -> list[Any]:
        """Counts, rows are labels: summed over folds, averaged over seeds and repeats; at the threshold for two classes."""
        k = self.cells[0].probability.shape[1]
        total = np.zeros((k, 2, 2) if self.task == "multi_label" else (k, k))
        for cell in self.cells:
            if self.task == "multi_label":
                for j in range(k):
                    known = ~np.isnan(cell.label[:, j])
                    pair = 2 * (cell.label[known, j] == 1) + (cell.probability[known, j] > 0.5)
                    total[j] += np.bincount(pair, minlength=4).reshape(2, 2)
                continue
            guess = cell.probability.argmax(axis=1)
            if k == 2 and not math.isnan(cell.threshold):
                called = cell.probability[:, self.positive] >= cell.threshold
                guess = np.where(called, self.positive, 1 - self.positive)
            total += np.bincount(cell.label * k + guess, minlength=k * k).reshape(k, k)
        return (total / (len(self.cells) / len(self.once))).tolist()


def whole(said: Sequence[Predictions]) -> list[Predictions]:
    """The predictions of models that were trained on all target labels: of no stated size, or else of the largest."""
    untold = any(p.size is None for p in said)
    largest = None if untold else max((p.size for p in said if p.size is not None), default=None)
    return [p for p in said if p.size == largest]


def collect(
    said: Sequence[Predictions], split: str, options: scores.Options, *, rule: str
) -> dict[str, Evaluated]:
    """Each arm's cells of a split, with thresholds from val.

    Args:
      said: of all arms, splits and cells; arms share their cells and examples, see `predictions.check`.
      split: which is evaluated.
      options: the positive class.
      rule: of the operating threshold, see `scores.operating_threshold`.
    """
    by_arm: dict[str, list[Predictions]] = collections.defaultdict(list)
    val: dict[Any, Predictions] = {}
    for p in said:
        if p.split == split:
            by_arm[p.arm].append(_labelled(p))
        elif p.split == "val":
            val[p.arm, p.cell] = _labelled(p)
    arms = list(by_arm.values())
    # Cells of the same examples, as several seeds on one split, in one order.
    arms[0] = by_arm[arms[0][0].arm] = [
        _like(p, arms[0][0]) if _same_ids(p, arms[0][0]) else p for p in arms[0]
    ]
    known = all(p.patient is not None for p in arms[0])
    units, numbers = _number(
        [p.patient if known and p.patient is not None else p.id for p in arms[0]]
    )
    n = len(np.unique(np.concatenate([p.id for p in arms[0]])))
    place = {p.cell: i for i, p in enumerate(arms[0])}
    notes = []
    if not known and any(p.patient is not None for p in arms[0]):
        notes.append(
            "Patients are known for some predictions only; intervals take each example for a patient of its own."
        )
    found = {}
    for arm, own in by_arm.items():
        own = sorted((_like(p, arms[0][place[p.cell]]) for p in own), key=lambda p: place[p.cell])
        tuned = [val.get((arm, p.cell)) for p in own]
        cells = [
            Cell(
                p.label,
                np.asarray(p.probability, np.float64),
                numbers[i],
                _threshold(v, rule, options.positive),
            )
            for i, (p, v) in enumerate(zip(own, tuned, strict=True))
        ]
        found[arm] = Evaluated(
            arm, own, tuned, cells, options.positive, units if known else None, n, notes
        )
    return found


def _labelled(p: Predictions) -> Predictions:
    """Without the examples whose label is not known."""
    known = p.label >= 0 if p.label.ndim == 1 else ~np.isnan(p.label).all(axis=1)
    return p if known.all() else _take(p, np.flatnonzero(known))


def _like(p: Predictions, other: Predictions) -> Predictions:
    """With its examples in another one's order."""
    if np.array_equal(p.id, other.id):
        return p
    order = np.argsort(p.id)
    return _take(p, order[np.searchsorted(p.id, other.id, sorter=order)])


def _same_ids(p: Predictions, other: Predictions) -> bool:
    return len(p.id) == len(other.id) and (
        p.id is other.id or np.array_equal(np.sort(p.id), np.sort(other.id))
    )


def _take(p: Predictions, rows: np.ndarray) -> Predictions:
    return dataclasses.replace(
        p,
        id=p.id[rows],
        label=p.label[rows],
        probability=p.probability[rows],
        patient=None if p.patient is None else p.patient[rows],
        groups={name: values[rows] for name, values in p.groups.items()},
    )


def _number(names: Sequence[np.ndarray]) -> tuple[int, list[np.ndarray]]:
    """How many different names there are, and int64[N] for each array, numbered alike; an unknown name ("") is one of its own."""
    every = np.concatenate(names)
    distinct, number = np.unique(every, return_inverse=True)
    unknown = every == ""
    count = len(distinct)
    if unknown.any():
        number[unknown] = count + np.arange(unknown.sum())
        _, number = np.unique(number, return_inverse=True)
        count = int(number.max()) + 1
    return count, np.split(number.astype(np.int64), np.cumsum([len(a) for a in names])[:-1])


def _number_of(rule: str) -> float | None:
    try:
        return float(rule)
    except ValueError:
        return None


def _chooses(val: Predictions | None) -> bool:
    """Whether a threshold can be chosen on these predictions: of two classes, both there."""
    return (
        val is not None
        and val.label.ndim == 1
        and val.probability.shape[1] == 2
        and len(np.unique(val.label)) == 2
    )


def _threshold(val: Predictions | None, rule: str, positive: int) -> float:
    """The operating threshold that the rule chooses on val; 0.5 where there is no val to choose on."""
    fixed = _number_of(rule)
    if fixed is not None:
        return fixed
    if val is None or not _chooses(val):
        return 0.5
    return scores.operating_threshold(
        val.label == positive, val.probability[:, positive], rule=rule
    )


def estimate(
    value: float, low: float, high: float, *, std: float | None = None, reason: str = ""
) -> dict[str, Any]:
    """A number with its interval, and why where it is NaN."""
    found: dict[str, Any] = {"value": float(value), "low": float(low), "high": float(high)}
    if std is not None:
        found["std"] = float(std)
    if math.isnan(found["value"]) or math.isnan(found["low"]):
        found["undefined"] = reason or "it is undefined in too many resamples for an interval"
    return found


def estimates(resampled: bootstrap.Resampled, arm: str) -> dict[str, dict[str, Any]]:
    """Every metric of an arm, with its interval and its standard deviation over the cells."""
    by_cell = resampled.by_cell[arm]
    low, high = resampled.interval(arm)
    return {
        name: estimate(
            resampled.value[arm][m],
            low[m],
            high[m],
            std=float(by_cell[:, m].std(ddof=1)) if len(by_cell) > 1 else None,
            reason=resampled.undefined[arm].get(name, ""),
        )
        for m, name in enumerate(resampled.names)
    }


def drawn(e: Evaluated, classes: Sequence[str], options: scores.Options) -> dict[str, Any]:
    """The arm's curves; of two classes the positive one's, else one for each class."""
    chosen = [options.positive] if e.task == "two_class" else range(len(classes))
    found: dict[str, Any] = {"roc": [], "pr": [], "reliability": [], "decision": None}
    for k in chosen:
        columns = [_column(cell, k) for cell in e.cells]
        pairs = [(label, score) for label, score, _ in columns]
        single = len(pairs) == 1
        roc = curves.roc(*pairs[0]) if single else curves.mean_roc(pairs)
        pr = curves.precision_recall(*pairs[0]) if single else curves.mean_precision_recall(pairs)
        label, score, patient = (np.concatenate(part) for part in zip(*columns, strict=True))
        bins = curves.reliability(label, score, patient=patient, level=options.level)
        if not roc.undefined:
            found["roc"].append({"name": classes[k], "x": roc.x.tolist(), "y": roc.y.tolist()})
            prevalence = float(np.mean([label.mean() for label, _ in pairs]))
            found["pr"].append(
                {
                    "name": classes[k],
                    "x": pr.x.tolist(),
                    "y": pr.y.tolist(),
                    "prevalence": prevalence,
                }
            )
        if not bins.undefined:
            of_bins = {
                field: getattr(bins, field).tolist()
                for field in ("predicted", "observed", "low", "high", "n")
            }
            found["reliability"].append({"name": classes[k], **of_bins})
        if e.task == "two_class":
            d = curves.decision_curve(columns, level=options.level)
            fields = ("threshold", "model", "low", "high", "all", "none")
            found["decision"] = {field: getattr(d, field).tolist() for field in fields}
    return found


def _column(cell: Cell, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(label bool[n], probability f[n], patient int[n]) of one class against the rest, where it is known."""
    if cell.label.ndim == 1:
        return cell.label == k, cell.probability[:, k], cell.patient
    known = ~np.isnan(cell.label[:, k])
    return cell.label[known, k] == 1, cell.probability[known, k], cell.patient[known]


def calibrated(e: Evaluated, classes: Sequence[str], options: scores.Options) -> dict[str, Any]:
    """How far the probabilities are right, as they are and after each map fitted on val; means over the cells."""
    found: dict[str, Any] = {"before": _calibration_of(e.cells, classes, options)}
    for kind in calibration.KINDS:
        maps: list[calibration.Calibrator] = []
        reasons = []
        for v in e.val:
            fitted = (
                calibration.fit(kind, v.label, v.probability, classes=classes)
                if v is not None
                else _NO_VAL
            )
            if isinstance(fitted, str):
                reasons.append(fitted)
            else:
                maps.append(fitted)
        if reasons:
            where = f"in {len(reasons)} of {len(e.val)} cells " if len(e.val) > 1 else ""
            found[kind] = {"undefined": where + reasons[0]}
            continue
        after = [
            dataclasses.replace(cell, probability=m(cell.probability))
            for cell, m in zip(e.cells, maps, strict=True)
        ]
        found[kind] = _calibration_of(after, classes, options)
        if len(maps) == 1:
            found[kind]["parameters"] = dict(maps[0].parameters)
        unfitted = sorted(
            {f"{name}: {reason}" for m in maps for name, reason in m.undefined.items()}
        )
        if unfitted:
            found[kind]["left_as_it_was"] = unfitted
    return found


_NO_VAL = "there are no predictions of val to fit it on"


def _calibration_of(
    cells: Sequence[Cell], classes: Sequence[str], options: scores.Options
) -> dict[str, Any]:
    each = []
    for cell in cells:
        scorer = scores.Scorer(cell, classes=classes, options=options)
        values = scorer(np.ones((1, scorer.units)))[0]
        each.append([float(values[scorer.names.index(name)]) for name in CALIBRATED])
    columns = (
        [value for value in column if not math.isnan(value)] for column in zip(*each, strict=True)
    )
    return {
        name: float(np.mean(c)) if c else math.nan
        for name, c in zip(CALIBRATED, columns, strict=True)
    }


def conformal_sets(e: Evaluated, classes: Sequence[str], *, level: float) -> dict[str, Any]:
    """Conformal prediction sets fitted on val, and how often they held the label."""
    found: dict[str, Any] = {}
    for kind in (conformal.split, conformal.class_conditional):
        labels, sets, units = [], [], []
        reason, notes = "", []
        for cell, v in zip(e.cells, e.val, strict=True):
            fitted: conformal.Thresholds | str = _NO_VAL
            if v is not None:
                patient = v.patient if e.patients is not None else None
                fitted = kind(v.label, v.probability, classes=classes, level=level, patient=patient)
            if isinstance(fitted, str):
                reason = reason or fitted
                continue
            notes += [note for note in fitted.notes if note not in notes]
            labels.append(cell.label)
            sets.append(conformal.sets(cell.probability, fitted))
            units.append(cell.patient)
        if reason:
            return {"undefined": reason}
        measured = conformal.coverage(
            np.concatenate(labels),
            np.concatenate(sets),
            classes=classes,
            patient=np.concatenate(units),
        )
        found[kind.__name__] = {
            "level": level,
            **measured.as_dict(),
            **({"notes": notes[:3]} if notes else {}),
        }
    return found


def mistakes(evaluated: Mapping[str, Evaluated], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The most confident mistakes of the first arm, each example once; without images."""
    first = next(iter(evaluated.values()))
    if first.task == "multi_label":
        return []
    cells = (confident_mistakes(first.said[i], classes, most=MISTAKES) for i in first.once)
    found = {entry["id"]: entry for of_cell in cells for entry in of_cell}
    return sorted(found.values(), key=lambda entry: -entry["probability"])[:MISTAKES]


def confident_mistakes(
    p: Predictions, classes: Sequence[str], *, most: int
) -> list[dict[str, Any]]:
    """Where predictions of one label an example are wrong, those of the largest probability first.

    Args:
      p: the predictions; examples whose label is not known are passed over.
      classes: the K names.
      most: how many at most.

    Returns:
      Of each "arm", "id", "label", "predicted", the "probability" of that, and "patient" where patients are known.
    """
    confidence, predicted = p.probability.max(axis=1), p.probability.argmax(axis=1)
    wrong = np.flatnonzero((predicted != p.label) & (p.label >= 0))
    return [
        {
            "arm": p.arm,
            "id": str(p.id[i]),
            "label": classes[p.label[i]],
            "predicted": classes[predicted[i]],
            "probability": float(confidence[i]),
            **({"patient": str(p.patient[i])} if p.patient is not None else {}),
        }
        for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    ]
