"""The difference between arms in each group: against the arms compared on the group alone, its
family's rate of false alarms, and the test of arm by group."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import chi2

from medtl.evaluation import arm_results, bootstrap, differences, groups, subgroups
from medtl.evaluation.metrics import Options
from medtl.evaluation.predictions import Predictions

CLASSES = ("well", "ill")


def rows_of(site, effect, *, rng, seeds=(None,), spread=0.0, rows=1):
    """Two arms on the same patients; `effect` is the transfer arm's gain at each site."""
    n = len(site)
    label = rng.integers(0, 2, n)
    common, ids = rng.normal(size=n), np.array([f"i{i}" for i in range(n)])
    made = []
    for seed in seeds:
        for arm in ("transfer", "scratch"):
            gain = 1.2 + rng.normal(0, spread)
            if arm == "transfer":
                gain = gain + np.array([effect.get(s, 0.0) for s in site])
            p = expit(gain * (label - 0.5) + 0.6 * common + 0.8 * rng.normal(size=n))
            made.append(
                Predictions(
                    arm,
                    "test",
                    ids,
                    label,
                    np.stack([1 - p, p], axis=1),
                    seed,
                    patient=ids,
                    groups={"site": site},
                )
            )
    return made


def column_of(rows, resamples=200, seed=0):
    options = Options(resamples=resamples, seed=seed)
    evaluated = arm_results.collect(rows, "test", options, rule="0.5")
    first = evaluated["scratch"]
    grouped = groups.grouped(
        {arm: e.sets for arm, e in evaluated.items()},
        [p.groups["site"] for p in first.predictions],
        classes=CLASSES,
        options=options,
        metric="auroc",
        once=first.once,
    )
    compared = subgroups.compared_in_groups(grouped, evaluated, "scratch")
    return subgroups.of_column("site", grouped, evaluated, "scratch", compared), compared


@pytest.mark.parametrize("seeds", [(None,), (0, 1, 2)])
def test_a_group_s_difference_is_that_of_the_arms_on_the_group_alone(seeds):
    site = np.repeat(["a", "b"], 150)
    rows = rows_of(site, {"a": 1.0}, rng=np.random.default_rng(0), seeds=seeds)
    _, compared = column_of(rows, resamples=1000)
    alone = [p.take(np.flatnonzero(site == "a")) for p in rows]
    options = Options(resamples=1000)
    evaluated = arm_results.collect(alone, "test", options, rule="0.5")
    resampled = bootstrap.resample(
        {arm: e.sets for arm, e in evaluated.items()}, classes=CLASSES, options=options
    )
    expected = differences.of_arms(evaluated, resampled, "scratch", "auroc")["transfer"]
    difference = compared["transfer"]["a"]
    assert difference.value == pytest.approx(expected.value, abs=1e-12)
    assert difference.se == pytest.approx(expected.se, rel=0.1)
    assert difference.p_adjusted > difference.p  # of two groups
    assert (difference.p_adjusted < 0.05) == (difference.low > 0)


def test_an_arm_that_hurts_one_group_is_named_and_the_interaction_is_found():
    site = np.repeat(["a", "b", "c"], 200)
    found, _ = column_of(rows_of(site, {"b": -3.0}, rng=np.random.default_rng(1)))
    worse = found["sentences"][0]
    assert worse.startswith("transfer is worse than scratch where site is b: AUROC −0.")
    assert found["differences"]["transfer"]["b"]["high"] < 0
    assert found["interaction"]["transfer"]["p"] < 0.001
    assert found["heterogeneity"]["transfer"]["p"] < 0.001
    assert "p_adjusted" in found["differences"]["transfer"]["a"]


def test_the_interaction_of_disjoint_groups_is_cochran_s_q_of_the_differences():
    site = np.repeat(["a", "b", "c"], 150)
    found, compared = column_of(rows_of(site, {"b": 1.0}, rng=np.random.default_rng(2)))
    value = np.array([d.value for d in compared["transfer"].values()])
    weight = np.array([d.se**-2 for d in compared["transfer"].values()])
    q = np.sum(weight * (value - np.sum(weight * value) / weight.sum()) ** 2)
    test = found["interaction"]["transfer"]
    assert test["q"] == pytest.approx(q, rel=0.02)  # undefined draws are left out
    known = chi2.sf(test["q"], 2)  # were the variances known; Welch's p is a little larger
    assert known < test["p"] < 1.3 * known


@pytest.mark.slow
def test_equal_arms_in_six_groups_are_told_apart_in_about_five_percent():
    rng, site = np.random.default_rng(3), np.repeat(list("abcdef"), 60)
    any_group, interaction, heterogeneity = [], [], []
    for replicate in range(200):
        found, compared = column_of(rows_of(site, {}, rng=rng), seed=replicate)
        d = compared["transfer"].values()
        any_group.append(any(x.low > 0 or x.high < 0 for x in d))
        interaction.append(found["interaction"]["transfer"]["p"] < 0.05)
        heterogeneity.append(found["heterogeneity"]["transfer"]["p"] < 0.05)
    assert np.mean(any_group) <= 0.1  # 0.05 and three standard errors
    assert np.mean(interaction) <= 0.1
    assert np.mean(heterogeneity) <= 0.1


def test_a_small_group_has_a_difference_without_an_interval_and_says_why():
    site = np.repeat(["a", "b", "c"], [100, 100, 12])
    found, _ = column_of(rows_of(site, {}, rng=np.random.default_rng(4)))
    small = found["differences"]["transfer"]["c"]
    assert np.isnan(small["low"]) and "fewer than 10" in small["undefined"]


def test_a_group_in_which_metrics_are_undefined_in_a_fold_is_compared_by_patients_and_seeds():
    site = np.repeat(["a", "b"], 100)
    rows = []
    for p in rows_of(site, {"a": 1.0}, rng=np.random.default_rng(5), seeds=(0, 1)):
        for fold, name in enumerate("ab"):
            part = p.take(np.flatnonzero(site == name))
            rows.append(dataclasses.replace(part, repeat=0, fold=fold))
    _, compared = column_of(rows)
    difference = compared["transfer"]["a"]
    assert difference.method == "patient bootstrap and seeds" and not difference.undefined
