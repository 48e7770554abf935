"""Metrics of a diagnosis against its label. What is undefined is NaN and says why, never 0.

Refuses arrays that do not fit each other, labels outside the classes and weights that are not finite.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError

NAMES = ("accuracy", "balanced_accuracy", "f1_macro", "auroc", "auprc", "loss")

_EPS = float(np.finfo(np.float32).eps)


def rank(name: str, value: float) -> float:
    """The value of a metric, turned so that the higher is the better."""
    return -value if name == "loss" else value


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The metrics of one set of predictions.

    Attributes:
      n: the number of labelled examples of positive weight; all others are left out.
      accuracy, balanced_accuracy, f1_macro, auroc, auprc, loss: see `compute`; NaN where undefined.
      confusion: K x K, rows are the labels, columns the predictions; for several labels an example K times 2 x 2, with
        [[true negatives, false positives], [false negatives, true positives]].
      undefined: metric -> why it is NaN; for several labels an example also "metric[class]" -> why the mean leaves out
        the class.
    """

    n: int
    accuracy: float
    balanced_accuracy: float
    f1_macro: float
    auroc: float
    auprc: float
    loss: float
    confusion: list
    undefined: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """n, the metrics and `confusion`, and `undefined` where something is."""
        fields = dataclasses.asdict(self)
        return fields if self.undefined else {k: v for k, v in fields.items() if k != "undefined"}


def compute(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    classes: Sequence[str],
    weight: np.ndarray | None = None,
) -> Metrics:
    """Every metric of one set of predictions; each agrees with scikit-learn's where that is defined.

    One label an example; the prediction is the class of the largest probability, the first of equals:

    - accuracy: `accuracy_score`.
    - balanced_accuracy: mean recall over the K classes, `balanced_accuracy_score`.
    - f1_macro: mean over the K classes of 2TP / (2TP + FP + FN), `f1_score(average="macro")`.
    - auroc: K = 2: `roc_auc_score` of the second class's probability; which of the two counts as positive does not
      matter. K > 2: mean over the classes of one against the rest.
    - auprc: mean over the classes, K = 2 included, of `average_precision_score` of one against the rest. Unlike the
      AUROC it depends on which class is positive: for K = 2 it is the mean of both choices and favours neither.
    - loss: mean of -log p of the label's class, with p clipped to [eps, 1 - eps] of float32, `log_loss`.

    Several labels an example, each a question of its own, predicted where p > 0.5: each metric is taken per class over
    the examples whose label is known, then averaged over the classes for which it is defined (balanced_accuracy is the
    mean of sensitivity and specificity; f1, auroc and auprc are the positives'). The loss is the binary cross-entropy,
    averaged over the known labels of an example and then over the examples, as in training.

    Args:
      label: int[N], an index into `classes`, -1 where unknown; or float[N, K] of 0, 1 or NaN (unknown).
      probability: float[N, K], the model's probabilities.
      classes: the K names, at least two unless there are several labels an example.
      weight: float[N], at least 0; weighs every metric, `confusion` included. None: 1 each.

    Returns:
      The metrics.

    Raises:
      UserError: shapes, labels or weights are not as above.
    """
    label, probability = np.asarray(label), np.asarray(probability, np.float64)
    weights = np.ones(len(label)) if weight is None else np.asarray(weight, np.float64)
    _check(label, probability, weights, classes)
    known = label >= 0 if label.ndim == 1 else ~np.isnan(label).all(axis=1)
    rows = known & (weights > 0)
    label, probability, weights = label[rows], probability[rows], weights[rows]

    told = ~np.isnan(probability).any(axis=1)
    confusion = _confusion(label[told], probability[told], weights[told])
    undefined: dict[str, str] = {}
    if not len(label) or not told.all():
        missing = f"the probability is NaN in {np.sum(~told)} of {len(label)} examples"
        undefined = dict.fromkeys(NAMES, missing if len(label) else "there is no labelled example")
        values = dict.fromkeys(NAMES, math.nan)
    elif label.ndim == 1:
        values = _single_label(label, probability, weights, confusion, classes, undefined)
    else:
        values = _multi_label(label, probability, weights, confusion, classes, undefined)
    counts = confusion.astype(int if weight is None else float).tolist()
    return Metrics(n=len(label), **values, confusion=counts, undefined=undefined)


def _single_label(label, probability, weights, confusion, classes, undefined) -> dict[str, float]:
    hits, actual, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    absent = [name for name, total in zip(classes, actual, strict=True) if not total]
    missing = f"no example has the label {', '.join(map(repr, absent))}"
    unused = [name for name, total in zip(classes, actual + predicted, strict=True) if not total]
    correct = np.clip(probability[np.arange(len(label)), label], _EPS, 1 - _EPS)
    values = dict.fromkeys(NAMES, math.nan)
    values["accuracy"] = hits.sum() / actual.sum()
    values["loss"] = np.average(-np.log(correct), weights=weights)
    if unused:
        undefined["f1_macro"] = (
            f"no example has the label or the prediction {', '.join(map(repr, unused))}"
        )
    else:
        values["f1_macro"] = np.mean(2 * hits / (actual + predicted))
    if absent:
        undefined.update(dict.fromkeys(("balanced_accuracy", "auroc", "auprc"), missing))
    else:
        from sklearn.metrics import average_precision_score, roc_auc_score

        def one_against_rest(score: Callable[..., float], chosen: Sequence[int]) -> float:
            return float(
                np.mean(
                    [score(label == k, probability[:, k], sample_weight=weights) for k in chosen]
                )
            )

        every = range(len(classes))
        values["balanced_accuracy"] = np.mean(hits / actual)
        values["auroc"] = one_against_rest(roc_auc_score, every if len(classes) > 2 else [1])
        values["auprc"] = one_against_rest(average_precision_score, every)
    return {name: float(value) for name, value in values.items()}


def _multi_label(label, probability, weights, confusion, classes, undefined) -> dict[str, float]:
    per_class: dict[str, list[float]] = {name: [] for name in NAMES if name != "loss"}
    for k, name in enumerate(classes):
        seen = ~np.isnan(label[:, k])
        scores, reasons = _one_label(
            label[seen, k] == 1, probability[seen, k], weights[seen], confusion[k]
        )
        for metric, value in scores.items():
            per_class[metric].append(value)
        undefined.update({f"{metric}[{name}]": reason for metric, reason in reasons.items()})
    values = {}
    for metric, column in per_class.items():
        defined = [value for value in column if not math.isnan(value)]
        values[metric] = float(np.mean(defined)) if defined else math.nan
        if not defined:
            undefined[metric] = "it is undefined for each class"
    seen, p = ~np.isnan(label), np.clip(probability, _EPS, 1 - _EPS)
    entropy = np.where(label == 1, -np.log(p), -np.log1p(-p))
    example = np.sum(np.where(seen, entropy, 0.0), axis=1) / seen.sum(axis=1)
    return {**values, "loss": float(np.average(example, weights=weights))}


def _one_label(
    positive: np.ndarray, probability: np.ndarray, weights: np.ndarray, confusion: np.ndarray
) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics but the loss for one of several labels, and metric -> reason of those that are NaN."""
    (tn, fp), (fn, tp) = confusion
    scores = dict.fromkeys((name for name in NAMES if name != "loss"), math.nan)
    if not len(positive):
        return scores, dict.fromkeys(scores, "no label is known")
    reasons = {}
    scores["accuracy"] = (tn + tp) / confusion.sum()
    if tp + fp + fn:
        scores["f1_macro"] = 2 * tp / (2 * tp + fp + fn)
    else:
        reasons["f1_macro"] = "no example is or is predicted positive"
    from sklearn.metrics import average_precision_score, roc_auc_score

    one_sided = (
        "" if tp + fn and tn + fp else f"every example is {'positive' if tp + fn else 'negative'}"
    )
    if one_sided:
        reasons.update(dict.fromkeys(("balanced_accuracy", "auroc"), one_sided))
    else:
        scores["balanced_accuracy"] = (tp / (tp + fn) + tn / (tn + fp)) / 2
        scores["auroc"] = roc_auc_score(positive, probability, sample_weight=weights)
    if tp + fn:
        scores["auprc"] = average_precision_score(positive, probability, sample_weight=weights)
    else:
        reasons["auprc"] = one_sided
    return scores, reasons


def _confusion(label: np.ndarray, probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64[K, K], or float64[K, 2, 2] for several labels an example; see `Metrics`."""
    size = probability.shape[1]
    if label.ndim == 1:
        return _counts(label, probability.argmax(axis=1), weights, size)
    known = ~np.isnan(label)
    columns = (
        (label[s, k] == 1, probability[s, k] > 0.5, weights[s]) for k, s in enumerate(known.T)
    )
    return np.stack([_counts(*column, 2) for column in columns])


def _counts(
    label: np.ndarray, prediction: np.ndarray, weights: np.ndarray, size: int
) -> np.ndarray:
    """float64[size, size], the weight of each pair (label, prediction)."""
    pair = label.astype(np.int64) * size + prediction.astype(np.int64)
    return np.bincount(pair, weights, minlength=size * size).reshape(size, size)


def _check(
    label: np.ndarray, probability: np.ndarray, weights: np.ndarray, classes: Sequence[str]
) -> None:
    n, k = len(label), len(classes)
    if probability.shape != (n, k):
        raise UserError(
            f"probability is {list(probability.shape)}; {n} labels and {k} classes want {[n, k]}"
        )
    if np.any((probability < 0) | (probability > 1 + 1e-5)):
        raise UserError("probability must be from 0 to 1; these look like logits")
    if weights.shape != (n,) or not np.all(np.isfinite(weights) & (weights >= 0)):
        raise UserError(f"weight must be {n} finite numbers of at least 0")
    if label.ndim == 1:
        if k < 2 or not np.issubdtype(label.dtype, np.integer):
            raise UserError(
                f"one label an example is int[N] among at least 2 classes; this is {label.dtype} among {k}"
            )
        wrong = np.flatnonzero((label < -1) | (label >= k))
        wanted = f"-1 (unknown) or 0..{k - 1}"
    else:
        if label.shape != (n, k):
            raise UserError(f"label is {list(label.shape)}; {k} classes want {[n, k]}")
        wrong = np.flatnonzero(~np.all(np.isnan(label) | (label == 0) | (label == 1), axis=1))
        wanted = "0, 1 or NaN (unknown)"
    if len(wrong):
        raise UserError(f"label[{wrong[0]}] is {label[wrong[0]]}; it must be {wanted}")
