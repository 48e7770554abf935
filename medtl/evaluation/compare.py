"""Tests of a paired difference between two arms.

DeLong's test for the AUROC, McNemar's for the accuracy, and the corrected resampled t-test over
folds. Each takes plain arrays, and patients where a patient has several examples. A difference is
first minus second. What is undefined is NaN with the reason in `undefined`; refuses arrays that do
not fit each other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation.intervals import binary, column, normal_quantile, patient_numbers

_NAN = math.nan
_CANCELLED = (
    "the estimate of its variance is 0, as what the few patients of both classes add cancels"
)


@dataclasses.dataclass(frozen=True)
class DeLong:
    """The AUROC of one or two scores of the same examples, by `delong`.

    Attributes:
      auc: float64[k], k = 1 or 2 scores.
      auc_low, auc_high: float64[k], the interval of each on the logit scale.
      covariance: float64[k, k], of `auc`.
      difference, low, high, z, p: the first minus the second, its Wald interval and two-sided test;
        NaN for one score.
      undefined: why something is NaN; "" where nothing is, or only because there is one score.
    """

    auc: np.ndarray
    auc_low: np.ndarray
    auc_high: np.ndarray
    covariance: np.ndarray
    difference: float = _NAN
    low: float = _NAN
    high: float = _NAN
    z: float = _NAN
    p: float = _NAN
    undefined: str = ""


@dataclasses.dataclass(frozen=True)
class McNemar:
    """The accuracies of two arms on the same examples, by `mcnemar`.

    Attributes:
      n10, n01: examples that only the first, only the second got right.
      difference, low, high: in accuracy, first minus second, with its interval.
      statistic: chi-square with one degree of freedom, without continuity correction.
      p: exact and two-sided; with patients that of `statistic`.
      p_mid: the mid-p value, less conservative; NaN with patients.
      undefined: why something is NaN, else "".
    """

    n10: int
    n01: int
    difference: float
    low: float
    high: float
    statistic: float
    p: float
    p_mid: float = _NAN
    undefined: str = ""


@dataclasses.dataclass(frozen=True)
class ResampledT:
    """A mean difference over folds, its interval and two-sided test, by `corrected_resampled_t`."""

    mean: float
    low: float
    high: float
    t: float
    df: int
    p: float
    undefined: str = ""
    se: float = _NAN


def delong(
    label: np.ndarray,
    score_a: np.ndarray,
    score_b: np.ndarray | None = None,
    *,
    patient: np.ndarray | None = None,
    level: float = 0.95,
) -> DeLong:
    """Compute AUROCs, their covariance, and the test of their difference.

    With V10 the share of negatives below a positive and V01 the share of positives above a negative
    (ties count half), the variance of AUC = mean V10 = mean V01 is DeLong, DeLong &
    Clarke-Pearson's (1988), computed in O(N log N) as by Sun & Xu (2014). With `patient` it is
    Obuchowski's (1997, Biometrics 53, 567): sums over a patient's examples take the place of the
    examples, and a patient with positives and negatives adds their covariance; where each patient
    has one example it is DeLong's. The single interval is symmetric on the logit scale (Pepe 2003).

    Two scores that order alike differ by 0 with p = 1. No interval follows from an AUROC of 0 or 1,
    whose variance is 0, nor where what few patients of both classes add cancels to a variance of 0.

    Args:
      label: bool[N], or 0 and 1.
      score_a: float[N], larger for positives; or float[S, N] of S models, e.g. seeds, whose mean
        AUROC counts.
      score_b: as `score_a`, of another arm, or None.
      patient: int[N], who the example is of; None: each of another.
      level: of the intervals.

    Raises:
      UserError: the arrays differ in length, a label is neither 0 nor 1, or `level` is not between
        0 and 1.

    >>> label = np.array([0, 0, 0, 1, 1, 1])
    >>> good, poor = np.array([1, 2, 4, 3, 5, 6]), np.array([1, 5, 6, 2, 4, 3])
    >>> f"{delong(label, good, poor).p:.3f}"
    '0.077'
    """
    label = binary(label, "label")
    scores = [_models(score, len(label)) for score in (score_a, score_b) if score is not None]
    unit = patient_numbers(patient, len(label))
    k, z_level = len(scores), normal_quantile(level)
    nothing, no_covariance = np.full(k, _NAN), np.full((k, k), _NAN)
    if reason := undefined_auroc(label, np.concatenate(scores).sum(axis=0)):
        return DeLong(nothing, nothing, nothing, no_covariance, undefined=reason)
    auc, positive, negative = _placements(label, scores, unit)
    difference = float(auc[0] - auc[1]) if k == 2 else _NAN
    if min(_distinct(unit[side]) for side in (label, ~label)) < 2:
        few = f"two positive or two negative {'examples' if patient is None else 'patients'}"
        reason = f"there are fewer than {few}"
        return DeLong(auc, nothing, nothing, no_covariance, difference, undefined=reason)
    covariance = _covariance(positive, negative, label, unit)
    single = _single(auc, covariance, np.hstack([positive, negative]), z_level)
    if k == 1:
        return single
    # Of the difference itself: a11 - 2 a12 + a22 would leave rounding where the scores agree.
    contrast = np.array([[1.0, -1.0]])
    variance = _covariance(contrast @ positive, contrast @ negative, label, unit)[0, 0]
    return dataclasses.replace(
        single, **_wald(difference, math.sqrt(variance), z_level, single.undefined)
    )


def _single(auc: np.ndarray, covariance: np.ndarray, residuals: np.ndarray, z: float) -> DeLong:
    """Return the interval of each AUROC by itself, and why one has none."""
    variance = np.diag(covariance)
    cancelled = residuals.any(axis=1) & (variance == 0)
    low, high = _logit_interval(auc, np.sqrt(np.where(cancelled, _NAN, variance)), z)
    edge = [f"the AUROC is {value:g}, where its variance is 0" for value in auc if value in (0, 1)]
    edge += [_CANCELLED] * bool(cancelled.any())
    return DeLong(auc, low, high, covariance, undefined=edge[0] if edge else "")


def undefined_auroc(label: np.ndarray, score: np.ndarray) -> str:
    """Return why the AUROC of bool[N] labels and float[N] scores is undefined, else ""."""
    if not len(label):
        return "there is no example"
    if label.all() or not label.any():
        return f"every example is {'positive' if label.all() else 'negative'}"
    missing = int(np.isnan(score).sum())
    return f"the score is NaN in {missing} of {len(label)} examples" if missing else ""


def _placements(
    label: np.ndarray, scores: Sequence[np.ndarray], unit: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return AUC [k], and the sums of V10 - AUC and of V01 - AUC over each unit, [k, units].

    V10 is over the unit's positives, V01 over its negatives.
    """
    m, n, units = int(label.sum()), int((~label).sum()), int(unit.max()) + 1
    aucs, positive, negative = [], [], []
    for models in scores:
        below = np.mean([_below(score[label], score[~label]) for score in models], axis=0)
        above = m - np.mean([_below(score[~label], score[label]) for score in models], axis=0)
        auc = below.sum() / (m * n)
        aucs.append(auc)
        positive.append(np.bincount(unit[label], below / n - auc, minlength=units))
        negative.append(np.bincount(unit[~label], above / m - auc, minlength=units))
    return np.array(aucs), *(_without_rounding(np.stack(r)) for r in (positive, negative))


def _without_rounding(residuals: np.ndarray) -> np.ndarray:
    """Residuals that are only rounding, of scores that agree or separate perfectly, are 0."""
    return np.where(np.abs(residuals) < 1e-11, 0.0, residuals)


def _below(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Count how many of y are below each x, ties half: the difference of two midranks."""
    ordered = np.sort(y)
    return (
        np.searchsorted(ordered, x, side="left") + np.searchsorted(ordered, x, side="right")
    ) / 2


def _covariance(
    positive: np.ndarray, negative: np.ndarray, label: np.ndarray, unit: np.ndarray
) -> np.ndarray:
    """float64[k, k], Obuchowski (1997): S10 / M + S01 / N + (S11 + S11') / (M N).

    With the factors f = U / (U - 1) of U units, and A and B the sums over a unit's positives / M
    and negatives / N, that is f10 A A' + f01 B B' + f11 (A B' + B A'). As f11, of all units, is the
    smallest, it is computed as a sum of squares, which no rounding makes negative.
    """
    a = _without_rounding(positive) / label.sum()
    b = _without_rounding(negative) / (~label).sum()
    both = np.where(np.abs(a + b) < 1e-12 * (np.abs(a) + np.abs(b)), 0.0, a + b)
    f10, f01, f11 = (u / (u - 1) for u in map(_distinct, (unit[label], unit[~label], unit)))
    return f11 * (both @ both.T) + (f10 - f11) * (a @ a.T) + (f01 - f11) * (b @ b.T)


def _logit_interval(auc: np.ndarray, se: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    inside = (auc > 0) & (auc < 1)
    safe = np.where(inside, auc, 0.5)
    center, half = np.log(safe / (1 - safe)), z * se / (safe * (1 - safe))
    ends = [np.where(inside, 1 / (1 + np.exp(-(center + sign * half))), _NAN) for sign in (-1, 1)]
    return ends[0], ends[1]


def _wald(difference: float, se: float, z_level: float, undefined: str) -> dict[str, Any]:
    """Return the fields of `DeLong` for a difference.

    Without any variance a difference of 0 is certain, and another one is undefined.
    """
    if se == 0 and difference == 0:
        return {"difference": 0.0, "low": 0.0, "high": 0.0, "z": 0.0, "p": 1.0}
    if se == 0:
        return {
            "difference": difference,
            "undefined": undefined or "the variance of the difference is 0",
        }
    z, half = difference / se, z_level * se
    p = math.erfc(abs(z) / math.sqrt(2))
    return {
        "difference": difference,
        "low": max(-1.0, difference - half),
        "high": min(1.0, difference + half),
        "z": z,
        "p": p,
    }


def mcnemar(
    correct_a: np.ndarray,
    correct_b: np.ndarray,
    *,
    patient: np.ndarray | None = None,
    level: float = 0.95,
) -> McNemar:
    """Test the difference of two accuracies on the same examples.

    Without patients: the exact conditional and the mid-p value of Fagerland, Lydersen & Laake
    (2013, BMC Med Res Methodol 13:91) and the interval of Bonett & Price (2012, J Educ Behav Stat
    37, 479). With patients: the chi-square of Yang, Sun & Hardin (2010, Biom J 52, 638), (Σ d)² / Σ
    d² over the patients' d = n10 - n01, which is McNemar's where each patient has one example and
    weighs examples, as the accuracy does (Durkalski's weighs patients); and the interval from the
    ratio estimator's variance (Obuchowski 1998, Stat Med 17, 1495).

    Args:
      correct_a: bool[N], whether the first arm got the example right.
      correct_b: bool[N], the second arm's.
      patient: int[N], who the example is of; None: each of another.
      level: of the interval.

    Raises:
      UserError: the arrays differ in length, are neither 0 nor 1, or `level` is not between 0 and
        1.
    """
    from scipy.stats import binom, chi2

    a, b = binary(correct_a, "correct_a"), binary(correct_b, "correct_b")
    column(b, len(a), "correct_b")
    z, n = normal_quantile(level), len(a)
    if not n:
        return McNemar(0, 0, _NAN, _NAN, _NAN, _NAN, _NAN, undefined="there is no example")
    n10, n01 = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    difference = (n10 - n01) / n
    if patient is not None:
        unit = patient_numbers(patient, n)
        d, size = np.bincount(unit, a.astype(float) - b), np.bincount(unit)
        if len(d) < 2:
            return McNemar(
                n10, n01, difference, _NAN, _NAN, _NAN, _NAN, undefined="there is only one patient"
            )
        statistic = float(d.sum() ** 2 / max(np.sum(d**2), 1))
        half = z * math.sqrt(len(d) / (len(d) - 1) * np.sum((d - size * difference) ** 2)) / n
        low, high = max(-1.0, difference - half), min(1.0, difference + half)
        return McNemar(n10, n01, difference, low, high, statistic, float(chi2.sf(statistic, 1)))
    discordant, smaller = n10 + n01, min(n10, n01)
    p = min(1.0, 2 * float(binom.cdf(smaller, discordant, 0.5)))
    # Equation 2 of the supplement of Fagerland et al.; for n10 = n01 half the probability of that
    # outcome is left out. Arms that agree everywhere have one outcome, which says nothing.
    observed = float(binom.pmf(smaller, discordant, 0.5)) if discordant else 0.0
    p_mid = 1 - observed / 2 if n10 == n01 else p - observed
    p10, p01 = (n10 + 1) / (n + 2), (n01 + 1) / (n + 2)
    half = z * math.sqrt((p10 + p01 - (p10 - p01) ** 2) / (n + 2))
    low, high = max(-1.0, p10 - p01 - half), min(1.0, p10 - p01 + half)
    return McNemar(n10, n01, difference, low, high, (n10 - n01) ** 2 / max(discordant, 1), p, p_mid)


def corrected_resampled_t(
    difference: np.ndarray, *, test_share: float, level: float = 0.95
) -> ResampledT:
    """Test a mean difference over folds whose training sets overlap.

    Nadeau & Bengio (2003, Machine Learning 52, 239): the variance of the mean of J differences is
    taken as (1 / J + n_test / n_train) s², not s² / J, with J - 1 degrees of freedom; for repeated
    cross-validation see Bouckaert & Frank (2004). J equal differences of 0 give p = 1; J equal
    differences of another size tell no variance.

    Args:
      difference: float[J], of a metric in each fold of each repeat.
      test_share: n_test / n_train, 1 / (folds - 1) in cross-validation; 0 makes it the ordinary
        t-test.
      level: of the interval.

    Raises:
      UserError: `test_share` is negative or not finite, or `level` is not between 0 and 1.
    """
    from scipy.stats import t as student

    if not (math.isfinite(test_share) and test_share >= 0):
        raise UserError(
            f"test_share is {test_share}; it is n_test / n_train, "
            "1 / (folds - 1) in cross-validation"
        )
    normal_quantile(level)
    values = np.asarray(difference, np.float64).ravel()
    j, missing = len(values), int(np.isnan(values).sum())
    if missing or j < 2:
        reason = (
            f"the difference is undefined in {missing} of {j} folds"
            if missing
            else "it takes at least two folds"
        )
        return ResampledT(
            float(values.mean()) if j else _NAN, _NAN, _NAN, _NAN, j - 1, _NAN, reason
        )
    if np.ptp(values) == 0:
        if values[0] == 0:
            return ResampledT(0.0, 0.0, 0.0, 0.0, j - 1, 1.0, se=0.0)
        return ResampledT(
            float(values[0]), _NAN, _NAN, _NAN, j - 1, _NAN, f"all {j} differences are equal"
        )
    mean, se = float(values.mean()), math.sqrt((1 / j + test_share) * values.var(ddof=1))
    half = float(student.ppf((1 + level) / 2, j - 1)) * se
    return ResampledT(
        mean,
        mean - half,
        mean + half,
        mean / se,
        j - 1,
        float(2 * student.sf(abs(mean / se), j - 1)),
        se=se,
    )


def _models(score: np.ndarray, n: int) -> np.ndarray:
    score = np.asarray(score, np.float64)
    return (
        score
        if score.ndim == 2 and score.shape[1] == n and len(score)
        else column(score, n, "score")[None]
    )


def _distinct(unit: np.ndarray) -> int:
    return int(np.count_nonzero(np.bincount(unit)))
