"""Every metric against scikit-learn and statsmodels with sample weights; rules of thresholds."""

import math
import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from random_predictions import random_case
from sklearn import metrics as sk

from medtl.errors import UserError
from medtl.evaluation import metrics
from medtl.evaluation.metrics import EvaluationSet, Options, Scorer, kernels
from medtl.evaluation.metrics import ranking as ranks

NAMES = ("a", "b", "c", "d")


def evaluate(label, p, weight=None, *, threshold=0.5, patient=None, **options):
    """name -> value of one set of predictions."""
    label, p = np.asarray(label), np.asarray(p, float)
    patient = np.arange(len(label)) if patient is None else patient
    scorer = Scorer(
        EvaluationSet(label, p, patient, threshold),
        classes=NAMES[: p.shape[1]],
        options=Options(**options),
    )
    counts = np.ones(scorer.units) if weight is None else weight
    return dict(zip(scorer.names, scorer(np.asarray(counts)[None])[0], strict=True))


def explain(label, p, **options):
    label, p = np.asarray(label), np.asarray(p, float)
    threshold = options.pop("threshold", 0.5)
    cell = EvaluationSet(label, p, np.arange(len(label)), threshold)
    scorer = Scorer(cell, classes=NAMES[: p.shape[1]], options=Options(**options))
    return scorer.explain(scorer(np.ones((1, scorer.units)))[0])


def close(value, wanted, rtol=1e-9):
    assert value == pytest.approx(wanted, rel=rtol, abs=rtol)


def two(score):
    score = np.asarray(score, float)
    return np.stack([1 - score, score], axis=1)


def best_corner(y, score, weight, *, at, of):
    """The best point of scikit-learn's ROC curve: sensitivity at a specificity, or the reverse."""
    fpr, tpr, _ = sk.roc_curve(y, score, sample_weight=weight, drop_intermediate=False)
    fixed, free = (1 - fpr, tpr) if of == "sensitivity" else (tpr, 1 - fpr)
    return free[fixed >= at - 1e-12].max()


def calibration(y, score, weight, *, free):
    """Intercept and slope by statsmodels; with the slope at 1 if not free."""
    logit = np.log(score) - np.log1p(-score)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if free:
            model = sm.GLM(
                y, sm.add_constant(logit), family=sm.families.Binomial(), freq_weights=weight
            )
            return model.fit(tol=1e-14, maxiter=200).params
        model = sm.GLM(
            y, np.ones(len(y)), family=sm.families.Binomial(), freq_weights=weight, offset=logit
        )
        return model.fit(tol=1e-14, maxiter=200).params


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("n", [60, 400])
def test_one_label_agrees_with_scikit_learn(k, decimals, n):
    label, p, w = random_case(n + k, n, k, decimals)
    got = evaluate(label, p, w, ordinal=True, specificity=0.8, sensitivity=0.7)
    predicted, classes = p.argmax(axis=1), range(k)
    if k == 2:  # the positive class is called from the threshold on, also at a tie
        predicted = (p[:, 1] >= 0.5).astype(int)
    close(got["accuracy"], sk.accuracy_score(label, predicted, sample_weight=w))
    close(got["balanced_accuracy"], sk.balanced_accuracy_score(label, predicted, sample_weight=w))
    for average in ("macro", "weighted"):
        close(got[f"f1_{average}"], sk.f1_score(label, predicted, average=average, sample_weight=w))
    close(
        got["auroc"],
        sk.roc_auc_score(label, p[:, 1] if k == 2 else p, multi_class="ovr", sample_weight=w),
    )
    of = (label, p[:, 1]) if k == 2 else (np.eye(k)[label], p)
    close(got["auprc"], sk.average_precision_score(*of, sample_weight=w))
    close(got["mcc"], sk.matthews_corrcoef(label, predicted, sample_weight=w))
    close(
        got["kappa_quadratic"],
        sk.cohen_kappa_score(label, predicted, weights="quadratic", sample_weight=w),
    )
    close(got["brier"], sk.brier_score_loss(label, p, sample_weight=w, labels=list(classes)))
    close(got["loss"], sk.log_loss(label, p, sample_weight=w))
    chosen = [1] if k == 2 else classes
    for name, at, of in (
        ("sensitivity_at_specificity", 0.8, "sensitivity"),
        ("specificity_at_sensitivity", 0.7, ""),
    ):
        close(
            got[name], np.mean([best_corner(label == c, p[:, c], w, at=at, of=of) for c in chosen])
        )
    called = (p[:, 1] >= 0.5).astype(int) if k == 2 else predicted
    scored = {c: (label == c, called == c) for c in chosen}
    mean = {
        "sensitivity": np.mean([sk.recall_score(*s, sample_weight=w) for s in scored.values()]),
        "specificity": np.mean(
            [sk.recall_score(*s, pos_label=False, sample_weight=w) for s in scored.values()]
        ),
        "ppv": np.mean([sk.precision_score(*s, sample_weight=w) for s in scored.values()]),
        "npv": np.mean(
            [sk.precision_score(*s, pos_label=False, sample_weight=w) for s in scored.values()]
        ),
    }
    for name, wanted in mean.items():
        close(got[name], wanted)


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_calibration_line_agrees_with_statsmodels(decimals, weighted):
    label, p, w = random_case(2, 150, 2, decimals)
    w = w if weighted else np.ones_like(w)
    got = evaluate(label, p, w)
    close(got["calibration_slope"], calibration(label == 1, p[:, 1], w, free=True)[1])
    close(got["calibration_intercept"], calibration(label == 1, p[:, 1], w, free=False)[0])


def test_several_classes_have_no_mean_calibration_line():
    label, p, w = random_case(3, 150, 3, None)
    assert not [name for name in evaluate(label, p, w) if name.startswith("calibration")]


def test_several_labels_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    label, p = (
        rng.integers(0, 2, (120, 3)).astype(float),
        np.round(rng.uniform(0.01, 0.99, (120, 3)), 2),
    )
    label[rng.random((120, 3)) < 0.2] = np.nan
    label[5] = np.nan
    w = rng.uniform(0.1, 2, 120)
    got = evaluate(label, p, w)
    seen = [~np.isnan(column) for column in label.T]
    columns = [(label[s, j] == 1, p[s, j] > 0.5, p[s, j], w[s]) for j, s in enumerate(seen)]
    close(
        got["sensitivity"],
        np.mean([sk.recall_score(y, c, sample_weight=v) for y, c, _, v in columns]),
    )
    close(
        got["npv"],
        np.mean(
            [sk.precision_score(y, c, pos_label=False, sample_weight=v) for y, c, _, v in columns]
        ),
    )
    close(
        got["mcc"], np.mean([sk.matthews_corrcoef(y, c, sample_weight=v) for y, c, _, v in columns])
    )
    close(
        got["brier"],
        np.mean([sk.brier_score_loss(y, s, sample_weight=v) for y, _, s, v in columns]),
    )
    share = [np.sum(v * y) for y, _, _, v in columns]
    f1 = [sk.f1_score(y, c, sample_weight=v) for y, c, _, v in columns]
    close(got["f1_weighted"], np.average(f1, weights=share))


@pytest.mark.parametrize("positive", [0, 1])
def test_the_positive_class_of_two_and_its_threshold(positive):
    label, p, w = random_case(8, 90, 2, 2)
    got = evaluate(label, p, w, positive=positive, threshold=0.3)
    y, score = label == positive, p[:, positive]
    close(got["sensitivity"], sk.recall_score(y, score >= 0.3, sample_weight=w))
    close(got["specificity"], sk.recall_score(y, score >= 0.3, pos_label=False, sample_weight=w))
    close(got["ppv"], sk.precision_score(y, score >= 0.3, sample_weight=w))
    close(got["sensitivity_at_specificity"], best_corner(y, score, w, at=0.9, of="sensitivity"))
    close(got["auroc"], sk.roc_auc_score(label, p[:, 1], sample_weight=w))
    close(got["calibration_slope"], calibration(y, score, w, free=True)[1])
    close(got["auprc"], sk.average_precision_score(y, score, sample_weight=w))
    called = np.where(score >= 0.3, positive, 1 - positive)
    close(got["accuracy"], sk.accuracy_score(label, called, sample_weight=w))
    close(got["balanced_accuracy"], (got["sensitivity"] + got["specificity"]) / 2)
    close(got["f1_macro"], sk.f1_score(label, called, average="macro", sample_weight=w))
    close(got["mcc"], sk.matthews_corrcoef(label, called, sample_weight=w))
    same = evaluate(label, p, w)
    assert all(got[n] == same[n] for n in ("auroc", "brier", "loss"))


def test_predictive_values_at_a_prevalence():
    # Sensitivity 0.8, specificity 0.9, one in a hundred ill: 0.008 / (0.008 + 0.099).
    label, score = (
        np.repeat([1, 1, 0, 0], [8, 2, 9, 1]),
        np.repeat([0.9, 0.1, 0.1, 0.9], [8, 2, 9, 1]),
    )
    got = evaluate(label, two(score), prevalence=0.01)
    close(got["ppv"], 0.008 / 0.107)
    close(got["npv"], 0.891 / 0.893)
    own = evaluate(label, two(score))
    close(own["ppv"], 8 / 9)
    close(evaluate(label, two(score), prevalence=0.5)["ppv"], own["ppv"])


def test_equal_scores_make_one_corner():
    # All equal: call none or call all.
    got = evaluate([1, 1, 0, 0], two([0.4] * 4))
    assert got["sensitivity_at_specificity"] == got["specificity_at_sensitivity"] == 0
    assert got["auroc"] == 0.5 and got["auprc"] == 0.5
    # Nine of ten negatives are 0.9 of them, whatever 1 - 0.9 is in binary.
    label, score = np.repeat([0, 1, 0], [9, 3, 1]), np.repeat([0.1, 0.5, 0.9], [9, 3, 1])
    assert evaluate(label, two(score))["sensitivity_at_specificity"] == 1


def test_a_whole_weight_is_that_many_copies():
    label, p, _ = random_case(4, 80, 3, 1)
    counts = np.random.default_rng(0).integers(0, 4, 80)
    weighted = evaluate(label, p, counts)
    row = np.repeat(np.arange(80), counts)
    for name, value in evaluate(label[row], p[row]).items():
        if name != "ece":  # its bins are those of the whole
            close(weighted[name], value)


def test_examples_count_as_often_as_their_patient():
    label, p, _ = random_case(5, 120, 2)
    patient = np.random.default_rng(1).integers(0, 30, 120)
    counts = np.random.default_rng(2).integers(0, 3, (5, 30)).astype(float)
    scorer = Scorer(EvaluationSet(label, p, patient), classes=("a", "b"), options=Options())
    for row, of_patients in zip(scorer(counts), counts, strict=True):
        wanted = evaluate(label, p, of_patients[patient])
        np.testing.assert_allclose(row, list(wanted.values()), rtol=1e-9, atol=1e-9)


def test_the_order_of_the_examples_does_not_matter():
    label, p, w = random_case(6, 150, 2, 1)
    order = np.random.default_rng(3).permutation(150)
    one, other = evaluate(label, p, w), evaluate(label[order], p[order], w[order])
    for name, value in one.items():
        close(other[name], value, 1e-12)


@pytest.mark.parametrize(
    "label, score, reasons",
    [
        (
            [1, 1, 1],
            [0.2, 0.6, 0.7],
            dict.fromkeys(("auroc", "specificity", "calibration_slope"), "the label 'a'"),
        ),
        (
            [0, 0, 0],
            [0.2, 0.6, 0.7],
            dict.fromkeys(("sensitivity", "auprc", "balanced_accuracy"), "the label 'b'"),
        ),
        (
            [0, 0, 1],
            [0.2, 0.3, 0.4],
            {"ppv": "no example is called 'b'", "mcc": "every prediction is the same"},
        ),
        ([0, 0, 1, 1], [0.2, 0.3, 0.6, 0.7], {"calibration_slope": "without overlap"}),
        ([0, 0, 1, 1], [0.2, 0.6, 0.6, 0.7], {"calibration_slope": "without overlap"}),
        ([0, 1, 0, 1], [0.4, 0.4, 0.4, 0.4], {"calibration_slope": "all the same"}),
        ([], [], dict.fromkeys(("accuracy", "loss", "ece"), "no labelled example")),
    ],
)
def test_what_is_undefined_is_nan_and_says_why(label, score, reasons):
    got, said = (
        evaluate(np.array(label, int), two(score)),
        explain(np.array(label, int), two(score)),
    )
    assert set(said) == {name for name, value in got.items() if math.isnan(value)}
    for name, reason in reasons.items():
        assert reason in said[name]


def test_without_a_threshold_no_metric_that_needs_one_is_defined():
    label, p, _ = random_case(9, 40, 2)
    got, said = evaluate(label, p, threshold=math.nan), explain(label, p, threshold=math.nan)
    names = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "mcc")
    names += ("sensitivity", "specificity", "ppv", "npv")
    assert said == dict.fromkeys(names, "there is no operating threshold")
    assert got["auroc"] > 0


def test_a_label_no_example_has_is_left_out_of_the_mean():
    label = np.array([[1, 0], [0, 0], [1, 0], [0, 0.0]])
    p = np.array([[0.9, 0.1], [0.6, 0.2], [0.4, 0.3], [0.3, 0.2]])
    got = evaluate(label, p)
    close(got["auroc"], sk.roc_auc_score(label[:, 0], p[:, 0]))
    assert "undefined for each class" in explain(label[:, 1:], p[:, 1:])["auroc"]


def test_newton_agrees_where_classes_nearly_separate():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 200)
    score = 1 / (1 + np.exp(-(rng.normal(size=400) + 4 * label - 2) / 3))
    label[[0, 399]] = 1, 0
    close(
        evaluate(label, two(score))["calibration_slope"],
        calibration(label, score, np.ones(400), free=True)[1],
    )
    sure = np.where(label == 1, 1.0, 0.0)
    sure[[3, 250]] = 1 - sure[[3, 250]]  # clipped to eps: slope by hand
    table = np.array([[np.sum((label == i) & (sure == j)) for j in (0, 1)] for i in (0, 1)])
    eps = float(np.finfo(np.float32).eps)
    wanted = np.log(table[1, 1] * table[0, 0] / table[1, 0] / table[0, 1]) / (
        2 * np.log((1 - eps) / eps)
    )
    close(evaluate(label, two(sure))["calibration_slope"], wanted)


def test_bins_hold_the_same_mass_and_keep_equal_scores_together():
    score = np.random.default_rng(0).random(1000)
    assert np.bincount(kernels.equal_mass_bins(score, 8)).tolist() == [125] * 8
    assert np.all(np.diff(kernels.equal_mass_bins(np.sort(score), 8)) >= 0)
    coarse = np.round(score, 1)
    place = kernels.equal_mass_bins(coarse, 8)
    assert all(len(set(place[coarse == value])) == 1 for value in np.unique(coarse))


def test_the_calibration_error_is_kumars_debiased_one():
    rng = np.random.default_rng(1)
    n, positive, predicted = (
        np.array([40.0, 60, 50]),
        np.array([5.0, 30, 41]),
        np.array([8.0, 27, 43]),
    )
    share, mean = positive / n, predicted / n
    plain = np.sum(n * np.abs(share - mean)) / n.sum()
    again = rng.normal(share, np.sqrt(share * (1 - share) / n), (500_000, 3))
    excess = np.mean(np.sum(n * np.abs(again - mean), axis=1)) / n.sum() - plain
    close(kernels.expected_calibration_error(n, positive, predicted), plain - excess, 3e-4)
    # No noise to take off where every share is 0 or 1.
    close(kernels.expected_calibration_error(n, n * [0, 1, 1], predicted), (8 + 33 + 7) / 150)
    assert kernels.expected_calibration_error(n, predicted, predicted) == 0
    with np.errstate(invalid="ignore"):
        assert math.isnan(kernels.expected_calibration_error(*np.zeros((3, 3))))


def test_less_calibration_error_is_left_of_a_calibrated_model():
    rng = np.random.default_rng(2)
    plain, debiased = [], []
    for _ in range(60):
        p = rng.random(300)
        y = (rng.random(300) < p).astype(int)
        place = kernels.equal_mass_bins(p, 15)
        n, positive, predicted = (np.bincount(place, v) for v in (np.ones(300), y, p))
        plain.append(np.sum(np.abs(positive - predicted)) / 300)
        debiased.append(evaluate(y, two(p))["ece"])
        close(debiased[-1], kernels.expected_calibration_error(n, positive, predicted))
    assert np.mean(debiased) < 0.65 * np.mean(plain)


def test_thresholds_by_hand():
    label = np.array([0, 0, 1, 0, 1, 1], bool)
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
    # Two corners of the ROC curve are equally far from the diagonal; the one of higher specificity
    # is taken.
    assert metrics.operating_threshold(label, score, rule="youden") == pytest.approx(0.5)
    assert metrics.operating_threshold(label, score, rule="sensitivity=0.95") == pytest.approx(0.25)
    assert metrics.operating_threshold(label, score, rule="sensitivity=0.6") == pytest.approx(0.5)
    assert metrics.operating_threshold(label, score, rule="specificity=0.6") == pytest.approx(0.25)
    assert metrics.operating_threshold(label, score, rule="specificity=0.9") == pytest.approx(0.5)
    assert metrics.operating_threshold(label, score, rule="0.35") == 0.35


@pytest.mark.parametrize("rule", ["youden", "sensitivity=0.8", "specificity=0.8"])
@pytest.mark.parametrize("decimals", [1, 4])
def test_a_threshold_is_the_best_of_all(rule, decimals):
    rng = np.random.default_rng(decimals)
    label = rng.random(200) < 0.4
    score = np.round(1 / (1 + np.exp(-rng.normal(size=200) - label)), decimals)
    chosen = score >= metrics.operating_threshold(label, score, rule=rule)
    fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
    sensitivity, specificity = chosen[label].mean(), 1 - chosen[~label].mean()
    if rule == "youden":
        close(sensitivity + specificity, np.max(tpr - fpr) + 1)
    elif rule.startswith("sensitivity"):
        assert sensitivity >= 0.8
        close(specificity, np.max(1 - fpr[tpr >= 0.8]))
    else:
        assert specificity >= 0.8
        close(sensitivity, np.max(tpr[1 - fpr >= 0.8 - 1e-12]))


def test_thresholds_at_the_ends():
    worst = np.array([True, False]), np.array([0.2, 0.7])
    assert metrics.operating_threshold(*worst, rule="specificity=1") > 0.7  # none is called
    assert metrics.operating_threshold(*worst, rule="sensitivity=1") == 0.2  # all are
    close_by = np.array([False, True]), np.array([0.5, np.nextafter(0.5, 1)])
    assert metrics.operating_threshold(*close_by, rule="youden") == close_by[1][1]
    assert math.isnan(
        metrics.operating_threshold(np.ones(3, bool), np.arange(3) / 3, rule="youden")
    )


@pytest.mark.parametrize(
    "rule", ["best", "sensitivity=", "precision=0.5", "1.5", "specificity=2", "nan"]
)
def test_no_other_rule(rule):
    with pytest.raises(UserError, match="threshold rule"):
        metrics.operating_threshold(np.array([True, False]), np.array([0.1, 0.2]), rule=rule)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(label=np.array([0, 2])), "0..1"),
        (dict(label=np.array([0, -1])), "0..1"),
        (
            dict(probability=np.array([[0.5, 0.5], [math.nan, 1]])),
            r"probability\[1\] is \[nan, 1.0\]",
        ),
        (
            dict(probability=np.array([[0.5, 0.5], [-2.0, 3]])),
            r"probability\[1\] is \[-2.0, 3.0\]; .* look like logits",
        ),
        (dict(patient=np.array([0])), "differ"),
        (dict(patient=np.array([0, -1])), "patient"),
    ],
)
def test_malformed_cells_are_refused(fields, message):
    good = dict(label=np.array([0, 1]), probability=np.full((2, 2), 0.5), patient=np.array([0, 1]))
    with pytest.raises(UserError, match=message):
        EvaluationSet(**good | fields)


@pytest.mark.parametrize("options", [dict(positive=2), dict(prevalence=1.2), dict(prevalence=-0.1)])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        evaluate([0, 1], two([0.2, 0.7]), **options)
    with pytest.raises(UserError, match="ordinal"):
        evaluate(np.eye(3), np.full((3, 3), 0.3), ordinal=True)
    with pytest.raises(UserError, match="prevalence"):
        evaluate([0, 1, 2], np.full((3, 3), 1 / 3), prevalence=0.1)


def test_a_fit_that_rounding_leaves_without_curvature_is_nan_and_warns_nobody():
    # Two examples that differ by 3e-7 have a slope of their own, beside one of probability 1.
    label = np.array([0, 1, 1, 0, 0, 0, 0])
    p = [0.50573787, 0.49999978, 0.50000029, 0.49636793, 0.99788215, 1.0, 0.50000028]
    ranking = ranks.Ranking.of(label == 1, np.array(p), np.arange(7))
    counts = np.random.default_rng(0).multinomial(7, [1 / 7] * 7, size=2000).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slope = ranks.calibration_slope(ranking, ranks.Weights.of(ranking, counts))
    assert np.isnan(slope).any() and np.isfinite(slope).any() and not np.isinf(slope).any()
