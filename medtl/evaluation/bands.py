"""Bands of ROC and precision-recall curves, from draws of the patients. Refuses nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medtl.evaluation.binned import binned
from medtl.evaluation.curves import Curve, interpolate

_BINS = 1000


def bands(
    splits: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    roc: Curve,
    pr: Curve,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Compute pointwise bands of both curves: percentiles over draws of the patients.

    A draw's curve is the mean over the splits of theirs, at the curve's x: the true positive rate
    at a false positive rate, the precision at a recall. The scores are taken in up to 1,000 bins of
    each split. A band holds its curve, also where that is vertical.

    Args:
      splits: (label bool[N], score float[N], patient int[N]) of each, patients numbered alike.
      roc: the curve of `roc` or `mean_roc`.
      pr: the curve of `precision_recall` or `mean_precision_recall`.
      level: of the intervals.
      seed: of the draws.

    Returns:
      (low, high) float64[points] of the ROC curve, and of the precision-recall curve.
    """
    units = 1 + max(int(patient.max()) for *_, patient in splits)
    rates: list[np.ndarray] = []
    precisions: list[np.ndarray] = []
    for label, score, patient in splits:
        drawn = binned(label, score, patient, units=units, bins=_BINS, seed=seed).drawn
        of_split = [_of_draw(counts, roc.x, pr.x) for counts in drawn]
        rates.append(np.stack([rate for rate, _ in of_split]))
        precisions.append(np.stack([precision for _, precision in of_split]))
    return _band(rates, roc.y, level), _band(precisions, pr.y, level)


def _of_draw(
    counts: np.ndarray, fpr: np.ndarray, recall: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a draw's true positive rate at each fpr, and its precision at each recall.

    Args:
      counts: float64[2, B], negatives and positives in bins of rising score.
      fpr: float64[points].
      recall: float64[points].
    """
    false, true = (np.r_[0.0, np.cumsum(side[::-1])] for side in counts)
    if not false[-1] or not true[-1]:
        return np.full(len(fpr), np.nan), np.full(len(recall), np.nan)
    x, y = false / false[-1], true / true[-1]
    rate = interpolate(x, y, fpr, side="right")
    # Below the recall of the highest threshold the precision is that threshold's.
    first = int(np.flatnonzero(false + true)[0])
    reached = np.maximum(recall, y[first])
    hits = reached * true[-1]
    called = hits + interpolate(y, x, reached, side="left") * false[-1]
    return rate, hits / np.where(hits > 0, called, 1.0)


def _band(
    draws: Sequence[np.ndarray], y: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentiles of the mean of [R, points] over splits; NaN where there is no draw."""
    count = np.sum([~np.isnan(values) for values in draws], axis=0)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(draws, axis=0) / count
    mean = mean[~np.isnan(mean).any(axis=1)]
    if not len(mean):
        nothing = np.full(len(y), np.nan)
        return nothing, nothing
    low, high = np.quantile(mean, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return np.minimum(low, y), np.maximum(high, y)
