"""Cochran's Q against its sum and a published meta-analysis, and the gap's rate of false alarms."""

import numpy as np
import pytest
from bcg import LOG_RISK_RATIO, VARIANCE
from scipy.stats import chi2, kstest, ttest_ind

from medtl.evaluation.heterogeneity import largest_gap, on_log_odds, q_test


def test_q_is_the_weighted_sum_of_squares():
    rng = np.random.default_rng(0)
    value, se = rng.normal(size=7), rng.uniform(0.2, 2, 7)
    mean = np.sum(value / se**2) / np.sum(1 / se**2)
    q = np.sum((value - mean) ** 2 / se**2)
    test = q_test(value, np.diag(se**2))
    assert test["q"] == pytest.approx(q, rel=1e-12) and test["df"] == 6
    assert test["p"] == pytest.approx(chi2.sf(q, 6), rel=1e-12)
    assert test["i2"] == pytest.approx(max(0, (q - 6) / q), abs=1e-12)


def test_the_published_heterogeneity_of_the_bcg_trials():
    test = q_test(LOG_RISK_RATIO, np.diag(VARIANCE))
    assert (test["q"], test["df"]) == (pytest.approx(152.233, abs=5e-4), 12)
    assert test["i2"] == pytest.approx(0.921, abs=5e-4)


def test_q_of_two_correlated_estimates_is_the_square_of_their_z():
    covariance = np.array([[1.0, 0.6], [0.6, 2.0]])
    variance_of_difference = 1 + 2 - 2 * 0.6
    test = q_test(np.array([3.0, 1.0]), covariance)
    assert test["q"] == pytest.approx(4 / variance_of_difference, rel=1e-12)


def test_p_is_uniform_where_the_groups_are_equal():
    rng = np.random.default_rng(1)
    se = rng.uniform(0.5, 2, 8)
    p = [q_test(rng.normal(0, se), np.diag(se**2))["p"] for _ in range(1000)]
    assert kstest(p, "uniform").pvalue > 0.001


def test_p_with_estimated_variances_is_that_of_welch_s_analysis_of_variance():
    """R's `oneway.test(extra ~ group, sleep)`: for two groups it is Welch's t-test."""
    a, b = (
        np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]),
        np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]),
    )
    variance = np.array([x.var(ddof=1) / len(x) for x in (a, b)])
    test = q_test(np.array([a.mean(), b.mean()]), np.diag(variance), df_each=np.array([9, 9]))
    assert test["p"] == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue, rel=1e-9)


def test_small_groups_of_equal_means_are_told_apart_in_five_percent():
    """With chi-square instead of Welch's F it would be twice as many."""
    rng, p, chi_square = np.random.default_rng(6), [], []
    for _ in range(2000):
        x = rng.normal(size=(12, 12)) * np.linspace(0.5, 2, 12)
        mean, covariance = x.mean(axis=0), np.diag(x.var(axis=0, ddof=1) / 12)
        p.append(q_test(mean, covariance, df_each=np.full(12, 11.0))["p"])
        chi_square.append(q_test(mean, covariance)["p"])
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(np.array(chi_square) < 0.05) > 0.1


def test_an_estimate_that_does_not_vary_has_no_test():
    assert "does not vary" in q_test(np.zeros(2), np.diag([1.0, 0.0]))["undefined"]
    assert "two groups" in q_test(np.zeros(1), np.eye(1))["undefined"]


def test_a_share_of_one_counts_half_an_example_more():
    value, covariance = on_log_odds(np.array([1.0, 0.5]), np.diag([0.0, 0.01]), np.array([20, 25]))
    assert value == pytest.approx([np.log(20.5 / 0.5), 0.0], abs=1e-12)
    share = 20.5 / 21
    assert np.diag(covariance) == pytest.approx([1 / (21 * share * (1 - share)), 0.16], rel=1e-12)


def gap_excludes_0(groups, rng, *, effect=0.0):
    se, units = rng.uniform(0.02, 0.08, groups), np.full(groups, 1000.0)
    value = 0.8 + rng.normal(0, se) - effect * (np.arange(groups) == 0)
    draws = value + rng.normal(0, se, (500, groups))
    low, high = largest_gap(value, draws, units, level=0.95)
    assert low <= np.ptp(value) <= high
    pair = np.array([value.argmax(), value.argmin()])
    uncorrected = np.quantile(draws[:, pair[0]] - draws[:, pair[1]], 0.025) > 0
    return low > 0, uncorrected


@pytest.mark.parametrize("groups", [2, 4, 12])
def test_the_gap_of_equal_groups_excludes_0_in_at_most_five_percent(groups):
    """By the percentiles of the two groups alone it is more than half for twelve groups."""
    rng = np.random.default_rng(2)
    corrected, uncorrected = np.mean([gap_excludes_0(groups, rng) for _ in range(1000)], axis=0)
    assert corrected <= 0.07  # 0.05 and three standard errors of 1,000 data sets
    assert uncorrected > {2: 0.03, 4: 0.15, 12: 0.4}[groups]


def test_the_gap_of_a_group_that_is_truly_worse_excludes_0():
    rng = np.random.default_rng(3)
    assert np.mean([gap_excludes_0(12, rng, effect=0.4)[0] for _ in range(200)]) > 0.8


def test_the_critical_value_is_that_of_the_studentized_range():
    """Of equal variances and many draws: q(0.95; 5 groups, infinite df) = 3.858, over √2."""
    rng = np.random.default_rng(4)
    value, draws = np.array([0.0, 0.1, 0.2, 0.3, 0.4]), rng.normal(size=(200_000, 5))
    low, high = largest_gap(value, draws, np.full(5, 1e9), level=0.95)
    assert (high - low) / 2 == pytest.approx(3.858, abs=0.03)


def test_draws_that_are_undefined_too_often_give_no_interval():
    draws = np.random.default_rng(5).normal(size=(100, 2))
    draws[:6, 0] = np.nan
    assert np.isnan(largest_gap(np.zeros(2), draws, np.full(2, 50.0), level=0.95)).all()
