"""Whether groups differ: Cochran's Q, I², and the largest gap corrected for the number of groups.

Takes plain arrays: an estimate per group, its variance and its draws. What cannot be tested is
undefined with the reason; refuses nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from medtl.evaluation.intervals import UNDEFINED_DRAWS


def q_test(
    value: np.ndarray, covariance: np.ndarray, *, df_each: np.ndarray | float = math.inf
) -> dict[str, Any]:
    """Test that estimates have the same expectation, by Cochran's (1954) Q.

    Q = (y - m)' C⁻¹ (y - m) with the mean m that makes it smallest; for independent estimates Q =
    Σ (y - m)² / se² with m weighted by w = 1 / se². It is chi-square with G - 1 degrees of freedom
    where they are the same and se is known; p allows for an estimated se by Welch's (1951,
    Biometrika 38, 330) F: with L = Σ (1 - w / Σ w)² / df_each, Q / (G - 1) / (1 + 2 (G - 2) L /
    (G² - 1)) has (G² - 1) / (3 L) degrees of freedom in its denominator. I² = max(0, (Q - df) / Q),
    the share of the variation that is not chance (Higgins & Thompson 2002, Stat Med 21, 1539).

    Args:
      value: float64[G], the estimates.
      covariance: float64[G, G], theirs.
      df_each: float64[G], the degrees of freedom of each variance.

    Returns:
      {"q", "df", "p", "i2"}, or {"undefined": why}.

    >>> test = q_test(np.array([0.0, 2.0]), np.diag([1.0, 1.0]))
    >>> f"{test['q']:.0f} {test['df']} {test['p']:.3f} {test['i2']:.1f}"
    '2 1 0.157 0.5'
    """
    from scipy.stats import chi2, f

    df = len(value) - 1
    if df < 1:
        return {"undefined": "it takes at least two groups"}
    if not (np.isfinite(value).all() and np.isfinite(covariance).all()):
        return {"undefined": "a group's standard error is undefined"}
    if np.linalg.matrix_rank(covariance, hermitian=True) <= df:
        return {"undefined": "a group's estimate does not vary in the resamples"}
    weight = np.linalg.inv(covariance)
    mean = weight.sum(axis=0) @ value / weight.sum()
    q = float((value - mean) @ weight @ (value - mean))
    i2 = max(0.0, (q - df) / q) if q > 0 else 0.0
    share = 1 / np.diag(covariance)
    loss = float(np.sum((1 - share / share.sum()) ** 2 / df_each))
    p, square = float(chi2.sf(q, df)), len(value) ** 2 - 1
    if loss > 0:
        p = float(f.sf(q / df / (1 + 2 * (df - 1) / square * loss), df, square / (3 * loss)))
    return {"q": q, "df": df, "p": p, "i2": i2}


def covariance_of(draws: np.ndarray, units: np.ndarray, *, disjoint: bool) -> np.ndarray:
    """Return the covariance float64[G, G] of estimates from their draws float64[R, G].

    Args:
      draws: of the bootstrap; those in which one is undefined are left out.
      units: float64[G], the patients that bear on each: a bootstrap's variance is too small by
        (n - 1) / n.
      disjoint: the estimates are of different patients, so that they are independent.
    """
    scale = np.sqrt(units / (units - 1))
    defined = draws[~np.isnan(draws).any(axis=1)]
    covariance = np.atleast_2d(np.cov(defined, rowvar=False)) * np.outer(scale, scale)
    return np.diag(np.diag(covariance)) if disjoint else covariance


def on_log_odds(
    value: np.ndarray, covariance: np.ndarray, units: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take shares to the log-odds scale, on which their errors are closer to normal.

    The covariance is by the delta method (for the AUROC: Snell et al. 2018, Stat Methods Med Res
    27, 3505). A share of 0 or 1, whose draws do not vary, counts half an example more on each
    side, as Haldane and Anscombe have it.

    Args:
      value: float64[G], from 0 to 1.
      covariance: float64[G, G], theirs.
      units: float64[G], the patients that bear on each.

    Returns:
      log-odds float64[G] and their covariance float64[G, G].
    """
    from scipy.special import logit

    still = (value <= 0) | (value >= 1) | (np.diag(covariance) <= 0)
    inner = np.where(still, (value * units + 0.5) / (units + 1), value)
    slope = 1 / (inner * (1 - inner))
    covariance = covariance * np.outer(slope, slope)
    covariance[np.diag_indices(len(value))] = np.where(
        still, slope / (units + 1), np.diag(covariance)
    )
    return logit(inner), covariance


def largest_gap(
    value: np.ndarray, draws: np.ndarray, units: np.ndarray, *, level: float
) -> tuple[float, float]:
    """Compute the interval of the largest minus the smallest of several estimates.

    It is the one of a family that holds for the differences of all pairs at once: the critical
    value is the quantile `level` of max |d*ᵢⱼ| / seᵢⱼ over the pairs, where d* are the draws'
    differences less their mean (the studentized range of unequal variances; Tukey's method by
    bootstrap, Hothorn, Bretz & Westfall 2008, Biom J 50, 346). So the interval excludes 0 in at
    most about 1 - level of data sets whose groups are equal, whatever their number.

    Args:
      value: float64[G], the estimates.
      draws: float64[R, G], of the bootstrap.
      units: float64[G], the patients that bear on each.
      level: of the interval.

    Returns:
      low, high; NaN where more than 5 % of the draws are undefined.
    """
    defined = draws[~np.isnan(draws).any(axis=1)]
    if len(defined) < (1 - UNDEFINED_DRAWS) * len(draws) or len(value) < 2:
        return math.nan, math.nan
    first, second = np.triu_indices(len(value), 1)
    centred = defined - defined.mean(axis=0)
    differences = centred[:, first] - centred[:, second]
    spread = differences.std(axis=0)
    varies = spread > 1e-12
    largest = np.max(np.abs(differences) / np.where(varies, spread, np.inf), axis=1)
    critical = float(np.quantile(largest, level))
    ranking = np.argsort(value, kind="stable")  # of equal values, two different groups
    best, worst = ranking[-1], ranking[0]
    n = min(float(units[best]), float(units[worst]))
    se = float((centred[:, best] - centred[:, worst]).std()) * math.sqrt(n / (n - 1))
    half = critical * se
    gap = float(value[best] - value[worst])
    return gap - half, gap + half
