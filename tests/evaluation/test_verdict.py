"""Verdicts word by word: what they take, and what they say."""

import math

import numpy as np
import pytest
from scipy import stats

from medtl.errors import UserError
from medtl.evaluation import verdict


def judged(difference=0.0516, low=0.012, high=0.0911, p=0.0098, **options):
    options = {"metric": "auroc", "arm": "transfer", "reference": "target_only"} | options
    options = {"sample": "118 patients and 3 seeds", "one_model": False} | options
    options = {"margin": 0.02} | options
    return verdict.judge(
        verdict.Measured(difference=difference, low=low, high=high, p=p, **options)
    )


def test_a_verdict_says_its_numbers():
    better = judged()
    assert better.verdict == "better" and better.headline == "transfer helps."
    wanted = (
        "transfer helps: AUROC +0.052 (95 % interval +0.012 to +0.091, p = 0.010) against "
        "target_only."
    )
    assert better.sentence == wanted
    harm = judged(-0.04, -0.07, -0.01, 0.0004, arm="pooled", negative_transfer=True)
    wanted = (
        "pooled hurts (negative transfer): AUROC −0.040 (95 % interval −0.070 to −0.010, p < "
        "0.001) against target_only."
    )
    assert harm.verdict == "worse" and harm.sentence == wanted
    assert "negative transfer" not in judged(-0.04, -0.07, -0.01, 0.0004).sentence


def test_an_inconclusive_verdict_names_what_was_too_little():
    unclear = judged(0.01, -0.03, 0.05, 0.62)
    assert unclear.verdict == "inconclusive"
    assert unclear.sentence == (
        "Inconclusive: 118 patients and 3 seeds are too few to tell whether transfer helps. "
        "AUROC +0.010 (95 % interval −0.030 to +0.050, p = 0.620) against target_only."
    )


def test_the_sequential_arm_of_covid_ct_is_equivalent():
    """benchmarks/results/covid_ct.json: −0.0001 (−0.0050 to +0.0045), 56 patients."""
    same = judged(-0.0001, -0.0050, 0.0045, 0.973, arm="sequential", sample="56 patients")
    assert same.verdict == "equivalent"
    assert same.headline == "sequential and target_only are equivalent within ±0.02 AUROC."
    assert same.sentence == (
        "sequential and target_only are equivalent within ±0.02 AUROC: −0.0001 "
        "(95 % interval −0.0050 to +0.0045, p = 0.973)."
    )
    assert judged(-0.0001, -0.0050, 0.0045, 0.973, margin=0.004).verdict == "inconclusive"
    assert judged(-0.0001, -0.0050, 0.0045, 0.973, margin=0.0).verdict == "inconclusive"


def test_a_difference_that_is_certain_but_small_is_equivalent_and_says_so():
    small = judged(0.008, 0.003, 0.013, 0.002)
    assert small.verdict == "equivalent"
    assert small.sentence.endswith(
        "p = 0.002); the difference is distinguishable from 0 but smaller than the margin."
    )
    # Half of the interval beyond the margin: it may matter.
    assert judged(0.018, 0.003, 0.033, 0.02).verdict == "better"


def test_the_margin_of_a_loss_is_a_share_of_the_reference():
    assert verdict.margin_of("auroc", 0.02, 0.6) == 0.02
    assert verdict.margin_of("loss", 0.02, 0.5) == pytest.approx(0.01)
    numbers = {"metric": "loss", "margin": verdict.margin_of("loss", 0.02, 0.5)}
    assert judged(0.002, -0.005, 0.009, 0.5, **numbers).verdict == "equivalent"
    assert judged(0.002, -0.005, 0.011, 0.5, **numbers).verdict == "inconclusive"


def test_equivalence_is_claimed_in_one_trial_of_forty_at_the_margin():
    """At a true difference of the margin the 95 % interval is inside in at most 2.5 %."""
    rng, se, margin = np.random.default_rng(0), 0.005, 0.02
    z = stats.norm.ppf(0.975)

    def rate(truth):
        drawn = truth + se * rng.normal(size=20_000)
        kinds = [verdict.zone(d - z * se, d + z * se, margin=margin) for d in drawn]
        return kinds.count("equivalent") / len(kinds)

    assert rate(margin) == pytest.approx(0.025, abs=0.004)
    assert rate(-margin) == pytest.approx(0.025, abs=0.004)
    # The power at no difference, of two one-sided tests at 2.5 %: 2 Φ(4 - 1.96) - 1.
    assert rate(0.0) == pytest.approx(2 * stats.norm.cdf(margin / se - z) - 1, abs=0.006)


def test_one_trained_model_neither_helps_nor_hurts():
    better = judged(one_model=True, negative_transfer=True)
    assert better.verdict == "model_better"
    assert better.sentence == (
        "This trained model of transfer scores higher than that of target_only: AUROC +0.052 "
        "(95 % interval +0.012 to +0.091, p = 0.010); training variance is unknown with one "
        "seed: three seeds would tell whether transfer helps."
    )
    worse = judged(-0.04, -0.07, -0.01, 0.0004, one_model=True, negative_transfer=True)
    assert worse.verdict == "model_worse" and "scores lower than" in worse.headline
    brier = judged(-0.04, -0.07, -0.01, 0.0004, one_model=True, metric="brier")
    assert brier.verdict == "model_better" and "scores better than" in brier.headline
    unknown = judged(0.01, -0.03, 0.05, 0.62, one_model=True, sample="118 patients")
    assert unknown.verdict == "inconclusive" and unknown.headline == (
        "Inconclusive: 118 patients are too few to tell which of these trained models of "
        "transfer and target_only is better."
    )
    assert unknown.sentence.endswith("training variance is unknown with one seed.")
    same = judged(0.001, -0.006, 0.008, 0.8, one_model=True)
    assert same.verdict == "model_equivalent"
    assert same.sentence == (
        "These trained models of transfer and target_only are equivalent within ±0.02 AUROC: "
        "+0.001 (95 % interval −0.006 to +0.008, p = 0.800); training variance is unknown with "
        "one seed."
    )


def test_a_verdict_follows_the_interval():
    several = judged(0.03, -0.001, 0.06, 0.03, p_adjusted=0.06)
    assert several.verdict == "inconclusive"
    assert "p = 0.030, 0.060 adjusted for the number of arms" in several.sentence
    assert "adjusted" not in judged(p=0.01, p_adjusted=0.01).sentence


def test_less_loss_helps():
    less = judged(-0.05, -0.09, -0.01, 0.01, metric="brier", margin=0.003)
    wanted = (
        "transfer helps: Brier score −0.050 (lower is better, 95 % interval −0.090 to "
        "−0.010, p = 0.010) against target_only."
    )
    assert less.verdict == "better" and less.sentence == wanted
    assert judged(0.05, 0.01, 0.09, 0.01, metric="loss").verdict == "worse"
    with pytest.raises(UserError, match="calibration_slope"):
        judged(metric="calibration_slope")


def test_an_interval_that_leaves_out_0_never_reads_as_0():
    assert (
        "+0.0013 (95 % interval +0.0002 to +0.0024"
        in judged(0.0013, 0.0002, 0.0024, 0.02, margin=0.002).sentence
    )


def test_an_undefined_difference_says_why():
    missing = judged(
        math.nan, math.nan, math.nan, math.nan, undefined="no example has the label 'covid'"
    )
    assert missing.verdict == "inconclusive"
    assert missing.sentence == (
        "Inconclusive: the difference in AUROC of transfer against target_only is undefined: "
        "no example has the label 'covid'."
    )


def test_the_headline_is_the_main_arms_and_names_the_others_that_are_decided():
    helps, unknown = judged(), judged(0.01, -0.03, 0.05, 0.62, arm="scratch")
    hurts = judged(-0.04, -0.07, -0.01, 0.001, arm="pooled", negative_transfer=True)
    same = judged(0.0, -0.01, 0.01, 0.9, arm="sequential")
    made = verdict.headline([helps, unknown, hurts, same])
    assert made["kind"] == "better"
    assert made["headline"] == (
        f"{helps.sentence} pooled hurts (negative transfer). "
        "sequential and target_only are equivalent within ±0.02 AUROC."
    )
    assert made["sentences"] == [c.sentence for c in (helps, unknown, hurts, same)]
    alone = verdict.headline([unknown])
    assert (alone["kind"], alone["headline"]) == ("inconclusive", unknown.sentence)


def estimate(value, low, high):
    return {"value": value, "low": low, "high": high}


def test_a_single_arm_has_a_headline_of_its_own():
    metrics = {
        "auroc": estimate(0.83, 0.77, 0.88),
        "sensitivity": estimate(0.9, 0.8, 0.95),
        "specificity": {**estimate(math.nan, math.nan, math.nan), "undefined": "no negatives"},
    }
    made = verdict.single(
        "target_only", metrics, task="two_class", metric="auroc", sample="118 patients"
    )
    assert made["kind"] == "no_comparison"
    assert made["headline"] == (
        "target_only: AUROC 0.830 (95 % interval 0.770 to 0.880), sensitivity 0.900 "
        "(0.800 to 0.950), specificity undefined (no negatives)."
    )
    assert made["sentences"] == [
        made["headline"],
        "The intervals cover other samples of 118 patients, not another training.",
    ]
    graded = {"balanced_accuracy": estimate(0.7, 0.6, 0.8), "loss": estimate(0.9, 0.8, 1.0)}
    made = verdict.single("mine", graded, task="multi_class", metric="loss", sample="9 patients")
    assert made["headline"] == (
        "mine: log loss 0.900 (95 % interval 0.800 to 1.000), balanced accuracy 0.700 "
        "(0.600 to 0.800)."
    )
