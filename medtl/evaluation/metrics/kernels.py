"""Metrics that are functions of sums: of confusion matrices and of the ECE's bins.

Leading axes are resamples or classes, as the caller has them; 0/0 is NaN, never 0, and the caller
silences NumPy's warnings (`np.errstate`). Refuses nothing.
"""

from __future__ import annotations

import numpy as np

_PER_BIN = 10  # examples that a bin of the ECE must hold


def confusion(
    label: np.ndarray, probability: np.ndarray, *, guess: np.ndarray | None = None
) -> np.ndarray:
    """Count labels against predictions.

    Args:
      label: int[N]; or float[N, K] of 0, 1 or NaN (unknown, not counted).
      probability: float[N, K].
      guess: int[N], the predicted class; None: that of the largest probability. Several labels per
        example are predicted where p > 0.5.

    Returns:
      int64[K, K], rows are the labels; or int64[K, 2, 2] for several labels per example, as
      `one_against_rest` has them.
    """
    k = probability.shape[1]
    if label.ndim == 1:
        guess = probability.argmax(axis=1) if guess is None else guess
        return np.bincount(label.astype(np.int64) * k + guess, minlength=k * k).reshape(k, k)
    pairs = np.where(np.isnan(label), 4, 2 * (label == 1) + (probability > 0.5)).astype(np.int64)
    return np.stack([np.bincount(p, minlength=5)[:4].reshape(2, 2) for p in pairs.T])


def one_against_rest(confusion: np.ndarray) -> np.ndarray:
    """Split [..., K, K] into a table for each class, [..., K, 2, 2].

    A table is [[true negatives, false positives], [false negatives, true positives]].

    >>> one_against_rest(np.array([[3, 1], [2, 4]]))[1].tolist()
    [[3, 1], [2, 4]]
    """
    hits, actual = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1)
    false = confusion.sum(axis=-2) - hits
    rest = confusion.sum(axis=(-2, -1))[..., None] - actual - false
    return np.stack(
        [np.stack([rest, false], axis=-1), np.stack([actual - hits, hits], axis=-1)], axis=-2
    )


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the share on the diagonal of [..., K, K], whose rows are the labels."""
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1))


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the mean recall of [..., K, K]; NaN where a class has no example."""
    return np.mean(recall(confusion), axis=-1)


def recall(confusion: np.ndarray) -> np.ndarray:
    """Return the recall of each class, [..., K], of [..., K, K]."""
    return np.diagonal(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=-1)


def f1_score(table: np.ndarray) -> np.ndarray:
    """Return 2TP / (2TP + FP + FN) of [..., 2, 2]."""
    hits = 2 * table[..., 1, 1]
    return hits / (hits + table[..., 0, 1] + table[..., 1, 0])


def diagnostic_rates(table: np.ndarray, *, prevalence: float = 0.0) -> dict[str, np.ndarray]:
    """Return sensitivity, specificity, ppv and npv of [..., 2, 2].

    At a prevalence above 0 the predictive values follow from it by Bayes.
    """
    tn, fp, fn, tp = (table[..., i, j] for i in (0, 1) for j in (0, 1))
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    if not prevalence:
        ppv, npv = tp / (tp + fp), tn / (tn + fn)
    else:
        true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        ppv = true / (true + false)
        true, false = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
        npv = true / (true + false)
    return {"sensitivity": sensitivity, "specificity": specificity, "ppv": ppv, "npv": npv}


def mean_of_defined(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean along an axis of what is not NaN; NaN where all are."""
    defined = ~np.isnan(values)
    return np.where(defined, values, 0.0).sum(axis=axis) / defined.sum(axis=axis)


def matthews(confusion: np.ndarray) -> np.ndarray:
    """Return the correlation of labels and predictions, [..., K, K] (Gorodkin 2004, equation 8)."""
    total = confusion.sum(axis=(-2, -1))
    actual, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    covariance = total * np.trace(confusion, axis1=-2, axis2=-1) - np.sum(
        actual * predicted, axis=-1
    )
    spread = [np.square(total) - np.sum(np.square(side), axis=-1) for side in (actual, predicted)]
    # One class alone leaves a spread of 0 but for rounding.
    product = np.where(np.minimum(*spread) > 1e-12 * np.square(total), spread[0] * spread[1], 0.0)
    return np.where(product > 0, covariance / np.sqrt(product), np.nan)


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """Return 1 - observed / expected squared distance of grades, [..., K, K] (Cohen 1968)."""
    grade = np.arange(confusion.shape[-1])
    distance = np.square(grade[:, None] - grade)
    expected = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    observed = np.sum(confusion * distance, axis=(-2, -1)) * confusion.sum(axis=(-2, -1))
    return 1 - observed / np.sum(expected * distance, axis=(-2, -1))


def grade_error(confusion: np.ndarray) -> np.ndarray:
    """Return the mean distance of label and prediction in grades, of [..., K, K].

    >>> float(grade_error(np.array([[1, 1], [0, 2]])))
    0.25
    """
    grade = np.arange(confusion.shape[-1])
    far = np.abs(grade[:, None] - grade)
    return np.sum(confusion * far, axis=(-2, -1)) / confusion.sum(axis=(-2, -1))


def number_of_bins(n: int, most: int) -> int:
    """Return how many bins of the ECE `n` examples fill with at least 10 each, up to `most`."""
    return max(1, min(most, n // _PER_BIN))


def equal_mass_bins(score: np.ndarray, bins: int) -> np.ndarray:
    """Return int64[N], the bin of each score; bins are by mid-rank, about equally full.

    Equal scores share a bin.

    >>> equal_mass_bins(np.array([0.1, 0.9, 0.2, 0.8]), 2).tolist()
    [0, 1, 0, 1]
    """
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - size / 2
    return np.minimum((middle / max(len(score), 1) * bins).astype(np.int64), bins - 1)[group]


def expected_calibration_error(
    n: np.ndarray, positive: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    """Return the mean over bins of |observed share - mean probability|, less part of its chance.

    Chance makes |observed - predicted| too large, the more the fewer examples a bin has. Kumar,
    Liang & Ma 2019 (appendix and their library) estimate the excess by drawing the observed shares
    again from N(share, share (1 - share) / n), and subtract it. Here the mean of the folded normal
    |N(d, s²)| is in closed form, so that a bin's part, weighted by n, is
    2|d| - (s sqrt(2/π) exp(-d²/2s²) + |d| (1 - 2 Φ(-|d|/s))). For a perfectly calibrated model this
    removes 41 % of the excess, since |d| itself is noise, and its ECE is above 0; otherwise nearly
    all. `arm_calibration.expected_ece` says how much is left. A sum below 0 becomes 0.

    Args:
      n: float64[..., bins], the weight of each bin.
      positive: float64[..., bins], the weight of its positives.
      predicted: float64[..., bins], the weighted sum of its probabilities.

    Returns:
      float64[...], NaN where all bins are empty.
    """
    from scipy.special import ndtr

    filled = np.where(n > 0, n, 1.0)
    share = np.clip(positive / filled, 0.0, 1.0)
    gap = np.abs(share - predicted / filled)
    spread = np.sqrt(share * (1 - share) / filled)
    ratio = np.divide(gap, spread, out=np.full_like(gap, np.inf), where=spread > 0)
    chance = spread * np.sqrt(2 / np.pi) * np.exp(-np.square(ratio) / 2) + gap * (
        1 - 2 * ndtr(-ratio)
    )
    return np.maximum(np.sum(n * (2 * gap - chance), axis=-1), 0.0) / n.sum(axis=-1)
