"""One rule for a difference: what its standard error holds, and that interval and p agree."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from medtl.evaluation import analysis, arm_results, bootstrap, differences, metrics
from medtl.evaluation.predictions import Predictions

CLASSES = ("well", "ill")
SETTINGS = analysis.Settings(resamples=200)


def predicted(arm, *, skill, rng, label, ids, **model):
    score = 1 / (1 + np.exp(-(skill * (label - 0.5) + rng.normal(size=len(label)))))
    probability = np.stack([1 - score, score], axis=1)
    return Predictions(arm, "test", ids, label, probability, patient=ids, **model)


def on_one_split(seeds=3, n=120, arms=(("good", 1.6), ("scratch", 1.0)), spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    label, ids = np.arange(n) % 2, np.array([f"p{i}" for i in range(n)])
    return [
        predicted(arm, skill=skill + spread * rng.normal(), rng=rng, label=label, ids=ids, seed=s)
        for s in range(seeds)
        for arm, skill in arms
    ]


def over_folds(folds=5, n=100, sizes=(None,), arms=(("good", 1.6), ("scratch", 1.0)), seed=0):
    rng = np.random.default_rng(seed)
    label, ids = (np.arange(n) // folds) % 2, np.array([f"p{i}" for i in range(n)])
    return [
        predicted(
            arm, skill=skill, rng=rng, label=label[chosen], ids=ids[chosen], fold=f, size=size
        )
        for size in sizes
        for f in range(folds)
        for chosen in [np.arange(n) % folds == f]
        for arm, skill in arms
    ]


def of_arms(rows, name="auroc", reference="scratch", resamples=200):
    options = metrics.Options(resamples=resamples)
    evaluated = arm_results.collect(rows, "test", options, rule="0.5")
    sets = {arm: e.sets for arm, e in evaluated.items()}
    resampled = bootstrap.resample(sets, classes=CLASSES, options=options)
    return differences.of_arms(evaluated, resampled, reference, name), resampled


def test_several_seeds_add_the_variance_of_training_to_that_of_patients():
    rows = on_one_split()
    made, resampled = of_arms(rows)
    auroc = {(p.arm, p.seed): roc_auc_score(p.label, p.probability[:, 1]) for p in rows}
    d = np.array([auroc["good", s] - auroc["scratch", s] for s in range(3)])
    m = resampled.names.index("auroc")
    draws = resampled.draws["good"][:, m] - resampled.draws["scratch"][:, m]
    patients, training = draws.var() * 60 / 59, d.var(ddof=1) / 3  # 60 positives of 120
    se = math.sqrt(patients + training)
    df = se**4 / (patients**2 / 59 + training**2 / 2)
    got, half = made["good"], stats.t.ppf(0.975, df) * se
    np.testing.assert_allclose(
        [got.value, got.se, got.df, got.low, got.high, got.p],
        [d.mean(), se, df, d.mean() - half, d.mean() + half, 2 * stats.t.sf(d.mean() / se, df)],
        rtol=1e-9,
    )
    assert got.method == "patient bootstrap and seeds"
    comparison = analysis.analyse(rows, CLASSES, SETTINGS)["comparisons"][0]
    assert comparison["difference"]["low"] == pytest.approx(got.low, abs=1e-12)
    assert comparison["all_metrics"]["auroc"] == comparison["difference"]
    assert comparison["verdict"] in ("better", "worse", "equivalent", "inconclusive")


def test_one_seed_is_about_the_trained_models():
    report = analysis.analyse(
        on_one_split(seeds=1, arms=(("good", 4.0), ("scratch", 0.2))), CLASSES, SETTINGS
    )
    assert report["verdict"]["kind"] == "model_better"
    assert report["verdict"]["headline"].startswith("This trained model of good scores higher")
    assert "three seeds would tell whether good helps" in report["verdict"]["headline"]
    assert "helps." not in report["comparisons"][0]["sentence"].split(";")[0]


def test_the_same_method_twice_gets_a_verdict_in_one_run_of_twenty():
    """Seeds whose AUROC varies as much as a sample of patients does."""
    p, alone = [], []
    for run in range(60):
        rows = on_one_split(arms=(("a", 1.2), ("scratch", 1.2)), spread=0.5, seed=run, n=600)
        made, resampled = of_arms(rows, reference="scratch")
        m = resampled.names.index("auroc")
        draws = resampled.draws["a"][:, m] - resampled.draws["scratch"][:, m]
        p.append(made["a"].p)
        alone.append(abs(made["a"].value) > 1.96 * draws.std())
    assert np.mean(np.array(p) < 0.05) <= 0.1 and np.mean(alone) > 0.3


def test_the_learning_curve_and_all_metrics_use_the_test_of_the_headline():
    rows = over_folds(sizes=(20, 40))
    report = analysis.analyse(rows, CLASSES, SETTINGS)
    (comparison,) = report["comparisons"]
    last = report["learning_curve"]["differences"]["good"][-1]
    assert comparison["method"] == "corrected resampled t"
    for part in ("value", "low", "high"):
        assert last[part] == comparison["difference"][part]
        assert comparison["all_metrics"]["auroc"][part] == comparison["difference"][part]
    _, resampled = of_arms([p for p in rows if p.size == 40], name="brier")
    m = resampled.names.index("brier")
    d = resampled.by_split["good"][:, m] - resampled.by_split["scratch"][:, m]
    half = stats.t.ppf(0.975, 4) * math.sqrt((1 / 5 + 1 / 4) * d.var(ddof=1))
    brier = comparison["all_metrics"]["brier"]
    np.testing.assert_allclose([brier["low"], brier["high"]], d.mean() + np.array([-half, half]))


def test_an_interval_of_shares_stays_within_what_they_can_reach():
    made, _ = of_arms(over_folds(folds=2, n=24, arms=(("good", 3.0), ("scratch", 0.0)), seed=3))
    d = made["good"]
    assert d.df == 1 and stats.t.ppf(0.975, 1) * d.se > 1
    assert -1 <= d.low < d.value < d.high == 1


def test_p_is_not_bounded_by_the_number_of_resamples():
    arms = [(f"a{i}", 3.0) for i in range(6)] + [("scratch", 0.5)]
    made, _ = of_arms(on_one_split(seeds=1, n=2000, arms=arms))
    assert all(d.p_adjusted < 1e-6 and d.low > 0 for d in made.values())


def test_interval_and_adjusted_p_of_several_arms_agree():
    rng = np.random.default_rng(0)
    for run in range(12):
        arms = [(f"a{i}", 1.0 + 0.3 * rng.random()) for i in range(4)] + [("scratch", 0.9)]
        made, _ = of_arms(on_one_split(seeds=1 + run % 3, arms=arms, seed=run, spread=0.1))
        for d in made.values():
            assert (d.p_adjusted < 0.05) == (d.low > 0 or d.high < 0)
            assert d.p <= d.p_adjusted <= 4 * d.p


def test_simultaneous_p_is_the_tail_of_the_largest_normal():
    correlation = np.full((3, 3), 0.5) + 0.5 * np.eye(3)
    joint = stats.multivariate_normal(np.zeros(3), correlation)
    alpha, adjusted = differences.simultaneous([0.01, 0.03, 0.2], correlation, level=0.95)
    for one, p in zip((0.01, 0.03, 0.2), adjusted, strict=True):
        z = stats.norm.isf(one / 2)
        inside = joint.cdf(np.full(3, z), lower_limit=np.full(3, -z))
        assert p == pytest.approx(1 - inside, abs=0.004)
    z = stats.norm.isf(alpha / 2)
    assert joint.cdf(np.full(3, z), lower_limit=np.full(3, -z)) == pytest.approx(0.95, abs=0.003)
    # One statistic three times is one test; far in the tail Bonferroni's bound holds.
    assert differences.simultaneous([0.03] * 3, np.ones((3, 3)), level=0.95)[0] == pytest.approx(
        0.05, abs=0.003
    )
    assert differences.simultaneous([1e-9, 0.5], np.eye(2), level=0.95)[1][0] == 2e-9


def test_arms_that_never_differ_keep_what_n_patients_do_not_exclude():
    rows = on_one_split(seeds=1, n=60)
    same = [p for p in rows if p.arm == "scratch"]
    copied = Predictions("good", "test", same[0].id, same[0].label, same[0].probability, seed=0)
    made, _ = of_arms([*same, copied])
    assert made["good"].p == 1 and made["good"].high == pytest.approx(1 - 0.025 ** (1 / 30))
    brier, _ = of_arms([*same, copied], name="brier")
    assert (brier["good"].p, brier["good"].low, brier["good"].high) == (1, 0, 0)


def test_an_undefined_seed_is_named():
    rows = on_one_split(seeds=2, n=40)
    flat = np.tile([0.9, 0.1], (40, 1))
    never = Predictions("good", "test", rows[0].id, rows[0].label, flat, seed=0)
    made, _ = of_arms([never if (p.arm, p.seed) == ("good", 0) else p for p in rows], name="ppv")
    assert made["good"].undefined == "the difference is undefined in 1 of 2 seeds"
    assert math.isnan(made["good"].low)
