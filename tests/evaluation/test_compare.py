"""Tests between arms against textbook implementations, published numbers and simulation; the
verdicts against their rule."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import make_moons
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.svm import SVC
from statsmodels.stats import contingency_tables

from medtl.errors import UserError
from medtl.evaluation import compare

# Ovarian cancer, DeLong, DeLong & Clarke-Pearson (1988): albumin, total protein, K-G score, whether
# surgery helped; as printed
# with its analysis in the SAS/STAT User's Guide, PROC LOGISTIC, "Comparing Receiver Operating
# Characteristic Curves".
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1
3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0
2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1
3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0
3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1
3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1
"""


def ovarian():
    albumin, protein, kg, helped = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    return helped == 1, {"kg": 10 - kg, "albumin": albumin, "protein": protein}


def clustered_case(seed, n=60, patients=17, decimals=1):
    """Labels and two correlated, tied scores; patients of several images, most with positives and
    negatives."""
    rng = np.random.default_rng(seed)
    patient, label = rng.integers(0, patients, n), rng.random(n) < 0.4
    effect = rng.standard_normal(patients)[patient]
    return label, *(np.round(label + effect + rng.standard_normal((2, n)), decimals)), patient


def textbook(label, scores, patient):
    """Obuchowski's (1997) covariance by its sums over pairs of examples and over patients, without
    any rank."""
    m, n, ids = label.sum(), (~label).sum(), sorted(set(patient.tolist()))
    kernels = [
        np.array([[(x > y) + 0.5 * (x == y) for y in s[~label]] for x in s[label]]) for s in scores
    ]
    auc = [k.mean() for k in kernels]
    v10, v01 = [k.mean(axis=1) for k in kernels], [k.mean(axis=0) for k in kernels]
    of_positive, of_negative = patient[label], patient[~label]
    covariance = np.zeros((len(scores), len(scores)))
    for i, j in itertools.product(range(len(scores)), repeat=2):
        s10 = s01 = s11 = s11_turned = 0.0
        for one in ids:
            a = [np.sum(v10[s][of_positive == one] - auc[s]) for s in (i, j)]
            b = [np.sum(v01[s][of_negative == one] - auc[s]) for s in (i, j)]
            s10, s01, s11, s11_turned = (
                s10 + a[0] * a[1],
                s01 + b[0] * b[1],
                s11 + a[0] * b[1],
                s11_turned + b[0] * a[1],
            )
        i10, i01, i_all = len(set(of_positive)), len(set(of_negative)), len(ids)
        s10, s01 = s10 * i10 / ((i10 - 1) * m), s01 * i01 / ((i01 - 1) * n)
        covariance[i, j] = s10 / m + s01 / n + i_all / (i_all - 1) * (s11 + s11_turned) / (m * n)
    return np.array(auc), covariance


def test_delong_agrees_with_the_published_example():
    label, score = ovarian()
    for name, area, se, low, high in (
        ("kg", 0.7258, 0.1028, 0.5243, 0.9273),
        ("albumin", 0.7366, 0.0927, 0.5549, 0.9182),
        ("protein", 0.6478, 0.1000, 0.4518, 0.8439),
    ):
        found = compare.delong(label, score[name])
        assert found.auc[0] == pytest.approx(area, abs=5e-5)
        assert math.sqrt(found.covariance[0, 0]) == pytest.approx(se, abs=5e-5)
        wald = found.auc[0] + np.array([-1, 1]) * stats.norm.ppf(0.975) * math.sqrt(
            found.covariance[0, 0]
        )
        np.testing.assert_allclose(wald, [low, high], atol=5e-5)
    for name, difference, low, high, chi_square, p in (
        ("albumin", 0.0108, -0.1761, 0.1976, 0.0127, 0.9102),
        ("protein", -0.0780, -0.2830, 0.1271, 0.5554, 0.4561),
    ):
        found = compare.delong(label, score[name], score["kg"])
        wanted = [difference, low, high, chi_square, p]
        np.testing.assert_allclose(
            [found.difference, found.low, found.high, found.z**2, found.p], wanted, atol=5e-5
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clustered", [False, True])
def test_delong_is_the_textbook_sum_over_pairs(seed, clustered):
    label, a, b, patient = clustered_case(seed)
    found = compare.delong(label, a, b, patient=patient if clustered else None)
    auc, covariance = textbook(label, (a, b), patient if clustered else np.arange(len(label)))
    np.testing.assert_allclose(
        found.auc, [roc_auc_score(label, a), roc_auc_score(label, b)], rtol=1e-12
    )
    np.testing.assert_allclose(found.auc, auc, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9)
    variance = np.array([1, -1]) @ covariance @ np.array([1, -1])
    assert found.z == pytest.approx((auc[0] - auc[1]) / math.sqrt(variance), rel=1e-9)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.z)), rel=1e-9)
    half = stats.norm.ppf(0.975) * np.sqrt(np.diag(covariance)) / (auc * (1 - auc))
    for end, sign in ((found.auc_low, -1), (found.auc_high, 1)):
        np.testing.assert_allclose(
            np.log(end / (1 - end)), np.log(auc / (1 - auc)) + sign * half, rtol=1e-9
        )


def test_delong_does_not_change_with_what_does_not_matter():
    label, a, b, patient = clustered_case(7)
    found = compare.delong(label, a, b, patient=patient)
    order = np.random.default_rng(0).permutation(len(label))
    shuffled = compare.delong(
        label[order], np.exp(a[order]), 3 * b[order] - 1, patient=1000 - 3 * patient[order]
    )
    copies = compare.delong(
        *(np.repeat(x, 3) for x in (label, a, b)), patient=np.repeat(patient, 3)
    )
    flipped = compare.delong(~label, -a, -b, patient=patient)
    for other in (shuffled, copies, flipped):
        np.testing.assert_allclose(other.covariance, found.covariance, rtol=1e-9)
        assert (other.difference, other.p) == pytest.approx((found.difference, found.p), rel=1e-9)
    turned = compare.delong(label, b, a, patient=patient)
    assert (turned.difference, turned.low, turned.p) == pytest.approx(
        (-found.difference, -found.high, found.p)
    )


def test_several_models_are_compared_by_their_mean():
    label, a, b, patient = clustered_case(3)
    same = compare.delong(label, np.stack([a, a]), np.stack([b, b, b]), patient=patient)
    np.testing.assert_allclose(
        same.covariance, compare.delong(label, a, b, patient=patient).covariance, rtol=1e-12
    )
    mean = compare.delong(label, np.stack([a, b]), patient=patient)
    auc, covariance = textbook(label, (a, b), patient)
    assert mean.auc[0] == pytest.approx(auc.mean(), rel=1e-12)
    assert mean.covariance[0, 0] == pytest.approx(covariance.mean(), rel=1e-9)  # of (A + B) / 2


def test_scores_that_order_alike_do_not_differ():
    label, a, _, patient = clustered_case(1)
    for units in (None, patient):
        found = compare.delong(label, a, 2 * a + 1, patient=units)
        assert (found.difference, found.low, found.high, found.z, found.p) == (0, 0, 0, 0, 1)
        assert found.undefined == "" and found.covariance[0, 0] > 0


def test_where_delong_is_undefined_it_says_why():
    label = np.array([0, 0, 0, 1, 1, 1])
    perfect = compare.delong(label, label + 0.5)
    assert (
        perfect.auc[0] == 1 and np.isnan(perfect.auc_low[0]) and "AUROC is 1" in perfect.undefined
    )
    turned = compare.delong(label, label, -label)
    assert turned.difference == 1 and math.isnan(turned.p) and turned.undefined
    for bad, score, patient, reason in (
        (np.zeros(6), np.arange(6.0), None, "every example is negative"),
        (np.ones(6), np.arange(6.0), None, "every example is positive"),
        (label, np.array([0, 1, np.nan, 3, 4, 5]), None, "NaN in 2 of 6"),
        (np.zeros(0), np.zeros(0), None, "no example"),
        (np.eye(6)[0], np.arange(6.0), None, "fewer than two positive"),
        (
            label,
            np.array([3, 1, 2, 2, 4, 5.0]),
            [0, 1, 2, 3, 3, 3],
            "two positive or two negative patients",
        ),
    ):
        found = compare.delong(bad, score, score[::-1], patient=patient)
        assert reason in found.undefined and math.isnan(found.p) and np.isnan(found.auc_low).all()


def simulated_scores(rng, label, effects, patients, per_patient):
    """Two binormal scores that share half of their variance, within patients and within images."""
    scores = []
    shared = rng.standard_normal(patients), rng.standard_normal(patients * per_patient)
    for effect in effects:
        own = rng.standard_normal(patients), rng.standard_normal(patients * per_patient)
        parts = [(s + o) / math.sqrt(2) for s, o in zip(shared, own, strict=True)]
        between = np.repeat(parts[0], per_patient) if per_patient > 1 else 0.0
        scores.append(effect * label + between + parts[1])
    return scores


@pytest.mark.parametrize("n, simulations", [(100, 1000), (1000, 600)])
def test_delong_intervals_cover(n, simulations):
    rng, label, effects = np.random.default_rng(n), np.arange(n) % 2 == 0, np.array([1.2, 0.9])
    truth = stats.norm.cdf(effects / math.sqrt(2))
    covered = np.zeros(2)
    for _ in range(simulations):
        found = compare.delong(label, *simulated_scores(rng, label, effects, n, 1))
        covered += (
            found.auc_low[0] < truth[0] < found.auc_high[0],
            found.low < truth[0] - truth[1] < found.high,
        )
    assert np.all((covered / simulations > 0.93) & (covered / simulations < 0.97)), (
        covered / simulations
    )


@pytest.mark.parametrize("n, simulations", [(100, 1000), (1000, 600)])
def test_clustered_intervals_cover_where_the_naive_ones_do_not(n, simulations):
    per_patient, effects = 4 if n > 100 else 2, np.array([1.5, 1.2])
    patients = n // per_patient
    rng, patient = np.random.default_rng(n + 1), np.repeat(np.arange(patients), per_patient)
    label, truth = patient % 2 == 0, stats.norm.cdf(effects / 2)
    covered = np.zeros((2, 2))
    for _ in range(simulations):
        scores = simulated_scores(rng, label, effects, patients, per_patient)
        for i, units in enumerate((patient, None)):
            found = compare.delong(label, *scores, patient=units)
            covered[i] += (
                found.auc_low[0] < truth[0] < found.auc_high[0],
                found.low < truth[0] - truth[1] < found.high,
            )
    clustered, naive = covered / simulations
    assert np.all((clustered > 0.93) & (clustered < 0.97)), clustered
    assert np.all(naive < 0.92), naive


def test_mcnemar_agrees_with_statsmodels():
    rng = np.random.default_rng(0)
    for n, share in ((10, 0.5), (50, 0.8), (400, 0.9), (40, 1.0)):
        a, b = rng.random((2, n)) < np.array([[share], [0.7 if share < 1 else 1.0]])
        table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(b & ~a), np.sum(~a & ~b)]]
        found = compare.mcnemar(a, b)
        assert found.p == pytest.approx(
            contingency_tables.mcnemar(table, exact=True).pvalue, rel=1e-9
        )
        assert (found.n10, found.n01) == (table[0][1], table[1][0])
        assert found.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
        each = compare.mcnemar(a, b, patient=np.arange(n))
        assert each.statistic == pytest.approx(found.statistic, rel=1e-12)
        if found.n10 + found.n01:
            asymptotic = contingency_tables.mcnemar(table, exact=False, correction=False)
            assert (each.statistic, each.p) == pytest.approx(
                (asymptotic.statistic, asymptotic.pvalue), rel=1e-9
            )
        else:
            assert (found.p, found.p_mid, each.p, each.difference) == (1, 1, 1, 0)


def test_mcnemar_agrees_with_the_published_example():
    # Fagerland, Lydersen & Laake (2013), table 1 (airway hyper-responsiveness in 21 children): p =
    # 0.070, mid-p = 0.039.
    before = np.repeat([1, 1, 0, 0], [1, 1, 7, 12])
    after = np.repeat([1, 0, 1, 0], [1, 1, 7, 12])
    found = compare.mcnemar(before, after)
    assert (found.n10, found.n01) == (1, 7)
    assert round(found.p, 3) == 0.070 and round(found.p_mid, 3) == 0.039
    assert found.p == pytest.approx(2 * 9 / 256) and found.p_mid == pytest.approx(
        2 * 9 / 256 - 8 / 256
    )
    half = stats.norm.ppf(0.975) * math.sqrt(
        (10 / 23 - (6 / 23) ** 2) / 23
    )  # Bonett & Price: one more of each discordance
    assert (found.low, found.high) == pytest.approx((-6 / 23 - half, -6 / 23 + half), rel=1e-9)


def test_mcnemar_takes_the_patient_as_the_unit():
    a = np.array([1, 1, 1, 0, 1, 0, 1, 1])
    b = np.array([0, 0, 1, 1, 0, 0, 1, 0])
    patient = np.array([5, 5, 5, 9, 9, 2, 2, 2])  # d = 2, 0, 1; sizes 3, 2, 3
    found = compare.mcnemar(a, b, patient=patient)
    assert (found.n10, found.n01, found.difference) == (4, 1, 3 / 8)
    assert found.statistic == pytest.approx(9 / 5) and found.p == pytest.approx(
        stats.chi2.sf(9 / 5, 1)
    )
    se = math.sqrt(3 / 2 * ((2 - 9 / 8) ** 2 + (0 - 6 / 8) ** 2 + (1 - 9 / 8) ** 2)) / 8
    assert found.high == pytest.approx(3 / 8 + stats.norm.ppf(0.975) * se) and math.isnan(
        found.p_mid
    )
    copies = compare.mcnemar(np.repeat(a, 4), np.repeat(b, 4), patient=np.repeat(patient, 4))
    assert (copies.p, copies.low) == pytest.approx((found.p, found.low)) and compare.mcnemar(
        a, b
    ).p > 0.3
    assert compare.mcnemar(np.repeat(a, 4), np.repeat(b, 4)).p < 0.02  # copies are not evidence
    assert "one patient" in compare.mcnemar(a, b, patient=np.zeros(8)).undefined
    assert "no example" in compare.mcnemar([], []).undefined


def test_clustered_mcnemar_keeps_its_level_where_the_plain_one_does_not():
    rng, patients, simulations = np.random.default_rng(0), 80, 600
    patient, rejected = np.repeat(np.arange(patients), 5), np.zeros(2)
    covered = 0
    for _ in range(simulations):
        # Some patients are easier for the first arm and as many for the second.
        chance = np.repeat(rng.choice([[0.5, 0.9], [0.9, 0.5]], patients), 5, axis=0)
        a, b = (rng.random(chance.shape) < chance).T
        found = compare.mcnemar(a, b, patient=patient)
        rejected += found.p < 0.05, compare.mcnemar(a, b).p_mid < 0.05
        covered += found.low < 0 < found.high
    assert 0.03 < rejected[0] / simulations < 0.07 and rejected[1] / simulations > 0.09, (
        rejected / simulations
    )
    assert 0.93 < covered / simulations < 0.97


def test_the_corrected_t_agrees_with_scikit_learns_example():
    # Statistical comparison of models using grid search: t 0.750, one-sided p 0.227; uncorrected
    # 2.611 and 0.005.
    x, y = make_moons(noise=0.352, random_state=1, n_samples=100)
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    rbf, linear = (
        cross_val_score(SVC(kernel=k), x, y, cv=folds, scoring="roc_auc") for k in ("rbf", "linear")
    )
    found = compare.corrected_resampled_t(rbf - linear, test_share=1 / 9)
    assert round(found.t, 3) == 0.750 and round(found.p / 2, 3) == 0.227 and found.df == 99
    plain = compare.corrected_resampled_t(rbf - linear, test_share=0)
    assert round(plain.t, 3) == 2.611 and round(plain.p / 2, 3) == 0.005


def test_the_corrected_t_is_the_t_test_with_a_wider_standard_error():
    values = np.random.default_rng(0).normal(0.02, 0.05, 15)
    plain, wanted = (
        compare.corrected_resampled_t(values, test_share=0),
        stats.ttest_1samp(values, 0),
    )
    interval = wanted.confidence_interval(0.95)
    got = (plain.mean, plain.low, plain.high, plain.t, plain.p, plain.df)
    assert got == pytest.approx(
        (values.mean(), interval.low, interval.high, wanted.statistic, wanted.pvalue, 14), rel=1e-9
    )
    found = compare.corrected_resampled_t(values, test_share=0.25)
    wider = math.sqrt(1 + 15 / 4)
    assert found.t == pytest.approx(wanted.statistic / wider, rel=1e-9)
    assert found.high - found.low == pytest.approx(wider * (interval.high - interval.low), rel=1e-9)
    # By hand: mean 2, s² 1, se = sqrt((1/3 + 1/2) 1).
    assert compare.corrected_resampled_t([1, 2, 3], test_share=0.5).t == pytest.approx(
        2 / math.sqrt(5 / 6)
    )


def test_the_corrected_t_without_variance():
    nothing = compare.corrected_resampled_t(np.zeros(5), test_share=0.25)
    assert (nothing.mean, nothing.low, nothing.high, nothing.p) == (0, 0, 0, 1)
    for values, reason in (
        (np.full(5, 0.1), "equal"),
        ([0.1, np.nan, 0.2], "1 of 3 folds"),
        ([0.1], "two folds"),
        ([], "two folds"),
    ):
        found = compare.corrected_resampled_t(values, test_share=0.25)
        assert math.isnan(found.p) and math.isnan(found.low) and reason in found.undefined


def test_the_corrected_t_keeps_its_level_where_the_naive_one_does_not():
    # Two learners that predict means of two like samples: no difference in truth; 5 folds, 6
    # repeats, one sample of data.
    rng, n, simulations, rejected = np.random.default_rng(1), 60, 600, np.zeros(2)
    for _ in range(simulations):
        x, difference = rng.standard_normal((n, 2)), []
        for _ in range(6):
            fold = rng.permutation(n) % 5
            for k in range(5):
                a, b = np.mean((x[fold == k] - x[fold != k].mean(axis=0)) ** 2, axis=0)
                difference.append(a - b)
        rejected += [
            compare.corrected_resampled_t(difference, test_share=s).p < 0.05 for s in (1 / 4, 0.0)
        ]
    assert 0.03 < rejected[0] / simulations < 0.07 and rejected[1] / simulations > 0.3, (
        rejected / simulations
    )


def test_where_two_patients_cancel_nothing_follows():
    """Each has positives and negatives, and they add the same: a variance of 0, not of rounding."""
    label = np.array([1, 1, 0, 0, 0, 1])
    a = np.array([-0.57, -0.687, 0.103, -0.626, -1.096, -0.117])
    b = np.array([0.682, 1.257, -0.392, -0.124, -0.552, -0.366])
    patient = np.array([0, 0, 2, 2, 0, 2])
    found = compare.delong(label, a, b, patient=patient)
    assert found.undefined == "the variance of the difference is 0"
    assert found.difference == pytest.approx(found.auc[0] - found.auc[1])
    assert all(math.isnan(x) for x in (found.low, found.high, found.p))
    # One score whose two patients cancel has no interval; a constant one is certainly at 0.5.
    alone = compare.delong(np.array([1, 0, 1, 0]), np.array([1, 0, 2, 1]), patient=[0, 0, 1, 1])
    assert alone.covariance[0, 0] == 0 and 0.5 < alone.auc[0] < 1
    assert np.isnan(alone.auc_low[0]) and "cancels" in alone.undefined
    constant = compare.delong(label, np.zeros(6), patient=patient)
    assert (constant.auc_low[0], constant.auc_high[0], constant.undefined) == (0.5, 0.5, "")


def test_the_variance_of_patients_is_obuchowskis_and_never_negative():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(6, 14))
        label, patient = np.arange(n) % 2 == 0, rng.integers(0, 4, n)
        score = rng.normal(size=n).round(1)
        found = compare.delong(label, score, patient=patient)
        if min(len(set(patient[label])), len(set(patient[~label]))) < 2:
            continue
        won = np.sign(score[label][:, None] - score[~label][None]) / 2 + 0.5
        v10, v01 = won.mean(axis=1) - won.mean(), won.mean(axis=0) - won.mean()
        here = np.unique(patient)
        a = np.array([v10[patient[label] == unit].sum() for unit in here]) / label.sum()
        b = np.array([v01[patient[~label] == unit].sum() for unit in here]) / (~label).sum()
        ten, one, both = (len(set(u)) for u in (patient[label], patient[~label], patient))
        expected = ten / (ten - 1) * a @ a + one / (one - 1) * b @ b + 2 * both / (both - 1) * a @ b
        assert found.covariance[0, 0] == pytest.approx(expected, abs=1e-12)
        assert found.covariance[0, 0] >= 0


def test_identical_arms_have_a_mid_p_of_1():
    right = np.array([True, False, True, True])
    found = compare.mcnemar(right, right)
    assert (found.p, found.p_mid, found.difference) == (1, 1, 0)
    assert found.low < 0 < found.high


def test_arrays_that_do_not_fit_are_refused():
    for call, match in (
        (lambda: compare.delong([0, 1, 2], [1, 2, 3]), "label"),
        (lambda: compare.delong([0, 1], [1, 2, 3]), "score"),
        (lambda: compare.delong([0, 1], [1, 2], patient=[1]), "patient"),
        (lambda: compare.delong([0, 1], [1, 2], level=95), "between 0 and 1"),
        (lambda: compare.mcnemar([0, 1], [1]), "correct_b"),
        (lambda: compare.corrected_resampled_t([0.1, 0.2], test_share=-1), "n_test / n_train"),
    ):
        with pytest.raises(UserError, match=match):
            call()
