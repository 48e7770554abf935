"""The report's curves as points: ROC, precision and recall, reliability, net benefit.

Curves of several splits (folds, seeds) are means of the splits' curves at fixed positions, never
one curve of pooled scores, since scores of different models do not share a scale. What is undefined
is an empty curve, or NaN, with the reason in `undefined`; refuses arrays that do not fit each other
and thresholds that are no probabilities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from medtl.errors import UserError
from medtl.evaluation.compare import undefined_auroc
from medtl.evaluation.intervals import (
    binary,
    column,
    effective_n,
    normal_quantile,
    patient_numbers,
    wilson,
)

THRESHOLDS = tuple(i / 100 for i in range(1, 100))


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points that lines join; empty with the reason in `undefined` where there is no curve."""

    x: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    y: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    undefined: str = ""


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Observed against predicted risk in bins, by `reliability`.

    Attributes:
      predicted: float64[bins], mean probability of the bin's examples.
      observed: float64[bins], the share of positives among them.
      low, high: float64[bins], Wilson's interval of `observed`.
      n: int64[bins], examples.
      undefined: why there are no bins, else "".
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    undefined: str = ""


@dataclasses.dataclass(frozen=True)
class DecisionCurve:
    """Net benefit by threshold, of `decision_curve`, float64[T] each.

    `low` and `high` are the ends of the model's interval.
    """

    threshold: np.ndarray
    model: np.ndarray
    all: np.ndarray
    none: np.ndarray
    low: np.ndarray
    high: np.ndarray
    undefined: str = ""


def roc(label: np.ndarray, score: np.ndarray, *, points: int = 200) -> Curve:
    """Draw the ROC curve, `sklearn.metrics.roc_curve`, thinned to at most `points`.

    x is the false positive rate, y the true positive rate.

    Args:
      label: bool[N], or 0 and 1.
      score: float[N], larger for positives.
      points: at least 2; the ends stay, and a point that is left out is within 2 / (points - 1) of
        one that stays, the differences in x and y added.

    Raises:
      UserError: the arrays differ in length, or a label is neither 0 nor 1.
    """
    label, score = _pair(label, score)
    reason = undefined_auroc(label, score)
    if reason:
        return Curve(undefined=reason)
    return _thin(*_roc(label, score), points)


def precision_recall(label: np.ndarray, score: np.ndarray, *, points: int = 200) -> Curve:
    """Draw recall against precision, `sklearn.metrics.precision_recall_curve`, thinned as in `roc`.

    From recall 0 to that of the highest threshold the precision is that threshold's, where
    scikit-learn adds a point (0, 1) that no threshold has. Lines between points are too high (Davis
    & Goadrich 2006), so a thinned curve is for the eye and the AUPRC is not its area.

    Args:
      label: bool[N], or 0 and 1.
      score: float[N], larger for positives.
      points: at least 2.

    Raises:
      UserError: the arrays differ in length, or a label is neither 0 nor 1.
    """
    from sklearn.metrics import precision_recall_curve

    label, score = _pair(label, score)
    reason = undefined_auroc(label, score)
    if reason:
        return Curve(undefined=reason)
    precision, recall, _ = precision_recall_curve(label, score, drop_intermediate=True)
    precision, recall = precision[-2::-1], recall[-2::-1]
    return _thin(np.r_[0.0, recall], np.r_[precision[0], precision], points)


def mean_roc(splits: Sequence[tuple[np.ndarray, np.ndarray]], *, points: int = 101) -> Curve:
    """Average several ROC curves vertically: the mean true positive rate at each fpr.

    This is algorithm 3 of Fawcett 2006.

    Where a curve rises at an fpr its upper end counts; the mean starts in (0, 0). Up to the grid
    its area is the mean AUROC.

    Args:
      splits: (label, score) of each, as in `roc`; with one, `roc` shows more.
      points: how many false positive rates, evenly from 0 to 1.

    Raises:
      UserError: as `roc`.
    """
    grid = np.linspace(0, 1, points)
    rates, reason = _each(splits)
    if reason:
        return Curve(undefined=reason)
    tpr = np.mean([interpolate(fpr, tpr, grid, side="right") for fpr, tpr, _ in rates], axis=0)
    return Curve(np.r_[0.0, grid], np.r_[0.0, tpr])


def mean_precision_recall(
    splits: Sequence[tuple[np.ndarray, np.ndarray]], *, points: int = 101
) -> Curve:
    """Average the precision of several splits at each recall.

    Between two thresholds true and false positives are interpolated, not the precision (Davis &
    Goadrich 2006), which is the precision of the straight ROC line there. At recall 0 it is that of
    the highest threshold.

    Args:
      splits: (label, score) of each, as in `roc`.
      points: how many recalls, evenly from 0 to 1.

    Raises:
      UserError: as `roc`.
    """
    grid = np.linspace(0, 1, points)
    rates, reason = _each(splits)
    if reason:
        return Curve(undefined=reason)
    precisions = []
    for fpr, tpr, odds in rates:
        # The prevalence's odds turn rates into counts of true and of false positives.
        true = np.r_[tpr[1], grid[1:]] * odds
        false = np.r_[fpr[1], interpolate(tpr, fpr, grid[1:], side="left")]
        precisions.append(true / (true + false))
    return Curve(grid, np.mean(precisions, axis=0))


def net_benefit(
    label: np.ndarray,
    probability: np.ndarray,
    thresholds: Sequence[float] | np.ndarray = THRESHOLDS,
    *,
    prevalence: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the net benefit of treating by the model, of treating all and of treating none.

    TP / N - FP / N · t / (1 - t), treating where probability >= t (Vickers & Elkin 2006, Med Decis
    Making 26, 565). At a stated prevalence q it is q times the sensitivity, less 1 - q times the
    share of false positives and the odds, NaN where a class is absent; the model's probabilities
    stay as they are.

    Args:
      label: bool[N], or 0 and 1.
      probability: float[N].
      thresholds: float[T], from 0 to below 1.
      prevalence: of the positives; 0: that of the examples.

    Raises:
      UserError: the arrays differ in length, a label is neither 0 nor 1, or a threshold is out of
        its range.
    """
    label, probability = _pair(label, probability)
    t = _thresholds(thresholds)
    if not len(label) or np.isnan(probability).any():
        nothing = np.full(len(t), np.nan)
        return nothing, nothing, nothing
    odds, share = t / (1 - t), prevalence or label.mean()
    true, false = (
        (p := np.sort(probability[side])).size - np.searchsorted(p, t) for side in (label, ~label)
    )
    of_true, of_false = _class_weights(label, prevalence)
    model = true * of_true - false * of_false * odds
    return model, share - (1 - share) * odds, np.zeros(len(t))


def _class_weights(label: np.ndarray, prevalence: float) -> tuple[float, float]:
    """Return the weight of a positive and of a negative, such that those of all add up to 1."""
    n, positives = len(label), int(label.sum())
    if not prevalence:
        return 1 / n, 1 / n
    if not 0 < positives < n:
        return np.nan, np.nan
    return prevalence / positives, (1 - prevalence) / (n - positives)


def decision_curve(
    splits: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    thresholds: Sequence[float] | np.ndarray = THRESHOLDS,
    *,
    prevalence: float = 0.0,
    level: float = 0.95,
) -> DecisionCurve:
    """Average `net_benefit` over splits, with a pointwise interval whose unit is the patient.

    The net benefit is a mean over examples, so the patient bootstrap's variance has a closed form
    to first order: the ratio estimator's, P / (P - 1) times the sum over patients of their squared
    share in the estimate's deviation, summed over their splits. It needs no draws.

    Args:
      splits: (label bool[N], probability float[N], patient int[N]) of each, patients numbered alike
        in all.
      thresholds: float[T], from 0 to below 1.
      prevalence: of the positives, see `net_benefit`; a stated one does not vary.
      level: of the interval.

    Raises:
      UserError: as `net_benefit`, a patient's number is negative, or `level` is not between 0 and
        1.
    """
    t, z = _thresholds(thresholds), normal_quantile(level)
    each = [net_benefit(y, p, t, prevalence=prevalence) for y, p, _ in splits]
    model, treat_all, none = (np.mean(c, axis=0) for c in zip(*each, strict=True))
    columns = [(*_pair(y, p), np.asarray(patient)) for y, p, patient in splits]
    if any(patient.shape != y.shape or (patient < 0).any() for y, _, patient in columns):
        raise UserError("patient must be a number from 0 for each example")
    if np.isnan(model).any():
        nothing = np.full(len(t), np.nan)
        reason = "a probability is NaN, or a split is empty or lacks a class"
        return DecisionCurve(t, model, treat_all, none, nothing, nothing, reason)
    patients = len(np.unique(np.concatenate([patient for *_, patient in columns])))
    most = 1 + max(int(patient.max()) for *_, patient in columns)
    se = np.full(len(t), np.nan)
    for i, share in enumerate(
        net_benefit_shares(columns, t, most, prevalence=prevalence) if patients > 1 else ()
    ):
        se[i] = np.sqrt(patients / (patients - 1) * np.sum(share**2))
    reason = "" if patients > 1 else "one patient has no interval"
    return DecisionCurve(t, model, treat_all, none, model - z * se, model + z * se, reason)


def net_benefit_shares(
    splits: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    thresholds: np.ndarray,
    patients: int,
    *,
    prevalence: float = 0.0,
) -> Iterator[np.ndarray]:
    """Yield each patient's share in the deviation of the mean net benefit, for each threshold.

    Args:
      splits: (label bool[N], probability float[N], patient int[N]) of each.
      thresholds: float64[T], from 0 to below 1.
      patients: their number.
      prevalence: of the positives, see `net_benefit`; a stated one fixes the share of each class,
        so that a deviation is that from the mean of its class.

    Yields:
      float64[patients].
    """
    parts = []
    for y, p, patient in splits:
        weight = np.where(y, *_class_weights(y, prevalence)) / len(splits)
        for side in (y, ~y) if prevalence else (np.ones(len(y), bool),):
            held = np.bincount(patient[side], weight[side], minlength=patients)
            parts.append((y[side], p[side], patient[side], weight[side], held / held.sum()))
    for threshold in thresholds:
        share = np.zeros(patients)
        for y, p, patient, weight, held in parts:
            called = p >= threshold
            gain = weight[called] * np.where(y[called], 1.0, -threshold / (1 - threshold))
            share += np.bincount(patient[called], gain, minlength=patients) - gain.sum() * held
        yield share


def reliability(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    bins: int = 10,
    patient: np.ndarray | None = None,
    level: float = 0.95,
) -> Reliability:
    """Compare observed with predicted risk in bins of about equal numbers of examples.

    Equal probabilities share a bin.

    The interval is Wilson's (1927). With `patient` its n is the effective one, p (1 - p) over the
    ratio estimator's variance of the bin's share with the patient as unit, as Korn & Graubard
    (1998) do for Clopper-Pearson, at most the examples; where all or none of a bin are positive it
    is the bin's patients. So examples may be repeated, as in repeated cross-validation.

    Args:
      label: bool[N], or 0 and 1.
      probability: float[N].
      bins: how many at most; fewer where probabilities are equal.
      patient: int[N], who the example is of; None: each of another.
      level: of the interval.

    Raises:
      UserError: the arrays differ in length, a label is neither 0 nor 1, or `level` is not between
        0 and 1.
    """
    label, probability = _pair(label, probability)
    if not len(label) or np.isnan(probability).any():
        nothing = np.empty(0)
        reason = "a probability is NaN" if len(label) else "there is no example"
        return Reliability(nothing, nothing, nothing, nothing, np.empty(0, np.int64), reason)
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    edges = np.unique(np.quantile(probability, inner, method="inverted_cdf"))
    _, group = np.unique(np.searchsorted(edges, probability), return_inverse=True)
    n = np.bincount(group)
    observed, predicted = np.bincount(group, label) / n, np.bincount(group, probability) / n
    effective: np.ndarray = n
    if patient is not None:
        unit = patient_numbers(patient, len(label))
        effective = np.minimum(effective_n(label, unit, group), n)
    low, high = wilson(observed, effective, normal_quantile(level))
    return Reliability(predicted, observed, low, high, n)


def _roc(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(label, score)
    return fpr, tpr


def _each(
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[list[tuple[np.ndarray, np.ndarray, float]], str]:
    """Return (fpr, tpr, positives per negative) of each split, or why a split has none."""
    columns = [_pair(label, score) for label, score in splits]
    reasons = [reason for reason in (undefined_auroc(*c) for c in columns) if reason]
    if reasons or not columns:
        count = f"in {len(reasons)} of {len(columns)} splits"
        return [], f"{count} {reasons[0]}" if reasons else "there is no split"
    return [(*_roc(label, score), label.sum() / (~label).sum()) for label, score in columns], ""


def _thin(x: np.ndarray, y: np.ndarray, points: int) -> Curve:
    """Keep the points nearest to even steps along the curve, and its ends."""
    if len(x) <= points:
        return Curve(x, y)
    length = np.r_[0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))]
    keep = np.searchsorted(length, np.linspace(0, length[-1], points)).clip(max=len(x) - 1)
    keep = np.unique(np.r_[0, keep[1:-1], len(x) - 1])
    return Curve(x[keep], y[keep])


def interpolate(x: np.ndarray, y: np.ndarray, at: np.ndarray, *, side: str) -> np.ndarray:
    """Return y at `at` on the line through points of ascending x.

    Where x repeats, the "left" or "right" end of the jump counts.
    """
    right = np.searchsorted(x, at, side="right" if side == "right" else "left").clip(1, len(x) - 1)
    left = right - 1
    width = x[right] - x[left]
    share = np.where(
        width > 0, (at - x[left]) / np.where(width > 0, width, 1.0), float(side == "right")
    )
    return y[left] + share * (y[right] - y[left])


def _thresholds(thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    t = np.asarray(thresholds, np.float64)
    if t.ndim != 1 or not np.all((t >= 0) & (t < 1)):
        raise UserError(f"thresholds must be from 0 to below 1; these are {t.tolist()}")
    return t


def _pair(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label = binary(label, "label")
    return label, column(score, len(label), "score").astype(np.float64)
