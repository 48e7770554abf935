"""One arm's predicted numbers beside the true ones: points to draw, and limits of agreement."""

from __future__ import annotations

from typing import Any

import numpy as np

from medtl.evaluation.arm_results import Evaluated

_POINTS = 500  # that are drawn at most
_WITHIN = 1.96  # standard deviations of the limits of agreement


def agreement_of(e: Evaluated) -> dict[str, Any]:
    """Return the agreement of predictions and labels, each example once.

    The limits of agreement are the mean difference ± 1.96 standard deviations (Bland & Altman 1986,
    Lancet 327, 307).

    Returns:
      {"label", "predicted": of up to 500 examples, evenly spaced by their labels, "n", "of":
      which models predict, in words, "mean_difference": prediction minus label, "sd", "low",
      "high": the limits of agreement}.
    """
    label = np.concatenate([e.sets[i].label for i in e.once])
    predicted = np.concatenate([e.sets[i].probability[:, 0] for i in e.once])
    order = np.argsort(label, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, _POINTS).astype(int))]
    difference = predicted - label
    mean = float(difference.mean())
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return {
        "label": label[shown].tolist(),
        "predicted": predicted[shown].tolist(),
        "n": len(label),
        "of": e.once_words.strip(),
        "mean_difference": mean,
        "sd": spread,
        "low": mean - _WITHIN * spread,
        "high": mean + _WITHIN * spread,
    }
