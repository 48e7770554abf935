"""The mistakes of which a model is most confident."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation.arm_results import Evaluated
from medtl.evaluation.predictions import Predictions

MOST = 12  # mistakes that a report shows


def of_first_arm(
    evaluated: Mapping[str, Evaluated], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the most confident mistakes of the first arm, each example once; without images."""
    first = next(iter(evaluated.values()))
    if first.task == "multi_label":
        return []
    by_id = {
        entry["id"]: entry
        for i in first.once
        for entry in confident(
            first.predictions[i],
            classes,
            most=MOST,
            positive=first.positive,
            threshold=first.sets[i].threshold,
        )
    }
    return sorted(by_id.values(), key=lambda entry: -entry["probability"])[:MOST]


def without_pictures(mistakes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mistakes without their image and saliency map."""
    left_out = ("image", "saliency", "method")
    return [{k: v for k, v in entry.items() if k not in left_out} for entry in mistakes]


def confident(
    p: Predictions,
    classes: Sequence[str],
    *,
    most: int,
    positive: int = 1,
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """Find wrong predictions of one label per example, those of the largest probability first.

    Args:
      p: the predictions; examples whose label is unknown are passed over.
      classes: the K names.
      most: how many at most.
      positive: index of the positive class of two.
      threshold: from which on it is called.

    Returns:
      Entries with "arm", "id", "label", "predicted", the "probability" of that, and "patient" where
      patients are known.
    """
    predicted = p.probability.argmax(axis=1)
    if len(classes) == 2:
        predicted = np.where(p.probability[:, positive] >= threshold, positive, 1 - positive)
    confidence = p.probability[np.arange(len(predicted)), predicted]
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
