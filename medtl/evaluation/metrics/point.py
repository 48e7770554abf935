"""The metrics of one evaluation set, as training logs them and metrics.json holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation.checks import check_label, check_probability
from medtl.evaluation.metrics import kernels
from medtl.evaluation.metrics.inputs import EvaluationSet, Options
from medtl.evaluation.metrics.names import NAMES, QUANTITY_NAMES
from medtl.evaluation.metrics.quantities import compute_quantity
from medtl.evaluation.metrics.scorer import Scorer
from medtl.evaluation.metrics.user import Metric
from medtl.examples import is_quantity


def compute(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str = "",
    extra: Mapping[str, Metric] | None = None,
    threshold: float | None = None,
    present_only: bool = False,
) -> dict[str, float]:
    """Return the metrics that training logs; each agrees with scikit-learn's where that is defined.

    Those of a quantity are `QUANTITY_NAMES`, see `QuantityScorer`.

    One label per example; the class of the largest probability, the first of equals, is predicted,
    but of two classes the positive one from `threshold` on, where that is given:

    - accuracy: `accuracy_score`.
    - balanced_accuracy: mean recall over the K classes, `balanced_accuracy_score`.
    - f1_macro: mean over the K classes of 2TP / (2TP + FP + FN), `f1_score(average="macro")`.
    - auroc: K = 2: `roc_auc_score` of the second class's probability, which is the same for either
      class. K > 2: mean over the classes of one against the rest.
    - auprc: K = 2: `average_precision_score` of the positive class. K > 2: mean over the classes of
      one against the rest.
    - loss: mean -log p of the label's class, p clipped to [eps, 1 - eps] of float32, `log_loss`.

    Several labels per example, each a question of its own, predicted where p > 0.5: each metric is
    taken per class over the examples whose label is known, then averaged over the classes for which
    it is defined (balanced_accuracy: the mean of sensitivity and specificity; f1, auroc and auprc:
    those of the positives). The loss is the binary cross-entropy, averaged over the known labels
    of an example and then over the examples, as in training.

    Args:
      label: int[N], an index into `classes`, -1 where unknown; or float[N, K] of 0, 1 or NaN
        (unknown). Examples without a known label are left out.
      probability: float[N, K], the model's probabilities.
      classes: the K names, at least two unless there are several labels per example.
      positive: of two classes the one whose AUPRC is taken; the second where it is none of them.
      extra: the user's metrics, see `from_config`; their weight is 1 for each example.
      threshold: of two classes, the probability from which on the positive one is predicted; None:
        the class of the larger one, as training logs it: no threshold is chosen yet.
      present_only: means over K > 2 classes leave out those that have no example.

    Returns:
      The value of each of `NAMES` and `extra`; NaN where it is undefined, and for all where a
      labelled example has a probability of NaN.

    Raises:
      UserError: shapes or labels are not as above, or one of `extra` fails.

    >>> scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
    >>> values = compute(np.array([0, 0, 1, 1]), scores, classes=("well", "ill"))
    >>> values["accuracy"], values["auroc"]
    (0.5, 0.75)
    """
    named = {"classes": classes, "positive": positive, "extra": extra, "threshold": threshold}
    entry = describe(label, probability, **named, present_only=present_only)  # type: ignore[arg-type]
    names = QUANTITY_NAMES if is_quantity(np.asarray(label)) else NAMES
    return {name: entry[name] for name in (*names, *(extra or {}))}


def describe(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str = "",
    extra: Mapping[str, Metric] | None = None,
    threshold: float | None = None,
    present_only: bool = False,
) -> dict[str, Any]:
    """Return the metrics of one evaluation set with their counts and reasons.

    Args and errors are those of `compute`.

    Returns:
      "n", the number of labelled examples; the metrics of `compute`; "confusion", K x K counts
      whose rows are the labels and columns the predictions, or for several labels per example
      K times [[true negatives, false positives], [false negatives, true positives]]; and, where
      something is undefined, "undefined": metric -> the reason, for several labels per example
      also "metric[class]" -> why the mean leaves out the class.
    """
    label, probability = np.asarray(label), np.asarray(probability, np.float64)
    if is_quantity(label):
        values, undefined = compute_quantity(label, probability, extra=extra)
        shown = {"undefined": undefined} if undefined else {}
        return {"n": int(np.sum(~np.isnan(label))), **values, **shown}
    check_probability(probability, len(label), len(classes), allow_nan=True)
    check_label(label, len(label), len(classes))
    labelled = label >= 0 if label.ndim == 1 else ~np.isnan(label).all(axis=1)
    label, probability = label[labelled], probability[labelled]
    is_number = ~np.isnan(probability).any(axis=1)
    number = list(classes).index(positive) if positive in classes else len(classes) - 1
    if threshold is None:  # the first of equals
        threshold = 0.5 if number == 0 else float(np.nextafter(0.5, 1))
    guess = None
    if label.ndim == 1 and len(classes) == 2:
        guess = np.where(probability[is_number, number] >= threshold, number, 1 - number)
    confusion = kernels.confusion(label[is_number], probability[is_number], guess=guess)
    names = (*NAMES, *(extra or {}))
    if len(label) and is_number.all():
        data = EvaluationSet(label, probability, np.arange(len(label)), threshold)
        options = Options(positive=number, extra=extra or {}, present_only=present_only)
        scorer = Scorer(data, classes=classes, options=options, names=NAMES)
        row = scorer(np.ones((1, scorer.units)))[0]
        values = dict(zip(scorer.names, row.tolist(), strict=True))
        reasons = scorer.explain(row)
        undefined = {name: reasons[name] for name in names if name in reasons}
        if label.ndim == 2:
            undefined |= _undefined_by_class(confusion, classes)
    else:
        missing = f"the probability is NaN in {np.sum(~is_number)} of {len(label)} examples"
        reason = missing if len(label) else "there is no labelled example"
        values, undefined = dict.fromkeys(names, math.nan), dict.fromkeys(names, reason)
    entry = {"n": len(label)} | {name: values[name] for name in names}
    entry["confusion"] = confusion.tolist()
    return entry | ({"undefined": undefined} if undefined else {})


def _undefined_by_class(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, str]:
    """Return "metric[class]" -> why the metric is undefined for one of several labels."""
    undefined: dict[str, str] = {}
    for name, ((tn, fp), (fn, tp)) in zip(classes, confusion.tolist(), strict=True):
        reasons = {}
        if not tn + fp + fn + tp:
            reasons = dict.fromkeys((n for n in NAMES if n != "loss"), "no label is known")
        elif not tp + fn:
            names = ("balanced_accuracy", "auroc", "auprc")
            reasons = dict.fromkeys(names, "every example is negative")
            if not fp:
                reasons["f1_macro"] = "no example is or is predicted positive"
        elif not tn + fp:
            reasons = dict.fromkeys(("balanced_accuracy", "auroc"), "every example is positive")
        undefined |= {f"{metric}[{name}]": reason for metric, reason in reasons.items()}
    return undefined
