"""The paired differences of arms against a reference: one rule, wherever a difference is shown.

The standard error holds what another training would change, where the predictions tell it: over
folds by Nadeau and Bengio's correction, over seeds as the variance of the mean of the seeds'
differences. With one model an arm, the interval is about these trained models only. Interval and p
come from the same t distribution, and with several arms from their joint one, so that they never
disagree. What is undefined is NaN with the reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from medtl.evaluation import bootstrap, compare, ensembles
from medtl.evaluation.arm_results import Evaluated
from medtl.evaluation.intervals import UNDEFINED_DRAWS
from medtl.evaluation.metrics import PROPORTIONS

Key = TypeVar("Key", bound=Hashable)

_JOINT = 100_000  # draws of the joint normal distribution of several differences
_FEW = 500  # of these, beyond which a tail is taken from Bonferroni's bound instead
_LARGEST = dict.fromkeys(PROPORTIONS, 1.0) | {"ece": 1.0, "mcc": 2.0, "kappa_quadratic": 2.0}


@dataclasses.dataclass(frozen=True)
class Difference:
    """An arm minus the reference in one metric, by `of_arms`.

    Attributes:
      value, low, high: the difference and its interval, simultaneous over the arms.
      p: two-sided, of this difference by itself.
      p_adjusted: adjusted for the number of arms; below 1 - level just where the interval leaves
        out 0.
      se, df: the standard error, and the degrees of freedom of its t distribution.
      method: the test's name.
      note: what the standard error holds.
      undefined: why something is NaN, else "".
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_adjusted: float = math.nan
    se: float = math.nan
    df: float = math.nan
    method: str = ""
    note: str = ""
    undefined: str = ""


def one_model(e: Evaluated) -> bool:
    """Tell whether an arm was trained once, so that the variance of training is unknown.

    An ensemble of seeds on one split is one model, which is there once for each seed.
    """
    return len(e.sets) == 1 or (ensembles.is_ensemble(e.arm) and not e.several_splits)


def of_arms(
    evaluated: Mapping[str, Evaluated], resampled: bootstrap.Resampled, reference: str, name: str
) -> dict[str, Difference]:
    """Compare every other arm with the reference in one metric.

    - Folds or repeats: the corrected resampled t-test, see `compare.corrected_resampled_t`.
    - Several seeds on one split: SE² = SE²(patients) + s_d² / S, with s_d² the variance of the S
      differences, each of two models of one seed; degrees of freedom by Satterthwaite (1946,
      Biometrics Bulletin 2, 110) from the patients' and the seeds' S - 1.
    - One model an arm: SE(patients), of the bootstrap, with as many degrees of freedom as there are
      patients less one.

    With several arms, z of each is that of a normal distribution with its p; the largest of them is
    compared with the largest of normal variables correlated like the differences (max-t; Hothorn,
    Bretz & Westfall 2008, Biom J 50, 346). Where nothing varies, the interval of a share holds the
    differences that n patients do not exclude: n of them all agree with probability (1 - d)^n if a
    share d differs. No end is beyond what the metric can reach.

    Args:
      evaluated: the arms.
      resampled: their metrics.
      reference: the arm that is subtracted.
      name: of the metric.

    Returns:
      arm -> its difference, in the order of `evaluated`.
    """
    m = resampled.names.index(name)
    made = each(evaluated, resampled, reference, name)
    return jointly(
        made,
        lambda arms: _correlation([evaluated[a] for a in arms], evaluated[reference], resampled, m),
        {arm: _units(resampled, arm, reference, m) for arm in made},
        metric=name,
        level=resampled.level,
    )


def each(
    evaluated: Mapping[str, Evaluated], resampled: bootstrap.Resampled, reference: str, name: str
) -> dict[str, Difference]:
    """Compare every other arm with the reference by itself: as `of_arms`, without intervals."""
    m, other = resampled.names.index(name), evaluated[reference]
    test = _over_folds if other.several_splits else _on_one_split
    return {arm: test(e, other, resampled, m) for arm, e in evaluated.items() if arm != reference}


def jointly(
    made: Mapping[Key, Difference],
    correlation: Callable[[Sequence[Key]], np.ndarray],
    count: Mapping[Key, float],
    *,
    metric: str,
    level: float,
) -> dict[Key, Difference]:
    """Give differences intervals that hold simultaneously, and adjusted p; see `of_arms`.

    Args:
      made: the differences, without intervals.
      correlation: returns float64[n, n], how those n that have a p vary together.
      count: of these, the patients that bear on each.
      metric: of the differences; no end is beyond what it can reach.
      level: of the family.
    """
    tested = [key for key, d in made.items() if not math.isnan(d.p)]
    p_values = [made[key].p for key in tested]
    alpha, adjusted = simultaneous(p_values, correlation(tested), level=level)
    limit, finished = _LARGEST.get(metric, math.inf), dict(made)
    for key, p in zip(tested, adjusted, strict=True):
        half = _half(made[key], alpha, count[key] if limit < math.inf else math.inf)
        low, high = (float(np.clip(made[key].value + s * half, -limit, limit)) for s in (-1, 1))
        finished[key] = dataclasses.replace(made[key], low=low, high=high, p_adjusted=p)
    return finished


def simultaneous(
    p: Sequence[float], correlation: np.ndarray, *, level: float
) -> tuple[float, list[float]]:
    """Adjust p values for their number by the distribution of the largest of correlated statistics.

    Args:
      p: float[n], two-sided.
      correlation: float64[n, n], of the statistics.
      level: of the family of intervals.

    Returns:
      alpha, 1 - level of each interval by itself; and the adjusted p values, below 1 - level just
      where the single one is below alpha.

    >>> simultaneous([0.04], np.eye(1), level=0.95)[1]
    [0.04]
    >>> alpha, (one, two) = simultaneous([0.02, 0.04], np.eye(2), level=0.95)
    >>> f"{alpha:.3f} {one:.2f} {two:.2f}"
    '0.025 0.04 0.08'
    """
    from scipy.stats import norm

    n = len(p)
    if n < 2:
        return 1 - level, list(p)
    weight, vector = np.linalg.eigh(correlation)
    root = vector * np.sqrt(np.maximum(weight, 0.0))
    normal = np.random.default_rng(0).normal(size=(_JOINT, n))
    largest = np.sort(np.abs(normal @ root.T).max(axis=1))
    # The ends between which the joint tail must be: of one statistic, and of n disjoint ones.
    alone, disjoint = (float(norm.isf((1 - level) / 2 / k)) for k in (1, n))
    drawn = float(largest[_JOINT - round((1 - level) * _JOINT)])
    critical = min(max(drawn, alone), disjoint)

    def adjusted(one: float) -> float:
        beyond = _JOINT - int(np.searchsorted(largest, norm.isf(one / 2), side="left"))
        tail = beyond / _JOINT if beyond > _FEW else math.inf
        return min(1.0, max(one, min(tail, n * one)))

    return float(2 * norm.sf(critical)), [adjusted(one) for one in p]


def independent(e: Evaluated, by_model: np.ndarray) -> np.ndarray:
    """Return the means over the models whose training is not independent, float64[J, ...].

    J is the number of folds of all repeats; on one split that of the seeds, or with one seed that
    of its repeats.

    Args:
      e: an arm.
      by_model: float64[models, ...], a value of each.
    """
    names = ("repeat", "fold") if e.several_splits else ("seed",)
    if not e.several_splits and e.number("seed") < 2:
        return by_model
    groups: dict[tuple, list[int]] = {}
    for i, p in enumerate(e.predictions):
        groups.setdefault(tuple(getattr(p, name) for name in names), []).append(i)
    return np.array([by_model[rows].mean(axis=0) for rows in groups.values()])


def standard_error(
    e: Evaluated, by_model: np.ndarray, sampled: np.ndarray, units: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard error of a mean over models and its degrees of freedom; see `of_arms`.

    Args:
      e: one of the arms.
      by_model: float64[models, ...], the quantity for each model.
      sampled: float64[...], the variance of its mean over samples of the patients.
      units: float64[...], the patients that bear on it.

    Returns:
      se, df: float64[...].
    """
    each = independent(e, by_model)
    n = len(each)
    spread = each.var(axis=0, ddof=1) if n > 1 else np.full(each.shape[1:], np.nan)
    if e.several_splits:
        return np.sqrt((1 / n + e.test_share) * spread), np.full(spread.shape, n - 1.0)
    trained = spread / n if n > 1 else np.zeros(spread.shape)
    variance = sampled + trained
    with np.errstate(divide="ignore", invalid="ignore"):
        df = variance**2 / (sampled**2 / (units - 1) + trained**2 / max(n - 1, 1))
    return np.sqrt(variance), np.where(trained > 0, df, units - 1)


def _on_one_split(a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, m: int) -> Difference:
    from scipy.stats import t as student

    by_model, draws = _by_model(a, b, resampled, m), _draws(a, b, resampled, m)
    seeds = len(independent(a, by_model))
    value = float(resampled.value[a.arm][m] - resampled.value[b.arm][m])
    unit = "patient" if a.patients is not None else "example"
    method = f"{unit} bootstrap" + " and seeds" * (seeds > 1)
    undefined = _undefined(a, b, resampled, m)
    if not undefined and np.isnan(draws).mean() > UNDEFINED_DRAWS:
        undefined = "it is undefined in too many resamples for an interval"
    missing = int(np.isnan(by_model).sum())
    if not undefined and missing:
        undefined = f"the difference is undefined in {missing} of {len(by_model)} seeds"
    if undefined:
        return Difference(value, method=method, undefined=undefined)
    units = _units(resampled, a.arm, b.arm, m)
    sampled = float(np.nanvar(draws)) * units / (units - 1)
    se, df = map(float, standard_error(a, by_model, np.array(sampled), units))
    if se > 0:
        p = float(2 * student.sf(abs(value) / se, df))
    else:  # see `_half`
        p = min(1.0, 2 * max(0.0, 1 - abs(value)) ** units)
    note = "of these trained models: training variance is unknown with one seed"
    if seeds > 1 and not (one_model(a) and one_model(b)):
        trained = math.sqrt(max(se**2 - sampled, 0.0))
        parts = f"{math.sqrt(sampled):.4f} and {trained:.4f}"
        note = f"standard errors of {unit}s and of {seeds} seeds: {parts}"
    return Difference(value, p=p, se=se, df=df, method=method, note=note)


def _over_folds(a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, m: int) -> Difference:
    """Apply Nadeau and Bengio's test over folds to the means over seeds in each."""
    from scipy.stats import t as student

    means = independent(a, _by_model(a, b, resampled, m))
    t = compare.corrected_resampled_t(means, test_share=a.test_share, level=resampled.level)
    method = "corrected resampled t"
    value = float(resampled.value[a.arm][m] - resampled.value[b.arm][m])
    undefined = _undefined(a, b, resampled, m) or t.undefined
    if undefined:
        return Difference(value, method=method, undefined=undefined)
    note = f"over {len(means)} folds, n_test / n_train = {a.test_share:.2f}"
    p = float(2 * student.sf(abs(value) / t.se, t.df)) if t.se > 0 else t.p
    return Difference(value, p=p, se=t.se, df=t.df, method=method, note=note)


def _half(difference: Difference, alpha: float, units: float) -> float:
    """Return half the width of the interval that leaves out `alpha`."""
    from scipy.stats import t as student

    if difference.se > 0:
        return float(student.isf(alpha / 2, difference.df)) * difference.se
    return 0.0 if units == math.inf else 1 - (alpha / 2) ** (1 / units)


def _correlation(
    arms: Sequence[Evaluated], b: Evaluated, resampled: bootstrap.Resampled, m: int
) -> np.ndarray:
    """Return float64[n, n], how the differences of several arms vary together."""
    if len(arms) < 2:
        return np.eye(len(arms))
    each = [independent(a, _by_model(a, b, resampled, m)) for a in arms]
    if b.several_splits:
        covariance = np.cov(each)
    else:
        draws = np.stack([_draws(a, b, resampled, m) for a in arms])
        covariance = np.cov(draws[:, ~np.isnan(draws).any(axis=0)])
        if len(each[0]) > 1:
            covariance = covariance + np.cov(each) / len(each[0])
    spread = np.sqrt(np.diag(covariance))
    scale = np.outer(spread, spread)
    correlation = np.where(scale > 0, covariance / np.where(scale > 0, scale, 1.0), 0.0)
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _by_model(a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, m: int) -> np.ndarray:
    return resampled.by_split[a.arm][:, m] - resampled.by_split[b.arm][:, m]


def _draws(a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, m: int) -> np.ndarray:
    return resampled.draws[a.arm][:, m] - resampled.draws[b.arm][:, m]


def _units(resampled: bootstrap.Resampled, arm: str, reference: str, m: int) -> float:
    return max(2.0, float(min(resampled.support[arm][m], resampled.support[reference][m])))


def _undefined(a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, m: int) -> str:
    name = resampled.names[m]
    reasons = (resampled.undefined[e.arm].get(name, "") for e in (a, b))
    return next(filter(None, reasons), "")
