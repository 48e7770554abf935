"""One class against the rest: the metrics of each of several classes, with intervals.

A mean over classes hides the class that is missed, and errors of calibration of opposite sign
cancel in it (Van Hoorde et al. 2014, Stat Med 33, 2585). Refuses nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import arm_results, bootstrap
from medtl.evaluation.arm_results import Evaluated
from medtl.evaluation.metrics import EvaluationSet, Options

_NAMES = {
    "auroc": "auroc",
    "auprc": "average_precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "ppv",
    "npv": "npv",
}
CALIBRATION = {"calibration_slope": "slope", "calibration_intercept": "intercept"}
_RESAMPLES = 1000


def of_classes(
    evaluated: Mapping[str, Evaluated], classes: Sequence[str], options: Options
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Evaluate each of more than two classes, or of several labels, against the rest.

    An example is called as the class of its largest probability; with several labels per example,
    where its probability is above 0.5.

    Args:
      evaluated: the arms.
      classes: the K names.
      options: of the metrics and the bootstrap.

    Returns:
      arm -> (class -> metric -> estimate; class -> "slope" and "intercept" -> estimate). Empty for
      two classes, where the metrics are those of the positive one.
    """
    of_arm: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {a: ({}, {}) for a in evaluated}
    if next(iter(evaluated.values())).task == "two_class":
        return of_arm
    fewer = dataclasses.replace(
        options,
        positive=1,
        prevalence=0.0,
        ordinal=False,
        resamples=min(options.resamples, _RESAMPLES),
        extra={},
    )
    for k, name in enumerate(classes):
        resampled = bootstrap.resample(
            {arm: [_against_rest(data, k) for data in e.sets] for arm, e in evaluated.items()},
            classes=(f"not {name}", name),
            options=fewer,
            names=(*_NAMES, *CALIBRATION),
        )
        for arm, (rates, lines) in of_arm.items():
            found = arm_results.estimates(resampled, arm)
            rates[name] = {new: found[old] for old, new in _NAMES.items()}
            lines[name] = {new: found[old] for old, new in CALIBRATION.items()}
    return of_arm


def _against_rest(data: EvaluationSet, k: int) -> EvaluationSet:
    """Return the two-class set of one class, over the examples where its label is known."""
    p = data.probability[:, k]
    if data.label.ndim == 1:
        positive, called = data.label == k, data.probability.argmax(axis=1) == k
        patient = data.patient
    else:
        rows = ~np.isnan(data.label[:, k])
        p, patient = p[rows], data.patient[rows]
        positive, called = data.label[rows, k] == 1, p > 0.5
    both = np.stack([1 - p, p], axis=1)
    return EvaluationSet(positive.astype(np.int64), both, patient, called=called)
