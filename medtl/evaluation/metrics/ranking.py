"""Metrics of one class against the rest that need the order of the examples, for resamples.

These are AUROC, AUPRC, the ROC curve's corners and the calibration line. Each function takes a
`Ranking` of N examples and the `Weights` of R resamples and returns float64[R], NaN where it is
undefined in a resample: cumulative sums over the sorted examples, in which equal scores are exact.
Refuses nothing; the arrays come from `Scorer`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_EPS = float(np.finfo(np.float32).eps)
_SLACK = 1e-12  # 0.9 of 10 negatives are 9, whatever 1 - 0.9 is in binary
# The length of the last Newton step, in standard deviations; the next error is its square. With
# many examples the first step from the line of all examples is so short that the error, some 1e-5,
# is far below a resample's spread, and the step costs a matrix product alone.
_TOLERANCE, _TOLERANCE_OF_MANY, _MANY = 1e-7, 0.02, 100_000
_STEPS = 200
_BINS = 4096


@dataclasses.dataclass(frozen=True)
class Ranking:
    """P positive and N negative examples, each in the order of falling scores.

    Attributes:
      unit: int64[P + N], the unit (patient) of each, positives first.
      positives: P.
      above: int64[P], how many negatives have a higher score than this positive.
      level: int64[P], how many negatives have at least its score.
      rank: int64[P], how many positives have at least its score.
      before: int64[N + 1], how many positives have a higher score than this negative; last, P.
      logit: float64[P + N], logit of the score, clipped to [eps, 1 - eps] of float32.
      start: float64[2], calibration intercept and slope of all examples, where Newton's method
        starts for resamples.
      offset: calibration intercept of all examples at a slope of 1, likewise.
    """

    unit: np.ndarray
    positives: int
    above: np.ndarray
    level: np.ndarray
    rank: np.ndarray
    before: np.ndarray
    logit: np.ndarray
    start: np.ndarray
    offset: float = 0.0

    @classmethod
    def of(
        cls, positive: np.ndarray, score: np.ndarray, unit: np.ndarray, *, with_line: bool = True
    ) -> Ranking:
        """Sort the examples of bool[n], float64[n] and int64[n].

        Without the calibration line of all examples Newton's method starts at 0 and 1.
        """
        chosen = [
            rows[np.argsort(-score[rows], kind="stable")]
            for rows in map(np.flatnonzero, (positive, ~positive))
        ]
        high, low = (score[rows] for rows in chosen)
        rising_high, rising_low = high[::-1], low[::-1]
        p = np.clip(np.concatenate([high, low]), _EPS, 1 - _EPS)
        ranking = cls(
            unit=unit[np.concatenate(chosen)],
            positives=len(high),
            above=len(low) - np.searchsorted(rising_low, high, "right"),
            level=len(low) - np.searchsorted(rising_low, high, "left"),
            rank=len(high) - np.searchsorted(rising_high, high, "left"),
            before=np.append(len(high) - np.searchsorted(rising_high, low, "right"), len(high)),
            logit=np.log(p) - np.log1p(-p),
            start=np.array([0.0, 1.0]),
        )
        if not with_line:
            return ranking
        start, offset = _of_all(ranking)
        return dataclasses.replace(ranking, start=start, offset=offset)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of R resamples in the order of a `Ranking`.

    Attributes:
      all: float64[R, P + N].
      upto_positive: float64[R, P + 1], cumulative from 0.
      upto_negative: float64[R, N + 1].
    """

    all: np.ndarray
    upto_positive: np.ndarray
    upto_negative: np.ndarray

    @classmethod
    def of(cls, ranking: Ranking, counts: np.ndarray) -> Weights:
        """Order float64[R, units]."""
        weight, p = np.take(counts, ranking.unit, axis=1), ranking.positives
        return cls(weight, _cumulative(weight[:, :p]), _cumulative(weight[:, p:]))

    @property
    def positive(self) -> np.ndarray:
        return self.all[:, : self.upto_positive.shape[1] - 1]

    @property
    def negative(self) -> np.ndarray:
        return self.all[:, self.upto_positive.shape[1] - 1 :]

    @property
    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        return self.upto_positive[:, -1], self.upto_negative[:, -1]


def auroc(ranking: Ranking, weights: Weights) -> np.ndarray:
    """Return P(score of a positive > that of a negative) + P(equal) / 2, `roc_auc_score`."""
    beaten_by = np.take(weights.upto_negative, ranking.above, axis=1)
    beaten_by += np.take(weights.upto_negative, ranking.level, axis=1)
    positives, negatives = weights.totals
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - np.einsum("rn,rn->r", weights.positive, beaten_by) / 2 / (positives * negatives)


def average_precision(ranking: Ranking, weights: Weights) -> np.ndarray:
    """Return the sum over thresholds of (recall - former recall) · precision.

    This is `average_precision_score`.
    """
    true = np.take(weights.upto_positive, ranking.rank, axis=1)
    called = np.take(weights.upto_negative, ranking.level, axis=1)
    called += true
    # Where nothing is called, the positive itself has no weight.
    np.divide(true, called, out=true, where=called > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("rn,rn->r", weights.positive, true) / weights.totals[0]


def sensitivity_at(ranking: Ranking, weights: Weights, specificity: float) -> np.ndarray:
    """Return the largest sensitivity of the thresholds of at least this specificity."""
    positives, negatives = weights.totals
    # The first negative that may not be called positive; whatever is above it may.
    allowed = (1 - specificity + _SLACK) * negatives
    first = [
        np.searchsorted(c, a, "right") - 1
        for c, a in zip(weights.upto_negative, allowed, strict=True)
    ]
    true = weights.upto_positive[
        np.arange(len(positives)), ranking.before[np.array(first, np.intp)]
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(negatives > 0, true / positives, np.nan)


def specificity_at(ranking: Ranking, weights: Weights, sensitivity: float) -> np.ndarray:
    """Return the largest specificity of the thresholds of at least this sensitivity."""
    positives, negatives = weights.totals
    if not ranking.positives:
        return np.full(len(positives), np.nan)
    wanted = (sensitivity - _SLACK) * positives
    last = [
        np.searchsorted(c, w, "left") - 1
        for c, w in zip(weights.upto_positive, wanted, strict=True)
    ]
    # None need be called (-1) for a sensitivity of 0.
    called = np.append(ranking.level, 0)[np.array(last, np.intp)]
    false = weights.upto_negative[np.arange(len(negatives)), called]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(positives > 0, 1 - false / negatives, np.nan)


def calibration_slope(ranking: Ranking, weights: Weights) -> np.ndarray:
    """Return b of logit P(y) = a + b x, x the logit of the score, by maximum likelihood (Cox 1958).

    NaN where there is none, because all x are equal or a threshold separates the classes (Albert &
    Anderson 1984), or where 200 steps do not reach it.
    """
    return _line(ranking, weights, _tolerance(ranking))[:, 1]


def calibration_intercept(ranking: Ranking, weights: Weights) -> np.ndarray:
    """Return a of logit P(y) = a + x, x the logit of the score, by maximum likelihood.

    NaN where a class is absent.
    """
    return _offset(ranking, weights, _tolerance(ranking))


def _tolerance(ranking: Ranking) -> float:
    return _TOLERANCE if ranking.unit.size <= _MANY else _TOLERANCE_OF_MANY


def _of_all(ranking: Ranking) -> tuple[np.ndarray, float]:
    """Return the calibration line of all examples, and its intercept at slope 1, to the last digit.

    Where there is no such line, (0, 1) and 0.
    """
    weights = Weights.of(ranking, np.ones((1, int(ranking.unit.max(initial=-1)) + 1)))
    line = _line(ranking, weights, _TOLERANCE)[0]
    offset = float(_offset(ranking, weights, _TOLERANCE)[0])
    start = line if np.isfinite(line).all() else ranking.start
    return start, offset if np.isfinite(offset) else 0.0


def _offset(ranking: Ranking, weights: Weights, tolerance: float) -> np.ndarray:
    """Return float64[R], intercepts at slope 1."""
    with np.errstate(invalid="ignore"):
        both = np.minimum(*weights.totals) > 0
    intercept = np.full(len(both), np.nan)
    if both.any():
        start = np.array([ranking.offset, 1.0])
        weight, coarse = _coarse(weights.all[both], ranking, tolerance)
        line = _newton(weight, coarse, start, free=1, tolerance=tolerance)
        intercept[both] = line[:, 0]
    return intercept


def _line(ranking: Ranking, weights: Weights, tolerance: float) -> np.ndarray:
    """Return float64[R, 2], intercept and slope."""
    line = np.full((len(weights.all), 2), np.nan)
    if not 0 < ranking.positives < ranking.unit.size:
        return line
    high, low = ranking.logit[: ranking.positives], ranking.logit[ranking.positives :]
    top_high, end_high = _extremes(weights.positive, high)
    top_low, end_low = _extremes(weights.negative, low)
    overlap = (np.minimum(*weights.totals) > 0) & (top_high > end_low) & (top_low > end_high)
    if overlap.any():
        weight, coarse = _coarse(weights.all[overlap], ranking, tolerance)
        line[overlap] = _newton(weight, coarse, ranking.start, free=2, tolerance=tolerance)
    return line


def _coarse(weight: np.ndarray, ranking: Ranking, tolerance: float) -> tuple[np.ndarray, Ranking]:
    """Join neighbours of many examples, whose logits are nearly equal: float64[R, bins], ranking.

    Each of the two sides has up to 4,096 bins of equal numbers, which have the mean logit.
    """
    if tolerance < _TOLERANCE_OF_MANY:
        return weight, ranking
    p, size = ranking.positives, ranking.unit.size
    ends = [np.unique(np.linspace(a, b, _BINS + 1).astype(np.intp)) for a, b in ((0, p), (p, size))]
    first = np.concatenate([side[:-1] for side in ends])
    logit = np.add.reduceat(ranking.logit, first) / np.diff(np.append(first, size))
    coarse = dataclasses.replace(ranking, logit=logit, positives=len(ends[0]) - 1)
    return np.add.reduceat(weight, first, axis=1), coarse


def _newton(
    weight: np.ndarray, ranking: Ranking, start: np.ndarray, *, free: int, tolerance: float
) -> np.ndarray:
    """Fit logistic regressions on one variable; return float64[R, 2], intercept and slope.

    The first `free` of the two are fitted. The logistic loss is generalized self-concordant: a
    Newton step of length d, in units in which the examples' (1, x) are at most 1 long, always
    decreases the loss when shortened to log(1 + d) / d of itself, and does not leap to where the
    curvature is 0 (Bach 2010; Sun & Tran-Dinh 2019, section 4). All R fits go on together, each
    until a step is short.
    """
    middle, scale = ranking.logit.mean(), ranking.logit.std() or 1.0
    x = (ranking.logit - middle) / scale
    y = np.arange(len(x)) < ranking.positives
    radius = np.hypot(1.0, np.abs(x).max()) if free == 2 else 1.0
    fitted = np.full((len(weight), 2), np.nan)
    beta = np.array([[start[0] + start[1] * middle, start[1] * scale]])
    moving = np.arange(len(weight))
    hits = np.stack([weight @ (y * 1.0), weight @ (y * x)], axis=1)
    for _ in range(_STEPS):
        step = _newton_step(weight, x, beta, hits, free)
        length = radius * np.linalg.norm(step, axis=1)
        ones = np.ones_like(length)
        shorter = np.divide(np.log1p(length), length, out=ones, where=length > 0)
        beta = beta + step * shorter[:, None]
        going = length > tolerance
        fitted[moving[~going]] = beta[~going]
        if not going.any():
            break
        if not going.all():
            weight, beta, hits, moving = weight[going], beta[going], hits[going], moving[going]
    slope = fitted[:, 1] / scale
    return np.stack([fitted[:, 0] - slope * middle, slope], axis=1)


def _newton_step(
    weight: np.ndarray, x: np.ndarray, beta: np.ndarray, hits: np.ndarray, free: int
) -> np.ndarray:
    """Return the step float64[R, 2] from beta [R, 2]; or [1, 2], where all are at the same point.

    That makes the sums matrix products. NaN where rounding leaves no curvature.
    """
    mu = beta[:, 1:] * x
    mu += beta[:, :1]
    np.negative(mu, out=mu)
    with np.errstate(over="ignore"):
        np.exp(mu, out=mu)
    mu += 1
    np.reciprocal(mu, out=mu)
    if len(beta) == 1:
        variance = mu[0] * (1 - mu[0])
        fitted = weight @ np.stack([mu[0], mu[0] * x], 1)
        spread = weight @ np.stack([variance * x**i for i in range(3)], 1)
    else:
        weighted = weight * mu
        fitted = np.stack([weighted.sum(axis=1), weighted @ x], axis=1)
        mu *= weighted
        weighted -= mu
        spread = np.stack([weighted.sum(axis=1), weighted @ x, weighted @ (x * x)], axis=1)
    gradient, (h00, h01, h11) = hits - fitted, spread.T
    if free == 1:
        first, second, determinant = gradient[:, 0], np.zeros(len(weight)), h00
    else:
        first = h11 * gradient[:, 0] - h01 * gradient[:, 1]
        second = h00 * gradient[:, 1] - h01 * gradient[:, 0]
        determinant = h00 * h11 - h01 * h01
    determinant = np.where(determinant == 0, np.nan, determinant)
    return np.stack([first, second], axis=1) / determinant[:, None]


def _extremes(weight: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest and smallest of falling values float64[n] of positive weight, [R] each."""
    counts = weight > 0
    return value[counts.argmax(axis=1)], value[len(value) - 1 - counts[:, ::-1].argmax(axis=1)]


def _cumulative(weight: np.ndarray) -> np.ndarray:
    total = np.zeros((weight.shape[0], weight.shape[1] + 1))
    np.cumsum(weight, axis=1, out=total[:, 1:])
    return total
