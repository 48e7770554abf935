"""Every metric per patient beside per image: a patient is the unit that is diagnosed.

A patient's probabilities are the mean or the maximum over the patient's images, and an operating
threshold is chosen on the patients of val. Refuses nothing; where each patient has one image, or
patients are unknown, there is nothing to add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import arm_results, bootstrap, differences
from medtl.evaluation.arm_results import Evaluated
from medtl.evaluation.metrics import Options
from medtl.evaluation.predictions import Predictions


def per_patient(
    evaluated: Mapping[str, Evaluated],
    classes: Sequence[str],
    options: Options,
    *,
    split: str,
    threshold: str,
    metric: str,
    reference: str | None,
    rule: str = "mean",
) -> dict[str, Any] | None:
    """Evaluate every arm with the patient as the example; None where that changes nothing.

    Args:
      evaluated: the arms, image by image.
      classes: the K names.
      options: of the metrics and the bootstrap.
      split: that is evaluated.
      threshold: the rule of the operating threshold.
      metric: of the differences between arms.
      reference: the arm that is subtracted; None: there is no second one.
      rule: "mean" or "max", see `of_patients`.

    Returns:
      {"rule", "n": patients, "left_out": patients of several classes, "arms": {arm: {metric:
      estimate}}, "thresholds": {arm: mean threshold} for two classes, "differences": {arm:
      estimate}}, or None.
    """
    first = next(iter(evaluated.values()))
    if first.patients is None or all(
        len(np.unique(data.patient)) == len(data.label) for data in first.sets
    ):
        return None
    rows, left_out = [], 0
    for e in evaluated.values():
        for p, v in zip(e.predictions, e.val, strict=True):
            made = of_patients(p, rule=rule, positive=options.positive)
            rows.append(made)
            if e is first:
                left_out = max(left_out, len(_names(p)[0]) - len(made.id))
            if v is not None and v.split != split and v.patient is not None:
                rows.append(of_patients(v, rule=rule, positive=options.positive))
    if not all(len(p.id) for p in rows if p.split == split):
        return None
    arms = arm_results.collect(rows, split, options, rule=threshold)
    resampled = bootstrap.resample(
        {arm: e.sets for arm, e in arms.items()}, classes=classes, options=options
    )
    compared = differences.of_arms(arms, resampled, reference, metric) if reference else {}
    return {
        "rule": rule,
        "n": next(iter(arms.values())).n,
        "left_out": left_out,
        "arms": {arm: arm_results.estimates(resampled, arm) for arm in arms},
        "thresholds": {
            arm: float(np.mean([data.threshold for data in e.sets]))
            for arm, e in arms.items()
            if e.task == "two_class"
        },
        "differences": {
            arm: arm_results.estimate(d.value, d.low, d.high, reason=d.undefined)
            for arm, d in compared.items()
        },
    }


def of_patients(p: Predictions, *, rule: str, positive: int) -> Predictions:
    """Turn a model's predictions of images into predictions of patients.

    - Two classes: a patient with any positive image is positive. "max" takes the largest
      probability of the positive class, the other one is what remains.
    - More classes: patients whose images are of several classes are left out. "max" takes each
      class's largest probability, divided by their sum.
    - Several labels per example: a label is present if it is in any image, absent if it is in none
      of those where it is known, else unknown. "max" takes each label's largest probability.

    A row without a patient is a patient of its own. Groups are not kept.

    Args:
      p: the predictions, with patients.
      rule: "mean" or "max" over a patient's images.
      positive: index of the positive class of two.

    >>> images = Predictions("a", "test", np.array(["1", "2", "3"]), np.array([0, 1, 0]),
    ...     np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]]), patient=np.array(["p", "p", "q"]))
    >>> patients = of_patients(images, rule="mean", positive=1)
    >>> patients.label.tolist(), patients.probability[:, 1].round(2).tolist()
    ([1, 0], [0.4, 0.4])
    """
    name, number = _names(p)
    n, images = len(name), np.bincount(number)
    probability = np.asarray(p.probability, np.float64)
    if rule == "max":
        joined = np.zeros((n, probability.shape[1]))
        np.maximum.at(joined, number, probability)
        if p.label.ndim == 1 and joined.shape[1] == 2:
            joined[:, 1 - positive] = 1 - joined[:, positive]
        elif p.label.ndim == 1:
            joined /= joined.sum(axis=1, keepdims=True)
    else:
        joined = np.stack([np.bincount(number, column) for column in probability.T], axis=1)
        joined = np.minimum(joined / images[:, None], 1.0)
    label, kept = _labels(p.label, number, n, positive, classes=probability.shape[1])
    made = dataclasses.replace(p, id=name, label=label, probability=joined, patient=name, groups={})
    return made if kept.all() else made.take(np.flatnonzero(kept))


def _names(p: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the names of the patients str[n], and the number of each row's int64[N]."""
    assert p.patient is not None
    unknown = p.patient == ""
    # Names cannot begin with a line break, so that no patient is called like an example.
    name = np.where(unknown, np.char.add("\n", p.id), p.patient) if unknown.any() else p.patient
    distinct, number = np.unique(name, return_inverse=True)
    return distinct, number


def _labels(
    label: np.ndarray, number: np.ndarray, n: int, positive: int, *, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the patients' labels, and bool[n], which patients have one."""
    if label.ndim == 2:
        present, absent = np.zeros((n, classes), bool), np.zeros((n, classes), bool)
        np.logical_or.at(present, number, label == 1)
        np.logical_or.at(absent, number, label == 0)
        made = np.where(present, 1.0, np.where(absent, 0.0, np.nan))
        return made, np.ones(n, bool)
    seen = np.zeros((n, classes), bool)
    seen[number, label] = True
    if classes == 2:
        return np.where(seen[:, positive], positive, 1 - positive), np.ones(n, bool)
    return seen.argmax(axis=1), seen.sum(axis=1) == 1
