"""Scores in bins, counted again in draws of the patients: what curves and their bands are made of.

A million examples become some hundred bins, so that a curve of every draw costs as little as one
of few examples; where there are fewer distinct scores than bins nothing is lost. Refuses nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_MOST, _FEWEST = 200, 50  # draws
_WORK = 2e7  # examples x draws


@dataclasses.dataclass(frozen=True)
class Binned:
    """Examples in bins of rising score.

    Attributes:
      score: float64[B], the mean score of each bin.
      counts: float64[2, B], its negatives and its positives.
      drawn: float64[R, 2, B], the same in draws of the patients; row r has the same patients
        whatever the scores.
    """

    score: np.ndarray
    counts: np.ndarray
    drawn: np.ndarray


def binned(
    label: np.ndarray,
    score: np.ndarray,
    patient: np.ndarray,
    *,
    units: int,
    bins: int,
    draws: int | None = None,
    seed: int = 0,
) -> Binned:
    """Count positives and negatives by bins of about equal numbers, and in draws of the patients.

    Args:
      label: bool[N].
      score: float64[N].
      patient: int[N] from 0, whom each example is of.
      units: the number of patients from whom is drawn, with replacement.
      bins: the largest number of bins.
      draws: how many; None: 200, fewer of many examples, but 50 at least.
      seed: of the draws.
    """
    distinct, code = np.unique(score, return_inverse=True)
    if len(distinct) > bins:
        inner = np.linspace(0, 1, bins + 1)[1:-1]
        edges = np.unique(np.quantile(score, inner, method="inverted_cdf"))
        _, code = np.unique(np.searchsorted(edges, score), return_inverse=True)
    b = int(code.max(initial=-1)) + 1
    total = np.bincount(code, minlength=b)
    cell = code + b * label
    if draws is None:
        draws = int(np.clip(_WORK / max(len(label), units, 1), _FEWEST, _MOST))
    drawn = np.empty((draws, 2, b))
    for r in range(draws):
        chosen = np.random.default_rng([seed, r]).integers(0, units, units)
        weight = np.bincount(chosen, minlength=units)[patient]
        drawn[r] = np.bincount(cell, weight, minlength=2 * b).reshape(2, b)
    counts = np.bincount(cell, minlength=2 * b).reshape(2, b).astype(np.float64)
    return Binned(np.bincount(code, score, minlength=b) / total, counts, drawn)
