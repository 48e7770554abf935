"""The metrics of a predicted number as a function of how often each patient counts.

A `QuantityScorer` stands in for a `Scorer` where the label is a quantity: the bootstrap and the
comparisons of arms ask it the same way. What is undefined is NaN with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.evaluation.metrics.inputs import EvaluationSet, Options
from medtl.evaluation.metrics.names import QUANTITY_NAMES
from medtl.evaluation.metrics.user import value_of


class QuantityScorer:
    """The metrics of one evaluation set as a function of how often each unit (patient) counts.

    With the label y and the prediction p:

    - mae: mean |p - y|; rmse: the root of the mean (p - y)²; both in the label's unit.
    - r2: 1 - Σ (p - y)² / Σ (y - mean y)², as scikit-learn's `r2_score`; below 0 for a model worse
      than the mean of the evaluated labels.
    - c_index: of the pairs of examples with different labels, the share in which the larger label
      has the larger prediction; equal predictions count half. Harrell's concordance (Harrell et
      al. 1982, JAMA 247, 2543) of labels without censoring; 0.5 by chance.
    - calibration_slope: of the least-squares line of y on p; 1 is right, below 1 the predictions
      spread too much. calibration_intercept: mean y - p; 0 is right, above 0 they are too low.
    - the user's metrics, `options.extra`: called with y float64[N], p float64[N, 1] and weights.

    Attributes:
      names: the M metrics, in the order of `QUANTITY_NAMES`, then the user's.
      size: N.
      units: the number of patients.
    """

    def __init__(
        self,
        data: EvaluationSet,
        *,
        classes: Sequence[str] = (),
        options: Options,
        units: int | None = None,
        names: Sequence[str] | None = None,
    ):
        """Sort the pairs; the arguments are those of `Scorer`, and `classes` are not used."""
        self.options = options
        self.names = (
            *(n for n in QUANTITY_NAMES if names is None or n in names),
            *options.extra,
        )
        self._unit = np.asarray(data.patient, np.intp)
        self.units = int(self._unit.max(initial=-1)) + 1 if units is None else units
        self.size = len(self._unit)
        self._label = np.asarray(data.label, np.float64)
        self._probability = np.asarray(data.probability, np.float64)
        self._predicted = self._probability[:, 0]
        self._levels = _levels(self._label, self._predicted) if "c_index" in self.names else []

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Compute the metrics float64[R, M] of resamples, see `Scorer`."""
        counts = np.asarray(counts, np.float64)
        if not self.size:
            return np.full((len(counts), len(self.names)), np.nan)
        weight = counts[:, self._unit]
        with np.errstate(divide="ignore", invalid="ignore"):
            values = self._by_sums(weight)
            if "c_index" in self.names:
                values["c_index"] = _concordance(weight, self._label, self._levels)
        for name, metric in self.options.extra.items():
            each = (value_of(name, metric, self._label, self._probability, row) for row in weight)
            values[name] = np.array(list(each))
        return np.stack([values[name] for name in self.names], axis=1)

    def _by_sums(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        y, p = self._label - self._label.mean(), self._predicted - self._label.mean()
        total = weight.sum(axis=1)
        mean_y, mean_p = weight @ y / total, weight @ p / total
        square = weight @ np.square(p - y) / total
        spread_y = weight @ np.square(y) / total - mean_y**2
        spread_p = weight @ np.square(p) / total - mean_p**2
        # Of equal numbers rounding leaves a variance that is not quite 0.
        spread_y = np.where(spread_y > 1e-12 * np.square(y).max(), spread_y, np.nan)
        spread_p = np.where(spread_p > 1e-12 * np.square(p).max(), spread_p, np.nan)
        return {
            "mae": weight @ np.abs(p - y) / total,
            "rmse": np.sqrt(square),
            "r2": 1 - square / spread_y,
            "calibration_slope": (weight @ (y * p) / total - mean_y * mean_p) / spread_p,
            "calibration_intercept": mean_y - mean_p,
        }

    def explain(self, values: np.ndarray) -> dict[str, str]:
        """Return metric -> why it is NaN, of float64[M], which counts each unit once."""
        missing = [n for n, v in zip(self.names, values, strict=True) if math.isnan(v)]
        if not self.size:
            return dict.fromkeys(missing, "there is no labelled example")
        reasons = dict.fromkeys(self.options.extra, "the metric's function gives NaN or infinity")
        reasons["calibration_slope"] = "all predictions are the same"
        return {name: reasons.get(name, "all labels are the same") for name in missing}


def quantity_support(scorers: Sequence[QuantityScorer]) -> np.ndarray:
    """Return int64[M], the units that bear on each metric: all that have an example."""
    units = len(np.unique(np.concatenate([scorer._unit for scorer in scorers])))
    return np.full(len(scorers[0].names), units)


def compute_quantity(
    label: np.ndarray, predicted: np.ndarray, *, extra: Any = None
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the metrics of one evaluation set, and the reasons of those that are NaN.

    Args:
      label: float[N], NaN where unknown; such examples are left out.
      predicted: float[N, 1].
      extra: the user's metrics.

    >>> values, _ = compute_quantity(np.array([1.0, 2.0, 4.0]), np.array([[1.0], [3.0], [2.0]]))
    >>> values["mae"], round(values["c_index"], 3)
    (1.0, 0.667)
    """
    rows = ~np.isnan(label)
    if bad := int(np.sum(~np.isfinite(predicted[rows]))):
        names = (*QUANTITY_NAMES, *(extra or {}))
        reason = f"the prediction is no finite number in {bad} of {int(rows.sum())} examples"
        return dict.fromkeys(names, math.nan), dict.fromkeys(names, reason)
    data = EvaluationSet(label[rows], predicted[rows], np.arange(int(rows.sum())))
    scorer = QuantityScorer(data, options=Options(extra=extra or {}))
    row = scorer(np.ones((1, scorer.units)))[0]
    return dict(zip(scorer.names, row.tolist(), strict=True)), scorer.explain(row)


def _levels(label: np.ndarray, predicted: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Prepare the pairs with different labels for cumulative sums, in O(N log N).

    The ranks of two different labels have a highest bit in which they differ: at that bit's level
    the larger label has 1 and the smaller one 0. Within the examples that agree in the higher
    bits, those with a smaller prediction are then counted by a cumulative sum.

    Returns:
      For each bit: the order of the examples; whether the bit is 0, in that order; the positions
      where it is 1; and of each of these the start of its block, and the first and the last
      position of equal predictions.
    """
    rank = np.unique(label, return_inverse=True)[1].reshape(-1)
    tie = np.unique(predicted, return_inverse=True)[1].reshape(-1)
    levels: list[tuple[np.ndarray, ...]] = []
    for bit in range(int(rank.max(initial=0)).bit_length()):
        block = rank >> (bit + 1)
        order = np.lexsort((tie, block))
        one = np.flatnonzero((rank[order] >> bit) & 1)
        of_block = block[order]
        of_tie = of_block * (len(tie) + 1) + tie[order]  # rises along the order
        start = np.searchsorted(of_block, of_block[one], side="left")
        low = np.searchsorted(of_tie, of_tie[one], side="left")
        high = np.searchsorted(of_tie, of_tie[one], side="right")
        levels.append((order, ((rank[order] >> bit) & 1) == 0, one, start, low, high))
    return levels


def _concordance(
    weight: np.ndarray, label: np.ndarray, levels: Sequence[tuple[np.ndarray, ...]]
) -> np.ndarray:
    """Return the C-index of R weightings float64[R, N]; NaN where all labels are the same."""
    concordant = np.zeros(len(weight))
    for order, is_zero, one, start, low, high in levels:
        sorted_weight = weight[:, order]
        below = np.zeros((len(weight), len(order) + 1))
        np.cumsum(sorted_weight * is_zero, axis=1, out=below[:, 1:])
        pairs = (below[:, low] + below[:, high]) / 2 - below[:, start]
        concordant += np.sum(sorted_weight[:, one] * pairs, axis=1)
    rank = np.unique(label, return_inverse=True)[1].reshape(-1)
    order = np.argsort(rank, kind="stable")
    first = np.flatnonzero(np.diff(rank[order], prepend=-1))
    groups = np.add.reduceat(weight[:, order], first, axis=1)
    pairs = (groups.sum(axis=1) ** 2 - np.square(groups).sum(axis=1)) / 2
    return np.where(pairs > 0, concordant / pairs, np.nan)
