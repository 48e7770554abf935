"""Verdicts word by word: what they take, and what they say."""

import math

import pytest
from statsmodels.stats import power

from medtl.errors import UserError
from medtl.evaluation import verdict


def test_needed_is_the_sample_size_of_the_normal_test():
    for difference, se, n in ((0.01, 0.02, 118), (-0.03, 0.011, 400)):
        wanted = power.normal_sample_size_one_tail(abs(difference), 0.8, 0.025, se * math.sqrt(n))
        assert verdict.needed(difference, se, n) == pytest.approx(wanted, rel=1e-9)
    assert verdict.needed(0.0, 0.1, 10) == math.inf
    assert math.isnan(verdict.needed(math.nan, 0.1, 10)) and math.isnan(
        verdict.needed(0.1, math.nan, 10)
    )
    assert verdict.needed(0.1, 0.05, 100, power=0.9) > verdict.needed(0.1, 0.05, 100)


def judged(difference=0.0516, low=0.012, high=0.0911, p=0.0098, **options):
    options = {"metric": "auroc", "arm": "transfer", "reference": "target_only", "n": 118} | options
    return verdict.judge(difference=difference, low=low, high=high, p=p, **options)


def test_a_verdict_says_its_numbers():
    found = judged(standard_error=0.02)
    assert found.verdict == "helps" and found.needed is None and found.headline == "transfer helps."
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


def test_an_inconclusive_verdict_says_how_many_would_tell():
    found = judged(0.01, -0.03, 0.05, 0.62, standard_error=0.0143)
    assert found.verdict == "cannot_tell" and found.needed == pytest.approx(1894, abs=1)
    assert found.sentence == (
        "Inconclusive: 118 patients are too few to tell whether transfer helps. AUROC +0.010 "
        "(95 % interval −0.030 to +0.050, p = 0.620) against target_only; a difference of this "
        "size would need about 1,900."
    )
    assert judged(0.01, -0.03, 0.05, 0.62).needed is None
    same = judged(0.0, 0.0, 0.0, 1.0, standard_error=0.0, unit="examples", n=1200)
    wanted = "AUROC 0 (95 % interval 0 to 0, p > 0.999) against target_only."
    assert same.headline.startswith("Inconclusive: 1,200 examples are too few")
    assert same.sentence == f"{same.headline} {wanted}" and same.needed is None


def test_a_verdict_takes_both_the_interval_and_the_corrected_p():
    assert judged(p=0.01, p_holm=0.03).verdict == "helps"
    corrected = judged(p=0.03, p_holm=0.06)
    assert (
        corrected.verdict == "cannot_tell"
        and "p = 0.030, 0.060 after Holm's correction" in corrected.sentence
    )
    # By itself it would be told with fewer patients than there are, so their number is no advice.
    many = judged(0.05, 0.02, 0.08, 0.001, p_holm=0.06, standard_error=0.015)
    assert (
        many.verdict == "cannot_tell" and many.needed is None and "would need" not in many.sentence
    )
    assert judged(0.05, -0.001, 0.1, 0.04).verdict == "cannot_tell"
    assert judged(p=0.05).verdict == "cannot_tell" and judged(p=math.nan).verdict == "cannot_tell"
    assert judged(p=0.03, level=0.99).verdict == "cannot_tell"


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
    assert found.verdict == "cannot_tell" and found.needed is None
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
        == "Inconclusive: 118 patients are too few to tell whether scratch helps."
    )
    assert verdict.headline([])["kind"] == "no_comparison"
