"""Class priors by EM and BBSE against likelihoods, confusion matrices and closed forms."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize, stats

from medtl.errors import UserError
from medtl.evaluation import analysis, ensembles, label_shift
from medtl.evaluation.predictions import Predictions


def scores(n, prior, seed, flip=0.0):
    """Return labels, and the exact posterior under equal priors of two normal distributions."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < prior).astype(int)
    x = rng.normal(2 * label - 1.0, 1.5)
    odds = stats.norm.pdf(x, 1, 1.5) / stats.norm.pdf(x, -1, 1.5)
    p = odds / (1 + odds)
    return label, np.stack([1 - p, p], axis=1)


def part(split, n, prior, seed, arm="a", model=0):
    label, p = scores(n, prior, seed)
    ids = np.array([f"{split}{i}" for i in range(n)])
    return Predictions(arm, split, ids, label, p, model)


def test_em_is_the_maximum_of_the_likelihood():
    _, p = scores(500, 0.2, 0)
    prior = np.array([0.5, 0.5])
    best = optimize.minimize_scalar(
        lambda q: -np.log(p @ (np.array([1 - q, q]) / prior)).sum(),
        bounds=(0, 1), method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    assert label_shift.em(p, prior)[1] == pytest.approx(best.x, abs=1e-4)
    # A resample that holds each example once is the sample; the order does not matter.
    weight = np.stack([np.ones(500), np.arange(500) % 2])
    both = label_shift.em(p, prior, weight=weight)
    np.testing.assert_allclose(both[0], label_shift.em(p[::-1], prior), atol=1e-6)
    np.testing.assert_allclose(both[1], label_shift.em(p[1::2], prior), atol=1e-6)


def test_bbse_solves_the_equations_of_the_confusion_matrix():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], [50, 30, 20])
    call = np.where(rng.random(100) < 0.8, label, rng.integers(3, size=100))
    eye = np.eye(3)
    q = np.array([0.2, 0.3, 0.5])
    rates = np.array([[np.mean(call[label == k] == j) for k in range(3)] for j in range(3)])
    calls = np.round(rates @ q * 30_000).astype(int)  # of examples whose classes are q
    found = label_shift.bbse(eye[call], label, eye[np.repeat([0, 1, 2], calls)])
    np.testing.assert_allclose(found, q, atol=1e-4)
    # Without a shift the priors are those of val.
    np.testing.assert_allclose(label_shift.bbse(eye[call], label, eye[call]), [0.5, 0.3, 0.2])
    assert np.isnan(label_shift.bbse(eye[[0] * 100], label, eye[call])).all()


@pytest.mark.parametrize("method", ["em", "bbse"])
def test_the_interval_covers_the_true_prior_and_the_odds_are_bayes(method):
    held = 0
    for seed in range(20):
        val, test = part("val", 400, 0.5, seed), part("test", 300, 0.1, 99 + seed)
        shift = label_shift.estimate(method, val, test)
        held += shift.low[1] <= 0.1 <= shift.high[1]
        assert shift.value.sum() == pytest.approx(1)
    assert held >= 16
    p = np.array([[0.3, 0.7]])
    odds = 0.7 / 0.3 * (0.1 / 0.9) / (0.4 / 0.6)
    new = label_shift.adjusted(p, np.array([0.6, 0.4]), np.array([0.9, 0.1]))
    assert new[0, 1] == pytest.approx(odds / (1 + odds))


def test_a_class_that_val_lacks_and_an_undefined_estimate_are_safe():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]] * 10)
    prior = np.array([0.5, 0.5, 0.0])
    found = label_shift.em(p, prior)
    assert found[2] == 0
    assert found.sum() == pytest.approx(1)
    assert np.isfinite(label_shift.adjusted(p, prior, found)).all()
    label = np.tile([0, 1], 10)
    assert label_shift.bbse(p, label, p)[2] == 0
    assert label_shift.adjusted(p, prior, np.full(3, np.nan)) is p
    single = dataclasses.replace(part("val", 20, 0.5, 0), probability=np.tile([0.9, 0.1], (20, 1)))
    shift = label_shift.estimate("bbse", single, part("test", 20, 0.5, 1))
    assert np.isnan(shift.value).all()


def test_calibration_of_the_arm_under_shift_improves_and_ranks_stay():
    rows = [part("val", 500, 0.5, 0), part("test", 1000, 0.1, 1)]
    more, found = label_shift.arms(rows, ["em"])
    settings = analysis.Settings(metric="loss", resamples=200)
    report = analysis.analyse([*rows, *more], ("well", "ill"), settings)
    before, after = (report["arms"][arm]["metrics"] for arm in ("a", "a+em"))
    for name in ("loss", "brier"):
        assert after[name]["value"] < 0.8 * before[name]["value"]
    assert after["auroc"]["value"] == pytest.approx(before["auroc"]["value"])
    # Val has the same factors: the same examples are called at the threshold.
    assert after["sensitivity"]["value"] == pytest.approx(before["sensitivity"]["value"])
    [note] = label_shift.notes(found, ("well", "ill"))
    assert "EM (Saerens 2002)" in note
    assert "differ in their frequency alone" in note


def test_what_cannot_be_corrected_is_refused():
    test = part("test", 30, 0.5, 0)
    with pytest.raises(UserError, match="arm 'a' has no labelled val"):
        label_shift.arms([test], ["em"])
    with pytest.raises(UserError, match="there is none"):
        label_shift.arms([part("val", 30, 0.5, 0)], ["em"])
    several = dataclasses.replace(test, label=np.zeros((30, 2)))
    with pytest.raises(UserError, match="one diagnosis an example"):
        label_shift.arms([several], ["em"])
    assert label_shift.arms([several], []) == ([], [])


def seeds(arm, shift, n=3):
    rows = []
    for seed in range(n):
        p = part("test", 200, 0.5, 0, arm, seed)
        noise = np.random.default_rng([seed, int(10 * shift)]).normal(0, 1.0, 200)
        z = np.log(p.probability[:, 1] / p.probability[:, 0]) + noise - shift
        q = 1 / (1 + np.exp(-z))
        rows.append(dataclasses.replace(p, probability=np.stack([1 - q, q], axis=1)))
    return rows


def test_an_ensemble_is_the_mean_of_its_seeds_in_any_order_and_one_model():
    rows = [*seeds("transfer", 0.0), *seeds("target_only", 0.1)]
    made = ensembles.of_seeds(rows)
    assert [(p.arm, p.seed) for p in made[:3]] == [
        ("transfer (ensemble of 3 seeds)", s) for s in range(3)
    ]
    expected = np.mean([p.probability for p in rows[:3]], axis=0)
    np.testing.assert_allclose(made[0].probability, expected)
    turned = [rows[0], rows[1].take(np.arange(200)[::-1]), rows[2]]
    np.testing.assert_allclose(ensembles.of_seeds(turned)[0].probability, expected)
    assert ensembles.of_seeds(rows[:1]) == []
    with pytest.raises(UserError, match="other examples"):
        ensembles.of_seeds([rows[0], rows[1].take(np.arange(100))])
    report = analysis.analyse(
        [*rows, *made], ("well", "ill"), analysis.Settings(resamples=200), sources=["transfer"]
    )
    sentences = {c["arm"]: c["sentence"] for c in report["comparisons"]}
    assert "rained model" in sentences["transfer (ensemble of 3 seeds)"]
    assert "rained model" not in sentences["transfer"]
    [note] = ensembles.notes([*rows, *made])
    assert "an ensemble is one model" in note
    # The errors of independent models cancel.
    value = {arm: r["metrics"]["auroc"]["value"] for arm, r in report["arms"].items()}
    assert value["transfer (ensemble of 3 seeds)"] > value["transfer"]
