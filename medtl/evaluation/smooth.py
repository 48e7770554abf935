"""A smooth calibration curve: how often the class occurs where a model gives it a probability.

It is a logistic regression of the label on a natural cubic spline of the logit (Harrell 2015,
Regression Modeling Strategies, section 2.4.5; Austin & Steyerberg 2014, Stat Med 33, 517), with
O:E and the integrated calibration index beside it. What is undefined is a reason in words; refuses
nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from medtl.evaluation.binned import Binned, binned

_BINS = 400
_POINTS = 60
_EPS = float(np.finfo(np.float32).eps)
_KNOTS = {
    40: (0.05, 0.35, 0.65, 0.95),
    20: (0.1, 0.5, 0.9),
}  # by the number of examples of the rarer class
_RIDGE = 0.01  # as strong as 0.01 examples: keeps the curve of separated labels finite
_STEPS = 200
_SIMULATED = 100


@dataclasses.dataclass(frozen=True)
class Smooth:
    """A calibration curve and two summaries, each with an interval.

    Attributes:
      x: float64[points], the predicted risk, from its 1st to its 99th percentile.
      y: float64[points], the observed one.
      low, high: float64[points], pointwise interval of `y`.
      o_e: (value, low, high), observed over expected positives; 1 is right.
      ici: (value, low, high), the mean over examples of |observed - predicted risk| (Austin &
        Steyerberg 2019, Stat Med 38, 4051); above 0 by chance alone, see `expected_ici`.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    o_e: tuple[float, float, float]
    ici: tuple[float, float, float]


def smooth(
    label: np.ndarray,
    probability: np.ndarray,
    patient: np.ndarray,
    *,
    units: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Smooth | str:
    """Fit the curve, with intervals by a bootstrap of the patients.

    The spline has 4 knots, 3 where the rarer class has fewer than 40 examples, and is a straight
    line below 20. The band is y ± t SE on the logit scale, the interval of O:E the same on the
    logarithmic one; that of the ICI has the percentiles of its draws moved to the estimate, since
    a draw adds to it by chance.

    Args:
      label: bool[N].
      probability: float64[N].
      patient: int[N] from 0, whom each example is of.
      units: the number of patients; None: one more than the largest of `patient`.
      level: of the intervals.
      seed: of the bootstrap.

    Returns:
      The curve; or the reason why there is none.

    >>> p = np.linspace(0.05, 0.95, 2000)
    >>> label = np.random.default_rng(0).random(2000) < p**2  # half as often as predicted at 0.5
    >>> curve = smooth(label, p, np.arange(2000))
    >>> f"{np.interp(0.5, curve.x, curve.y):.1f} {curve.o_e[0]:.1f}"
    '0.2 0.6'
    """
    from scipy.stats import t

    reason = _undefined(label)
    if reason:
        return reason
    units = int(patient.max()) + 1 if units is None else units
    table = binned(label, _logit(probability), patient, units=units, bins=_BINS, seed=seed)
    risk = _mean_risk(probability, table)
    first, last = np.quantile(probability, (0.01, 0.99))
    x = np.linspace(float(first), float(last), _POINTS)
    basis = Basis.of(table)
    points = basis(_logit(x))
    both = np.concatenate([table.counts[None], table.drawn])
    coefficients = _fit(basis(table.score), both)
    fitted, draws = coefficients[0] @ points.T, coefficients[1:] @ points.T
    quantile = t.ppf((1 + level) / 2, max(len(np.unique(patient)) - 1, 1))
    half = quantile * draws.std(axis=0, ddof=1)
    ici = _ici(coefficients, basis(table.score), risk, both)
    positives, expected = both[:, 1].sum(axis=1), both.sum(axis=1) @ risk
    spread = quantile * np.log(np.maximum(positives[1:], 0.5) / expected[1:]).std(ddof=1)
    ratio = positives[0] / expected[0]
    moved = np.maximum(ici[1:] - ici[1:].mean() + ici[0], 0.0)
    low, high = np.quantile(moved, ((1 - level) / 2, (1 + level) / 2))
    curves = (_expit(fitted), _expit(fitted - half), _expit(fitted + half))
    o_e = (float(ratio), float(ratio * np.exp(-spread)), float(ratio * np.exp(spread)))
    return Smooth(x, *curves, o_e, (float(ici[0]), float(low), float(high)))


def expected_ici(probability: np.ndarray, *, seed: int = 0) -> float:
    """Return the mean ICI of labels drawn from the probabilities themselves: what chance gives.

    Args:
      probability: float64[N], of independent examples.
      seed: of the draws.

    >>> round(expected_ici(np.random.default_rng(0).random(400)), 2)
    0.03
    """
    if not len(probability):
        return float("nan")
    nobody, unit = np.zeros(len(probability), bool), np.zeros(len(probability), np.int64)
    table = binned(nobody, _logit(probability), unit, units=1, bins=_BINS, draws=0)
    n, risk = table.counts.sum(axis=0), _mean_risk(probability, table)
    table = dataclasses.replace(table, counts=np.stack([n * (1 - risk), n * risk]))
    chance = np.random.default_rng(seed).binomial(n.astype(np.int64), risk, (_SIMULATED, len(n)))
    counts = np.stack([n - chance, chance], axis=1).astype(np.float64)
    design = Basis.of(table)(table.score)
    return float(_ici(_fit(design, counts), design, risk, counts).mean())


@dataclasses.dataclass(frozen=True)
class Basis:
    """Natural cubic spline of a logit: call it with float64[M] for the design float64[M, F].

    Its columns are orthonormal over the examples it was made of, the first being constant.
    """

    knots: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, table: Binned) -> Basis:
        """Place the knots at quantiles of the binned logits."""
        n = table.counts.sum(axis=0)
        rarer = table.counts.sum(axis=1).min()
        shares = next((q for least, q in _KNOTS.items() if rarer >= least), ())
        at = np.searchsorted(np.cumsum(n) / n.sum(), shares)
        knots = np.unique(table.score[at.clip(max=len(n) - 1)]) if len(shares) else np.empty(0)
        knots = knots if len(knots) > 2 else np.empty(0)
        plain = cls(knots, np.empty(0))._columns(table.score)
        weight = np.sqrt(n / n.sum())[:, None]
        _, size, right = np.linalg.svd(weight * plain, full_matrices=False)
        kept = size > 1e-6 * size[0]  # equal logits leave the constant alone
        return cls(knots, right[kept].T / size[kept])

    def __call__(self, logit: np.ndarray) -> np.ndarray:
        return self._columns(logit) @ self.scale

    def _columns(self, x: np.ndarray) -> np.ndarray:
        """Return 1, x and the k - 2 cubic columns of k knots (Harrell 2015, equation 2.25)."""
        columns = [np.ones_like(x), x]
        if len(self.knots):
            *inner, before, last = self.knots

            def cube(knot: float) -> np.ndarray:
                return np.maximum(x - knot, 0.0) ** 3

            for knot in inner:
                part = cube(before) * (last - knot) - cube(last) * (before - knot)
                columns.append((cube(knot) - part / (last - before)) / (last - inner[0]) ** 2)
        return np.stack(columns, axis=1)


def _fit(design: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Fit logistic regressions with a weak ridge; return float64[R, F].

    Newton's steps are shortened so that each decreases the loss, see `metrics.ranking._newton`.

    Args:
      design: float64[B, F].
      counts: float64[R, 2, B], negatives and positives of each bin.
    """
    r, f = len(counts), design.shape[1]
    n, positive = counts.sum(axis=1), counts[:, 1]
    radius = np.linalg.norm(design, axis=1).max()
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), f * f)
    ridge, beta = _RIDGE * np.eye(f), np.zeros((r, f))
    for _ in range(_STEPS):
        mean = _expit(beta @ design.T)
        gradient = (positive - n * mean) @ design - _RIDGE * beta
        hessian = ((n * mean * (1 - mean)) @ products).reshape(r, f, f) + ridge
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        length = radius * np.linalg.norm(step, axis=1)
        ones = np.ones_like(length)
        beta += step * np.divide(np.log1p(length), length, out=ones, where=length > 0)[:, None]
        if length.max() < 1e-6:
            break
    return beta


def _ici(
    coefficients: np.ndarray, design: np.ndarray, risk: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return float64[R], the mean over examples of |fitted - predicted risk|."""
    n = counts.sum(axis=1)
    gap = np.abs(_expit(coefficients @ design.T) - risk)
    return np.sum(n * gap, axis=1) / n.sum(axis=1)


def _undefined(label: np.ndarray) -> str:
    if not len(label):
        return "there is no labelled example"
    if label.all() or not label.any():
        return f"every example is {'positive' if label.all() else 'negative'}"
    return ""


def _mean_risk(probability: np.ndarray, table: Binned) -> np.ndarray:
    """Return float64[B], the mean probability of each bin, whose bins are ordered like it."""
    n = table.counts.sum(axis=0).astype(np.int64)
    ends = np.cumsum(n)
    return np.add.reduceat(np.sort(probability), np.r_[0, ends[:-1]]) / n


def _logit(probability: np.ndarray) -> np.ndarray:
    p = np.clip(probability, _EPS, 1 - _EPS)
    return np.log(p) - np.log1p(-p)


def _expit(x: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(x)
