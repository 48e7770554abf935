"""Verdicts word by word: what they take, and what they say."""

import math

import pytest

from medtl.errors import UserError
from medtl.evaluation import verdict


def judged(difference=0.0516, low=0.012, high=0.0911, p=0.0098, **options):
    options = {"metric": "auroc", "arm": "transfer", "reference": "target_only"} | options
    options = {"sample": "118 patients and 3 seeds", "one_model": False} | options
    return verdict.judge(difference=difference, low=low, high=high, p=p, **options)


def test_a_verdict_says_its_numbers():
    found = judged()
    assert found.verdict == "helps" and found.headline == "transfer helps."
    wanted = (
        "transfer helps: AUROC +0.052 (95 % interval +0.012 to +0.091, p = 0.010) against "
        "target_only."
    )
    assert found.sentence == wanted
    harm = judged(-0.04, -0.07, -0.01, 0.0004, arm="pooled", negative_transfer=True)
    wanted = (
        "pooled hurts (negative transfer): AUROC −0.040 (95 % interval −0.070 to −0.010, p < "
        "0.001) against target_only."
    )
    assert harm.verdict == "hurts" and harm.sentence == wanted
    assert "negative transfer" not in judged(-0.04, -0.07, -0.01, 0.0004).sentence


def test_an_inconclusive_verdict_names_what_was_too_little():
    found = judged(0.01, -0.03, 0.05, 0.62)
    assert found.verdict == "cannot_tell"
    assert found.sentence == (
        "Inconclusive: 118 patients and 3 seeds are too few to tell whether transfer helps. "
        "AUROC +0.010 (95 % interval −0.030 to +0.050, p = 0.620) against target_only."
    )
    same = judged(0.0, 0.0, 0.0, 1.0, sample="1,200 examples")
    wanted = "AUROC 0 (95 % interval 0 to 0, p > 0.999) against target_only."
    assert same.headline.startswith("Inconclusive: 1,200 examples are too few")
    assert same.sentence == f"{same.headline} {wanted}"


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
    brier = judged(
        -0.04, -0.07, -0.01, 0.0004, one_model=True, metric="brier", lower_is_better=True
    )
    assert brier.verdict == "model_better" and "scores better than" in brier.headline
    unknown = judged(0.01, -0.03, 0.05, 0.62, one_model=True, sample="118 patients")
    assert unknown.verdict == "cannot_tell" and unknown.headline == (
        "Inconclusive: 118 patients are too few to tell which of these trained models of "
        "transfer and target_only is better."
    )
    assert unknown.sentence.endswith("training variance is unknown with one seed.")


def test_a_verdict_follows_the_interval():
    several = judged(0.03, -0.001, 0.06, 0.03, p_adjusted=0.06)
    assert several.verdict == "cannot_tell"
    assert "p = 0.030, 0.060 adjusted for the number of arms" in several.sentence
    assert "adjusted" not in judged(p=0.01, p_adjusted=0.01).sentence


def test_less_loss_helps():
    found = judged(-0.05, -0.09, -0.01, 0.01, metric="brier", lower_is_better=True)
    wanted = (
        "transfer helps: Brier score −0.050 (lower is better, 95 % interval −0.090 to "
        "−0.010, p = 0.010) against target_only."
    )
    assert found.verdict == "helps" and found.sentence == wanted
    assert judged(0.05, 0.01, 0.09, 0.01, metric="loss", lower_is_better=True).verdict == "hurts"
    with pytest.raises(UserError, match="calibration_slope"):
        judged(metric="calibration_slope")


def test_an_interval_that_leaves_out_0_never_reads_as_0():
    assert (
        "+0.0013 (95 % interval +0.0002 to +0.0024" in judged(0.0013, 0.0002, 0.0024, 0.02).sentence
    )


def test_an_undefined_difference_says_why():
    found = judged(
        math.nan, math.nan, math.nan, math.nan, undefined="no example has the label 'covid'"
    )
    assert found.verdict == "cannot_tell"
    assert found.sentence == (
        "Inconclusive: the difference in AUROC of transfer against target_only is undefined: "
        "no example has the label 'covid'."
    )


def test_the_headline_is_the_main_arms_and_names_the_others_that_differ():
    helps, unknown = judged(), judged(0.01, -0.03, 0.05, 0.62, arm="scratch")
    hurts = judged(-0.04, -0.07, -0.01, 0.001, arm="pooled", negative_transfer=True)
    found = verdict.headline([helps, unknown, hurts])
    assert (
        found["kind"] == "helps"
        and found["headline"] == f"{helps.sentence} pooled hurts (negative transfer)."
    )
    assert found["sentences"] == [helps.sentence, unknown.sentence, hurts.sentence]
    alone = verdict.headline([unknown])
    assert (
        alone["kind"] == "cannot_tell"
        and alone["headline"]
        == "Inconclusive: 118 patients and 3 seeds are too few to tell whether scratch helps."
    )
    assert verdict.headline([])["kind"] == "no_comparison"
