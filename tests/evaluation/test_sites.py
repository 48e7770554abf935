"""Meta-analysis over sites against a published one, closed forms and simulation."""

import dataclasses

import numpy as np
import pytest
from bcg import LOG_RISK_RATIO, VARIANCE
from scipy.special import expit, logit
from scipy.stats import t as student

from medtl.evaluation import analysis
from medtl.evaluation.predictions import Predictions
from medtl.evaluation.report import html
from medtl.evaluation.sites import random_effects


def test_the_published_meta_analysis_of_the_bcg_trials():
    """metafor's `rma(yi, vi, data=dat, test="knha")` with REML, as its documentation prints it."""
    pooled = random_effects(LOG_RISK_RATIO, VARIANCE)
    assert pooled.tau2 == pytest.approx(0.3132, abs=5e-5)
    assert (pooled.mean, pooled.se) == pytest.approx((-0.7145, 0.1808), abs=5e-5)
    assert (pooled.low, pooled.high) == pytest.approx((-1.1084, -0.3206), abs=5e-5)
    half = student.ppf(0.975, 11) * np.sqrt(pooled.tau2 + pooled.se**2)  # Higgins 2009, k - 2
    ends = (pooled.prediction_low, pooled.prediction_high)
    assert ends == pytest.approx((pooled.mean - half, pooled.mean + half), rel=1e-12)


def test_sites_of_equal_variance_have_the_t_interval_of_their_mean():
    """REML's tau² is then s² - v, and Hartung and Knapp's standard error s / √k."""
    value, v = np.array([0.2, 0.9, 1.4, -0.3, 0.6]), 0.05
    pooled = random_effects(value, np.full(5, v))
    s = value.std(ddof=1)
    assert pooled.tau2 == pytest.approx(s**2 - v, rel=1e-5)
    assert pooled.mean == pytest.approx(value.mean(), rel=1e-9)
    half = student.ppf(0.975, 4) * s / np.sqrt(5)
    assert (pooled.low, pooled.high) == pytest.approx(
        (value.mean() - half, value.mean() + half), rel=1e-9
    )


def test_sites_that_are_alike_have_no_variance_between_them():
    value, variance = np.array([0.5, 0.51, 0.49]), np.array([0.1, 0.2, 0.3])
    pooled = random_effects(value, variance)
    assert pooled.tau2 == 0.0
    assert pooled.mean == pytest.approx(np.average(value, weights=1 / variance), rel=1e-12)


@pytest.mark.parametrize(("sites", "tau"), [(4, 0.3), (12, 0.3), (12, 0.0)])
def test_both_intervals_hold_what_they_promise(sites, tau):
    """The mean in 95 % of meta-analyses; a new site's true value in 90 % or more.

    Higgins' interval takes the estimate of tau² for the true one, and so is a little too short.
    """
    rng, held, predicted = np.random.default_rng(sites), [], []
    for _ in range(1000):
        variance = rng.uniform(0.02, 0.1, sites)
        true = 1 + tau * rng.normal(size=sites + 1)
        pooled = random_effects(true[:-1] + rng.normal(size=sites) * np.sqrt(variance), variance)
        held.append(pooled.low <= 1 <= pooled.high)
        predicted.append(pooled.prediction_low <= true[-1] <= pooled.prediction_high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.021)  # three standard errors
    assert 0.87 < np.mean(predicted) < (0.95 if tau else 1.0)


def predictions(site, shift, *, fold=None, seed=0, arms=("transfer", "scratch")):
    """Rows of two classes; `shift` is how far the ill are from the well at each site."""
    rng, n = np.random.default_rng(seed), len(site)
    label, ids = np.arange(n) // 3 % 2, np.array([f"i{i}" for i in range(n)])
    rows = []
    for arm in arms:
        p = expit(np.array([shift[s] for s in site]) * (label - 0.5) + rng.normal(size=n))
        for f in [None] if fold is None else np.unique(fold):
            k = slice(None) if f is None else fold == f
            made = Predictions(arm, "test", ids[k], label[k], np.stack([1 - p, p], axis=1)[k])
            index = None if f is None else int(f)
            rows.append(dataclasses.replace(made, fold=index, seed=0, groups={"site": site[k]}))
    return rows


def analysed(rows):
    return analysis.analyse(rows, ("well", "ill"), analysis.Settings(resamples=300))


def test_the_sites_of_metrics_json_are_pooled_on_the_log_odds_scale():
    site = np.repeat(["a", "b", "c", "d"], 120)
    found = analysed(predictions(site, {"a": 1, "b": 2, "c": 1.5, "d": 3}))
    sites = found["sites"]
    assert (sites["column"], sites["left_out"], sites["scale"]) == ("site", False, "log-odds")
    entry = sites["arms"]["transfer"]
    groups = found["arms"]["transfer"]["subgroups"]["site"]["groups"]
    for name, estimate in entry["per_site"].items():
        assert estimate == groups[name]["metrics"]["auroc"]
    pooled, prediction = entry["pooled"], entry["prediction"]
    assert prediction["low"] < pooled["low"] < pooled["value"] < pooled["high"] < prediction["high"]
    low, value, high = (logit(pooled[k]) for k in ("low", "value", "high"))
    assert value - low == pytest.approx(high - value, rel=1e-6)
    tested = found["subgroups"]["site"]["heterogeneity"]["transfer"]
    assert {k: entry[k] for k in ("q", "df", "p", "i2")} == tested
    assert tested["p"] < 0.01
    of_difference = sites["differences"]["transfer"]
    assert of_difference["pooled"]["low"] < of_difference["pooled"]["high"]


@pytest.mark.parametrize(("names", "words"), [(["a"], "1 site has"), (["a", "b"], "2 sites have")])
def test_fewer_than_three_sites_are_undefined_with_the_reason(names, words):
    site = np.repeat(names, 120)
    entry = analysed(predictions(site, dict.fromkeys(names, 2.0)))["sites"]["arms"]["transfer"]
    assert entry["pooled"]["undefined"].startswith(f"{words} 10 patients of each class")
    assert np.isnan(entry["pooled"]["value"]) and np.isnan(entry["prediction"]["low"])


def test_rows_without_a_site_and_small_sites_are_not_pooled():
    site = np.repeat(["a", "b", "c", "", "tiny"], [120, 120, 120, 120, 12])
    shift = {"a": 2, "b": 2, "c": 2, "": 0, "tiny": 0}
    entry = analysed(predictions(site, shift))["sites"]["arms"]["transfer"]
    assert entry["df"] == 2
    assert "fewer than 10" in entry["per_site"]["tiny"]["small"]


def test_without_a_column_of_sites_there_is_no_entry():
    rows = [dataclasses.replace(p, groups={}) for p in predictions(np.repeat(["a"], 60), {"a": 1})]
    assert analysed(rows)["sites"] is None


def test_folds_that_each_test_one_site_are_recognised():
    site = np.repeat(["a", "b", "c"], 120)
    fold = np.repeat([0, 1, 2], 120)
    found = analysed(predictions(site, dict.fromkeys("abc", 2.0), fold=fold))
    assert found["sites"]["left_out"] and found["design"]["left_out"] == "site"
    assert "leaves out one of 3 values of site at a time" in found["design"]["words"]
    difference = found["subgroups"]["site"]["differences"]["transfer"]["a"]
    assert difference["low"] < difference["value"] < difference["high"]
    mixed = analysed(predictions(site, dict.fromkeys("abc", 2.0), fold=np.arange(360) // 6 % 3))
    assert not mixed["sites"]["left_out"] and mixed["design"]["left_out"] is None


def test_people_read_the_name_of_a_column_without_its_prefix():
    site = np.repeat(["f", "m"], 120)
    rows = [
        dataclasses.replace(p, groups={"subgroup_sex": site})
        for p in predictions(site, {"f": 1.0, "m": 2.0})
    ]
    found = analysed(rows)
    shown = html.html(found, None) + html.markdown(found, None)
    assert "By sex" in shown and "subgroup_sex" not in shown
    sentences = found["subgroups"]["subgroup_sex"]["sentences"]
    assert sentences and all("sex" in s and "subgroup_" not in s for s in sentences)
