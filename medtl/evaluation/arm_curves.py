"""One arm's curves: ROC and precision-recall with bands and the operating point, and more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.evaluation import curves
from medtl.evaluation.arm_results import Evaluated, chosen_classes, class_column
from medtl.evaluation.bands import bands
from medtl.evaluation.metrics import Options


def curves_of(e: Evaluated, classes: Sequence[str], options: Options) -> dict[str, Any]:
    """Return the arm's curves: of two classes the positive one's, else one for each class."""
    drawn: dict[str, Any] = {"roc": [], "pr": [], "reliability": [], "decision": None}
    for k in chosen_classes(e, classes):
        name, columns = classes[k], [class_column(data, k) for data in e.sets]
        label, score, patient = (np.concatenate(part) for part in zip(*columns, strict=True))
        bins = curves.reliability(label, score, patient=patient, level=options.level)
        _add_ranked(drawn, name, columns, level=options.level)
        if not bins.undefined:
            fields = ("predicted", "observed", "low", "high", "n")
            of_bins = {field: getattr(bins, field).tolist() for field in fields}
            drawn["reliability"].append({"name": name, **of_bins})
        if e.task == "two_class":
            d = curves.decision_curve(columns, prevalence=options.prevalence, level=options.level)
            parts = ("threshold", "model", "low", "high", "all", "none")
            drawn["decision"] = {part: getattr(d, part).tolist() for part in parts}
            drawn["operating"] = _operating(e)
    return drawn


def _add_ranked(
    drawn: dict[str, Any],
    name: str,
    columns: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    level: float,
) -> None:
    """Add a class's ROC and precision-recall curve and their bands, where there are any."""
    pairs = [(label, score) for label, score, _ in columns]
    single = len(pairs) == 1
    roc = curves.roc(*pairs[0]) if single else curves.mean_roc(pairs)
    if roc.undefined:
        return
    pr = curves.precision_recall(*pairs[0]) if single else curves.mean_precision_recall(pairs)
    of_roc, of_pr = bands(columns, roc, pr, level=level)
    prevalence = float(np.mean([label.mean() for label, _ in pairs]))
    for kind, curve, (low, high), more in (
        ("roc", roc, of_roc, {}),
        ("pr", pr, of_pr, {"prevalence": prevalence}),
    ):
        points = {"x": curve.x, "y": curve.y, "low": low, "high": high}
        drawn[kind].append({"name": name} | {n: v.tolist() for n, v in points.items()} | more)


def _operating(e: Evaluated) -> dict[str, float] | None:
    """Return where the operating threshold is on both curves, the mean over the models."""
    points = []
    for data in e.sets:
        positive, p = data.label == e.positive, data.probability[:, e.positive]
        called = p >= data.threshold
        if math.isnan(data.threshold) or not (positive.any() and (~positive).any()):
            continue
        hits, false = int(np.sum(called & positive)), int(np.sum(called & ~positive))
        precision = hits / (hits + false) if hits + false else math.nan
        rates = (false / int(np.sum(~positive)), hits / int(np.sum(positive)))
        points.append((*rates, precision, data.threshold))
    if not points:
        return None
    table = np.array(points)
    fpr, tpr, threshold = table[:, [0, 1, 3]].mean(axis=0).tolist()
    precision = table[~np.isnan(table[:, 2]), 2]
    return {
        "fpr": fpr,
        "tpr": tpr,
        "recall": tpr,
        "precision": float(precision.mean()) if len(precision) else math.nan,
        "threshold": threshold,
    }
