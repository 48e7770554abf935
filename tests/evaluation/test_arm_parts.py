"""One arm's parts: classes against the rest, calibration of all folds together, bands of curves."""

import dataclasses

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from medtl.evaluation import analysis, arm_calibration, curves
from medtl.evaluation.bands import bands
from medtl.evaluation.metrics import EvaluationSet, Options
from medtl.evaluation.predictions import Predictions

SETTINGS = analysis.Settings(resamples=400)
THREE = ("a", "b", "c")


def softmax(z):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def drawn(n, rng, *, bias=0.0, weight=1.0, k=3, arm="net", **model):
    """Labels from a model's true probabilities, and its predictions with logits changed."""
    z = 1.5 * rng.normal(size=(n, k))
    label = (softmax(z).cumsum(axis=1) > rng.random(n)[:, None]).argmax(axis=1)
    ids = np.array([f"{model.get('fold', 0)}_{i}" for i in range(n)])
    return Predictions(arm, "test", ids, label, softmax(weight * z + bias), **model)


def test_each_class_has_its_calibration_line_where_a_mean_would_cancel():
    bias = np.array([1, -0.5, -0.5])
    one = drawn(20_000, np.random.default_rng(0), bias=bias)
    report = analysis.analyse([one], THREE, dataclasses.replace(SETTINGS, resamples=200))
    entry = report["arms"]["net"]
    per_class = entry["calibration"]["per_class"]
    found = [per_class[name]["intercept"]["value"] for name in THREE]
    for k, name in enumerate(THREE):
        p, y = one.probability[:, k], (one.label == k).astype(float)
        x = np.log(p) - np.log1p(-p)
        family = sm.families.Binomial()
        offset = sm.GLM(y, np.ones(len(y)), family=family, offset=x).fit().params[0]
        slope = sm.GLM(y, sm.add_constant(x), family=family).fit().params[1]
        assert found[k] == pytest.approx(offset, rel=1e-4)
        assert per_class[name]["slope"]["value"] == pytest.approx(slope, rel=1e-4)
        assert per_class[name]["o_e"]["value"] == pytest.approx(y.sum() / p.sum())
    assert found[0] < -1 and min(found[1:]) > 0.5 and abs(np.mean(found)) < 0.25
    assert not [m for m in entry["metrics"] if m.startswith("calibration")]
    assert len(entry["calibration"]["smooth"]) == len(entry["calibration"]["histogram"]) == 3


def test_a_flat_fold_does_not_set_the_slope():
    rng = np.random.default_rng(1)
    folds = [drawn(60, rng, k=2, fold=f, weight=0.02 if f == 3 else 1.0) for f in range(4)]
    estimate = analysis.analyse(folds, ("n", "p"), SETTINGS)["arms"]["net"]["metrics"][
        "calibration_slope"
    ]
    p, y = (
        np.concatenate(part)
        for part in zip(*((f.probability[:, 1], f.label) for f in folds), strict=True)
    )
    line = sm.Logit(y, sm.add_constant(np.log(p) - np.log1p(-p))).fit(disp=0).params
    assert estimate["value"] == pytest.approx(line[1], rel=1e-6)
    assert (
        0.3 < estimate["low"] < estimate["value"] < estimate["high"] < 2 and "std" not in estimate
    )


def test_the_metrics_of_each_class_are_those_against_the_rest():
    one = drawn(300, np.random.default_rng(2))
    found = analysis.analyse([one], THREE, SETTINGS)["arms"]["net"]["per_class"]
    guess = one.probability.argmax(axis=1)
    for k, name in enumerate(THREE):
        y, p = one.label == k, one.probability[:, k]
        hits = int(np.sum(y & (guess == k)))
        assert found[name]["auroc"]["value"] == pytest.approx(roc_auc_score(y, p))
        average = average_precision_score(y, p)
        assert found[name]["average_precision"]["value"] == pytest.approx(average)
        assert found[name]["sensitivity"]["value"] == pytest.approx(hits / y.sum())
        assert found[name]["ppv"]["value"] == pytest.approx(hits / np.sum(guess == k))
        assert found[name]["specificity"]["value"] == pytest.approx(np.mean(guess[~y] != k))
        wilson = proportion_confint(hits, y.sum(), method="wilson")
        ends = [found[name]["sensitivity"][end] for end in ("low", "high")]
        np.testing.assert_allclose(ends, wilson, atol=0.015)


def test_two_classes_have_no_table_by_class_and_several_labels_do():
    one = drawn(200, np.random.default_rng(3), k=2)
    assert analysis.analyse([one], ("n", "p"), SETTINGS)["arms"]["net"]["per_class"] == {}
    label = np.eye(3, dtype=np.float32)[drawn(200, np.random.default_rng(3)).label]
    label[:40, 0] = np.nan
    p = np.random.default_rng(4).random((200, 3))
    several = dataclasses.replace(one, label=label, probability=p)
    found = analysis.analyse([several], THREE, SETTINGS)["arms"]["net"]["per_class"]
    y, called = label[40:, 0] == 1, p[40:, 0] > 0.5
    assert found["a"]["auroc"]["value"] == pytest.approx(roc_auc_score(y, p[40:, 0]))
    assert found["a"]["sensitivity"]["value"] == pytest.approx(np.mean(called[y]))


@pytest.mark.parametrize("k", [2, 3])
def test_the_ece_of_perfect_calibration_is_that_of_simulated_labels(k):
    rng = np.random.default_rng(5)
    found, expected = [], []
    for _ in range(60):
        one = drawn(300, rng, k=k)
        data = EvaluationSet(one.label, one.probability, np.arange(300))
        measured = arm_calibration._measure([data], THREE[:k], Options())
        found.append(measured["ece"])
        expected.append(measured["ece_if_calibrated"])
    assert np.mean(found) > 0.03  # far from 0, though the model is right
    assert np.mean(expected) == pytest.approx(np.mean(found), rel=0.12)


def test_outcomes_are_counted_once_in_the_histogram_whatever_the_number_of_seeds():
    one = drawn(120, np.random.default_rng(6), k=2)
    seeds = [dataclasses.replace(one, seed=s) for s in range(3)]
    (entry,) = analysis.analyse(seeds, ("n", "p"), SETTINGS)["arms"]["net"]["calibration"][
        "histogram"
    ]
    positive, _ = np.histogram(one.probability[one.label == 1, 1], np.linspace(0, 1, 21))
    np.testing.assert_allclose(entry["positive"], positive)
    assert sum(entry["positive"]) + sum(entry["negative"]) == pytest.approx(120)


def test_the_operating_point_is_on_the_curve_and_in_its_band():
    one = drawn(400, np.random.default_rng(7), k=2)
    arm = analysis.analyse([one], ("n", "p"), SETTINGS)["arms"]["net"]
    point, (roc,), (pr,) = (arm["curves"][name] for name in ("operating", "roc", "pr"))
    assert point["tpr"] == arm["metrics"]["sensitivity"]["value"]
    assert point["fpr"] == pytest.approx(1 - arm["metrics"]["specificity"]["value"])
    assert point["precision"] == pytest.approx(arm["metrics"]["ppv"]["value"])
    for curve in (roc, pr):
        x, y, low, high = (np.array(curve[part]) for part in ("x", "y", "low", "high"))
        assert len(x) == len(y) == len(low) == len(high)
        assert np.all((low <= y) & (y <= high)) and 0.02 < np.mean(high - low) < 0.3
    assert np.interp(point["fpr"], roc["x"], roc["y"]) == pytest.approx(point["tpr"], abs=0.02)


def test_the_roc_band_covers_the_true_curve():
    from scipy.stats import norm

    grid, inside = np.linspace(0.05, 0.95, 10), []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        label = np.arange(200) % 2 == 1
        columns = (label, rng.normal(label * 1.0), np.arange(200))
        roc, pr = curves.roc(*columns[:2]), curves.precision_recall(*columns[:2])
        (low, high), _ = bands([columns], roc, pr)
        truth = norm.sf(norm.isf(grid) - 1)
        ends = [np.interp(grid, roc.x, end) for end in (low, high)]
        inside.append((ends[0] <= truth) & (truth <= ends[1]))
    assert 0.9 < np.mean(inside) <= 0.99


def test_the_band_is_wider_where_images_share_patients_and_narrower_over_splits():
    rng = np.random.default_rng(8)
    label = np.arange(300) % 2 == 1
    score = rng.normal(label * 1.0)

    def width(patient, splits=1):
        columns = [(label, score, patient)] * splits
        grid = curves.Curve(np.linspace(0, 1, 11), np.full(11, 0.5))
        (low, high), _ = bands(columns, grid, grid)
        return np.mean((high - low)[2:-2])

    alone = width(np.arange(300))
    assert width(np.arange(300) // 10) > 0 and width(np.arange(300), splits=3) == pytest.approx(
        alone
    )
    repeated = [np.repeat(part, 4) for part in (label, score, np.arange(300))]
    grid = curves.Curve(np.linspace(0, 1, 11), np.full(11, 0.5))
    (low, high), _ = bands([tuple(repeated)], grid, grid)
    assert np.mean((high - low)[2:-2]) == pytest.approx(alone, rel=0.1)
