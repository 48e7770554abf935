"""Curves against scikit-learn, statsmodels, published numbers and the bootstrap they stand for;
sentences word by word."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from medtl.errors import UserError
from medtl.evaluation import curves


def case(seed, n=300, decimals=None):
    rng = np.random.default_rng(seed)
    label = rng.random(n) < 0.3
    probability = 1 / (1 + np.exp(-(1.5 * label - 1 + rng.standard_normal(n))))
    return label, probability if decimals is None else np.round(probability, decimals)


@pytest.mark.parametrize("decimals", [None, 1])
def test_roc_and_precision_recall_are_scikit_learns(decimals):
    label, probability = case(0, decimals=decimals)
    roc = curves.roc(label, probability, points=10_000)
    np.testing.assert_array_equal([roc.x, roc.y], sk.roc_curve(label, probability)[:2])
    pr = curves.precision_recall(label, probability, points=10_000)
    precision, recall, _ = sk.precision_recall_curve(label, probability, drop_intermediate=True)
    np.testing.assert_array_equal([pr.x[1:], pr.y[1:]], [recall[-2::-1], precision[-2::-1]])
    assert pr.x[0] == 0 and pr.y[0] == precision[-2]


@pytest.mark.parametrize("draw", [curves.roc, curves.precision_recall])
def test_a_thinned_curve_keeps_its_ends_and_stays_near(draw):
    label, probability = case(1, n=20_000)
    whole, thin = draw(label, probability, points=10**6), draw(label, probability, points=200)
    assert 100 < len(thin.x) <= 200 < len(whole.x)
    points, kept = set(zip(whole.x, whole.y, strict=True)), list(zip(thin.x, thin.y, strict=True))
    assert (
        set(kept) <= points
        and kept[0] == (whole.x[0], whole.y[0])
        and kept[-1] == (whole.x[-1], whole.y[-1])
    )
    length = np.sum(np.abs(np.diff(whole.x)) + np.abs(np.diff(whole.y)))
    away = np.abs(whole.x[:, None] - thin.x) + np.abs(whole.y[:, None] - thin.y)
    assert away.min(axis=1).max() <= length / 199 + 1e-12
    if draw is curves.roc:
        assert sk.auc(thin.x, thin.y) == pytest.approx(
            sk.roc_auc_score(label, probability), abs=1e-3
        )


def test_the_area_of_the_mean_roc_is_the_mean_auroc():
    # 100 negatives in each cell and no ties: the curves are stairs whose steps are at the grid's
    # places.
    rng, cells = np.random.default_rng(0), []
    for positives in (37, 50, 80):
        label = np.r_[np.zeros(100, bool), np.ones(positives, bool)]
        cells.append((label, rng.standard_normal(len(label)) + label))
    mean = curves.mean_roc(cells, points=101)
    assert (mean.x[0], mean.y[0], mean.x[-1], mean.y[-1]) == (0, 0, 1, 1) and np.all(
        np.diff(mean.y) >= 0
    )
    area = np.mean(mean.y[1:-1])
    assert area == pytest.approx(np.mean([sk.roc_auc_score(*cell) for cell in cells]), rel=1e-12)
    copies = curves.mean_roc([cells[0]] * 3)
    np.testing.assert_allclose(copies.y, curves.mean_roc(cells[:1]).y, rtol=1e-12)


def test_a_tied_score_is_a_straight_line():
    label = np.r_[np.zeros(10, bool), np.ones(10, bool)]
    mean = curves.mean_roc([(label, np.zeros(20))])
    np.testing.assert_allclose(mean.x, mean.y, atol=1e-12)
    np.testing.assert_allclose(
        curves.mean_precision_recall([(label, np.zeros(20))]).y, 0.5, rtol=1e-12
    )


def test_precision_is_interpolated_as_davis_and_goadrich_print_it():
    # 20 positives, 2000 negatives, from TP 5, FP 5 to TP 10, FP 30: precision .5 .375 .318 .286
    # .265 .250 (their table 1).
    score = np.r_[
        np.full(5, 3),
        np.full(5, 2),
        np.full(10, 1),
        np.full(5, 3),
        np.full(25, 2),
        np.full(1970, 1),
    ]
    label = np.r_[np.ones(20, bool), np.zeros(2000, bool)]
    curve = curves.mean_precision_recall([(label, score)], points=21)
    np.testing.assert_allclose(curve.x[5:11], [0.25, 0.3, 0.35, 0.4, 0.45, 0.5])
    np.testing.assert_allclose(curve.y[5:11], [0.5, 0.375, 0.318, 0.286, 0.265, 0.250], atol=5e-4)
    np.testing.assert_allclose(curve.y[:6], 0.5)
    assert curve.y[-1] == pytest.approx(20 / 2020)


def test_the_mean_precision_passes_through_the_thresholds():
    label, probability = case(2, n=150)
    positives = int(label.sum())
    curve = curves.mean_precision_recall([(label, probability)], points=positives + 1)
    order = np.argsort(-probability)
    found = np.flatnonzero(
        label[order]
    )  # the highest threshold with k positives ends at the k-th of them
    np.testing.assert_allclose(curve.y[1:], np.arange(1, positives + 1) / (found + 1), rtol=1e-9)
    two = curves.mean_precision_recall([(label, probability), (label, -probability)])
    one = [curves.mean_precision_recall([(label, s * probability)]).y for s in (1, -1)]
    np.testing.assert_allclose(two.y, np.mean(one, axis=0), rtol=1e-12)


def test_curves_that_do_not_exist_say_why():
    none = np.zeros(3, bool)
    for draw in (curves.roc, curves.precision_recall):
        assert draw(none, [0.1, 0.2, 0.3]).undefined == "every example is negative" and not len(
            draw(none, np.ones(3)).x
        )
        assert (
            "NaN in 1 of 2" in draw([0, 1], [0.1, np.nan]).undefined
            and "no example" in draw([], []).undefined
        )
    for mean in (curves.mean_roc, curves.mean_precision_recall):
        assert (
            "in 1 of 2 splits every example is negative"
            in mean([([0, 1], [1, 2]), (none, np.ones(3))]).undefined
        )
        assert "no split" in mean([]).undefined


def test_net_benefit_is_its_definition():
    label, probability = case(3, decimals=2)
    model, treat_all, none = curves.net_benefit(label, probability)
    for i, t in enumerate(curves.THRESHOLDS):
        (_, fp), (_, tp) = sk.confusion_matrix(label, probability >= t)
        assert model[i] == pytest.approx(tp / 300 - fp / 300 * t / (1 - t), rel=1e-9, abs=1e-12)
        assert treat_all[i] == pytest.approx(
            label.mean() - (1 - label.mean()) * t / (1 - t), abs=1e-12
        )
    assert not none.any()
    perfect, *_ = curves.net_benefit(label, label.astype(float))
    np.testing.assert_allclose(perfect, label.mean(), rtol=1e-12)
    prevalence = label.mean()
    np.testing.assert_allclose(
        curves.net_benefit(label, probability, [0, prevalence])[1], [prevalence, 0], atol=1e-12
    )


def clustered_cells(rng, patients=60, repeats=3):
    """Cells as of repeated 2-fold cross-validation: each patient's images in one fold of each
    repeat."""
    size = rng.integers(1, 6, patients)
    patient = np.repeat(np.arange(patients), size)
    label = (rng.random(patients) < 0.4)[patient]
    effect = rng.standard_normal(patients)[patient]
    cells = []
    for _ in range(repeats):
        fold = (rng.permutation(patients) % 2)[patient]
        score = 1.5 * label - 0.7 + effect + 0.5 * rng.standard_normal(len(patient))
        cells += [
            (label[fold == k], 1 / (1 + np.exp(-score[fold == k])), patient[fold == k])
            for k in (0, 1)
        ]
    return cells


def test_the_net_benefits_interval_is_the_patient_bootstraps():
    rng, thresholds = np.random.default_rng(0), (0.2, 0.5, 0.7)
    cells = clustered_cells(rng, patients=400)
    found = curves.decision_curve(cells, thresholds)
    single = [curves.net_benefit(y, p, thresholds) for y, p, _ in cells]
    np.testing.assert_allclose(
        [found.model, found.all, found.none], np.mean(single, axis=0), rtol=1e-12
    )
    counts = rng.multinomial(400, np.full(400, 1 / 400), 4000)
    draws = np.zeros((4000, 3))
    for y, p, patient in cells:
        for i, t in enumerate(thresholds):
            benefit = (p >= t) * np.where(y, 1.0, -t / (1 - t))
            total, n = np.bincount(patient, benefit, 400), np.bincount(patient, minlength=400)
            draws[:, i] += (counts @ total) / (counts @ n) / len(cells)
    half = stats.norm.ppf(0.975) * draws.std(axis=0)
    np.testing.assert_allclose(found.high - found.model, half, rtol=0.05)
    np.testing.assert_allclose(found.model - found.low, half, rtol=0.05)


def test_without_clusters_the_net_benefits_interval_is_that_of_a_mean():
    label, probability = case(5, n=12)
    benefit = (probability >= 0.25) * np.where(label, 1.0, -1 / 3)
    found = curves.decision_curve([(label, probability, np.arange(12) + 7)], [0.25])
    half = stats.norm.ppf(0.975) * stats.sem(benefit)
    assert (found.model[0], found.high[0]) == pytest.approx(
        (benefit.mean(), benefit.mean() + half), rel=1e-9
    )


def test_the_net_benefit_at_a_prevalence_weighs_the_classes():
    label, probability = case(5, n=40)
    q, t = 0.02, np.array([0.1, 0.4])
    sensitivity = [(probability[label] >= x).mean() for x in t]
    false = np.array([(probability[~label] >= x).mean() for x in t])
    model, treat_all, _ = curves.net_benefit(label, probability, t, prevalence=q)
    np.testing.assert_allclose(model, q * np.array(sensitivity) - (1 - q) * false * t / (1 - t))
    np.testing.assert_allclose(treat_all, q - (1 - q) * t / (1 - t))
    own, stated = (
        curves.net_benefit(label, probability, t, prevalence=x) for x in (0.0, label.mean())
    )
    np.testing.assert_allclose(own[0], stated[0])
    # The variance of two shares of known weights.
    found = curves.decision_curve([(label, probability, np.arange(40))], t, prevalence=q)
    parts = zip((q, 1 - q), (1, t / (1 - t)), (sensitivity, false), (label, ~label), strict=True)
    variance = sum((w * v) ** 2 * np.array(s) * (1 - np.array(s)) / c.sum() for w, v, s, c in parts)
    half = stats.norm.ppf(0.975) * np.sqrt(variance * 40 / 39)
    np.testing.assert_allclose(found.high - found.model, half, rtol=1e-9)
    one_class = curves.decision_curve([([1, 1], [0.2, 0.7], [0, 1])], t, prevalence=q)
    assert np.isnan(one_class.model).all() and "lacks a class" in one_class.undefined


def test_the_net_benefits_interval_covers():
    rng, t, simulations, covered = np.random.default_rng(1), 0.4, 600, 0
    treated = [
        stats.norm.sf((math.log(t / (1 - t)) - shift) / math.sqrt(1.25)) for shift in (0.8, -0.7)
    ]
    truth = 0.4 * treated[0] - 0.6 * treated[1] * t / (1 - t)
    for _ in range(simulations):
        found = curves.decision_curve(clustered_cells(rng, patients=100, repeats=1), [t])
        covered += found.low[0] < truth < found.high[0]
    assert 0.93 < covered / simulations < 0.97, covered / simulations


def test_net_benefit_where_it_is_undefined_or_refused():
    undefined = curves.decision_curve([([0, 1], [0.2, np.nan], [0, 1])], [0.5])
    assert (
        np.isnan(undefined.model).all()
        and np.isnan(undefined.low).all()
        and "NaN" in undefined.undefined
    )
    one = curves.decision_curve([([0, 1], [0.2, 0.7], [4, 4])], [0.5])
    assert one.model[0] == 0.5 and np.isnan(one.low).all() and "one patient" in one.undefined
    for call in (
        lambda: curves.net_benefit([0, 1], [0.1, 0.2], [1.0]),
        lambda: curves.net_benefit([0, 2], [0.1, 0.2]),
        lambda: curves.net_benefit([0, 1], [0.1]),
        lambda: curves.decision_curve([([0, 1], [0.1, 0.2], [-1, 0])]),
    ):
        with pytest.raises(UserError):
            call()


def test_reliability_is_wilsons_interval_in_bins_of_equal_numbers():
    label, probability = case(4, n=203)
    found = curves.reliability(label, probability, bins=10)
    assert found.n.sum() == 203 and len(found.n) == 10 and found.n.max() - found.n.min() <= 1
    assert found.n @ found.observed == pytest.approx(label.sum()) and np.all(
        np.diff(found.predicted) > 0
    )
    assert found.n @ found.predicted == pytest.approx(probability.sum())
    low, high = proportion_confint(found.n * found.observed, found.n, method="wilson")
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-9, atol=1e-12)
    own = curves.reliability(label, probability, bins=10, patient=np.arange(203))
    inside = (found.observed > 0) & (found.observed < 1)
    np.testing.assert_allclose(own.low[inside], found.low[inside], rtol=1e-9)
    copies = curves.reliability(
        np.repeat(label, 5),
        np.repeat(probability, 5),
        bins=10,
        patient=np.repeat(np.arange(203), 5),
    )
    np.testing.assert_allclose(
        [copies.low, copies.high], [found.low, found.high], rtol=1e-9, atol=1e-12
    )


def test_patients_never_make_a_bin_worth_more_than_its_examples():
    label, probability, patient = np.tile([0, 1], 20), np.full(40, 0.5), np.repeat(np.arange(20), 2)
    alike, plain = (curves.reliability(label, probability, patient=p) for p in (patient, None))
    assert (alike.low[0], alike.high[0]) == (plain.low[0], plain.high[0])
    certain = curves.reliability(np.ones(40), probability, patient=patient)  # 20 patients of 20
    assert certain.low[0] == pytest.approx(proportion_confint(20, 20, method="wilson")[0], rel=1e-9)


def test_equal_probabilities_share_a_bin():
    label = np.arange(100) % 3 == 0
    found = curves.reliability(label, np.repeat([0.1, 0.6, 0.9], [70, 10, 20]), bins=10)
    np.testing.assert_allclose(found.predicted, [0.1, 0.6, 0.9])
    assert found.n.tolist() == [70, 10, 20]
    assert len(curves.reliability(label, np.full(100, 0.3)).n) == 1
    assert (
        curves.reliability([], []).undefined
        and "NaN" in curves.reliability([0, 1], [0.1, np.nan]).undefined
    )
