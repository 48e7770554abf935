import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm, t

from medtl.errors import UserError
from medtl.evaluation import compare, intervals, plan, sample_size
from medtl.evaluation.plan import Assumptions

Z = 1.959964


def needs(**changes):
    """Return goal -> its need."""
    made = plan.plan(Assumptions(**changes))
    return {need.goal.key: need for need in made.needs}


def test_the_variance_of_an_auroc_is_that_of_hanley_and_mcneils_example():
    # Radiology 1982;143:29: an area of 0.893 of 51 abnormal and 58 normal images, SE 0.032.
    assert sample_size.auroc_variance(0.893, 51, 58) ** 0.5 == pytest.approx(0.032, abs=0.001)


def test_the_examples_of_riley_for_external_validation():
    # Stat Med 2021;40:4230, section 4: prevalence 0.018, C 0.8 with SE 0.0255, O:E with SE 0.245.
    n = np.arange(2, 6000)
    error = [sample_size.newcombe_variance(0.8, 0.018, size) ** 0.5 for size in n]
    assert abs(n[np.argmax(np.array(error) <= 0.0255)] - 4252) < 5
    width = 2 * math.sinh(Z * 0.245)
    assert needs(prevalence=0.018, calibration_width=width)["o_e_width"].patients == 909


@pytest.mark.parametrize(
    ("mean", "sd", "published"), [(0.02, 0.9, 1518), (-0.33, 0.9, 1542), (0.067, 1.495, 923)]
)
def test_the_slope_needs_the_patients_that_published_calculations_give(mean, sd, published):
    # With the code of Riley et al. 2021, which draws a million logits; SE 0.072.
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    variance = sample_size.recalibration_variance(mean + sd * node, weight / weight.sum())
    assert variance / 0.072**2 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("key", "share", "part"), [("sensitivity", 0.9, 0.2), ("specificity", 0.8, 0.8)]
)
def test_a_share_needs_the_patients_with_whom_wilsons_interval_is_as_wide(key, share, part):
    need = needs()[f"{key}_width"]
    widths = [
        np.subtract(*intervals.wilson(np.array(share), n * part, Z)[::-1])
        for n in (need.patients - 1, need.patients)
    ]
    assert widths[0] > 0.1 >= widths[1]


def scores(rng, n, auroc, *, family):
    """Draw (labels, scores) of a known AUROC."""
    label = rng.uniform(size=n) < 0.2
    if family == "exponential":  # P(positive > negative) = ratio / (1 + ratio) = AUROC
        return label, rng.exponential(size=n) * np.where(label, auroc / (1 - auroc), 1)
    spread = math.sqrt(2) * norm.ppf(auroc)
    logit = math.log(0.2 / 0.8) + np.where(label, 1, -1) * spread**2 / 2
    return label, logit + spread * rng.normal(size=n)


@pytest.mark.parametrize(("family", "low", "high"), [("exponential", 0.97, 1.03), ("n", 0.8, 0.9)])
def test_the_planned_patients_give_the_planned_interval_of_the_auroc(family, low, high):
    # Normal scores: Newcombe's 363 patients instead of 484, hence sqrt(363 / 484) = 0.87.
    rng, n = np.random.default_rng(0), needs()["auroc_width"].patients
    values = [compare.delong(*scores(rng, n, 0.85, family=family)).auc[0] for _ in range(1500)]
    assert low <= 2 * Z * np.std(values) / 0.1 <= high


def recalibrated(label, logit):
    """Fit the calibration slope by Newton's method."""
    x, fit = np.stack([np.ones_like(logit), logit], axis=1), np.array([0.0, 1.0])
    for _ in range(6):
        p = expit(x @ fit)
        fit = fit + np.linalg.solve((x.T * p * (1 - p)) @ x, x.T @ (label - p))
    return fit[1]


def test_the_planned_patients_give_the_planned_interval_of_slope_and_o_e():
    rng, n = np.random.default_rng(1), needs()
    slopes, ratios = [], []
    for _ in range(1000):
        label, logit = scores(rng, n["slope_width"].patients, 0.85, family="normal")
        slopes.append(recalibrated(label, logit))
    for _ in range(3000):
        risk = np.full(n["o_e_width"].patients, 0.2)
        ratios.append(math.log(np.mean(rng.uniform(size=len(risk)) < risk) / risk.mean()))
    assert np.mean(slopes) == pytest.approx(1, abs=0.02)
    assert 2 * Z * np.std(slopes) == pytest.approx(0.2, rel=0.06)
    assert 2 * math.sinh(Z * np.std(ratios)) == pytest.approx(0.2, rel=0.05)


def test_the_assumed_logits_are_calibrated_and_have_the_auroc():
    rng = np.random.default_rng(2)
    label, logit = scores(rng, 400_000, 0.85, family="normal")
    assert compare.delong(label, logit).auc[0] == pytest.approx(0.85, abs=0.003)
    for low, high in itertools.pairwise((-6, -3, -1.5, 0, 2)):
        part = (logit > low) & (logit < high)
        assert label[part].mean() == pytest.approx(expit(logit[part]).mean(), abs=0.01)


def compared(a, patients, difference, runs=20_000):
    """Return (differences, half widths) of comparisons with that many patients and seeds."""
    rng = np.random.default_rng(3)
    one, two = (
        sample_size.auroc_variance(value, a.prevalence * patients, (1 - a.prevalence) * patients)
        for value in (a.auroc, a.auroc + difference)
    )
    sampled = one + two - 2 * a.correlation * math.sqrt(one * two)
    of_seeds = difference + a.training_sd * rng.normal(size=(runs, a.seeds))
    estimate = of_seeds.mean(axis=1) + math.sqrt(sampled) * rng.normal(size=runs)
    trained = of_seeds.var(axis=1, ddof=1) / a.seeds if a.seeds > 1 else np.zeros(runs)
    variance = sampled + trained
    df = variance**2 / (sampled**2 / (patients - 1) + trained**2 / max(a.seeds - 1, 1))
    return estimate, t.isf((1 - a.level) / 2, df) * np.sqrt(variance)


@pytest.mark.parametrize(("training_sd", "seeds"), [(0.0, 1), (0.01, 3), (0.02, 5)])
def test_the_planned_patients_give_the_planned_power(training_sd, seeds):
    a = Assumptions(training_sd=training_sd, seeds=seeds)
    n = needs(training_sd=training_sd, seeds=seeds)["power"].patients
    estimate, half = compared(a, n, a.difference)
    assert np.mean(estimate - half > 0) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("training_sd", "seeds"), [(0.0, 1), (0.01, 5), (0.01, 10)])
def test_the_planned_patients_show_equivalence_with_the_planned_power(training_sd, seeds):
    a = Assumptions(training_sd=training_sd, seeds=seeds, margin=0.03)
    n = needs(training_sd=training_sd, seeds=seeds, margin=0.03)["equivalence_power"].patients
    estimate, half = compared(a, n, 0.0)
    assert np.mean(np.abs(estimate) + half < 0.03) == pytest.approx(0.8, abs=0.03)


def test_comparisons_that_are_not_asked_for_are_left_out():
    assert "power" not in needs(difference=0.0)
    assert "equivalence_power" not in needs()
    assert "equivalence within ±0.02" in plan.render(plan.plan(Assumptions(margin=0.02, seeds=9)))


def test_images_of_a_patient_count_by_their_design_effect():
    alone, alike, other = (
        needs(images_per_patient=m, icc=icc)["sensitivity_width"]
        for m, icc in ((1, 0.5), (8, 1.0), (8, 0.0))
    )
    assert alike.patients == alone.patients
    assert other.patients == math.ceil(alone.patients / 8)
    assert alike.images == 8 * alike.patients


def test_clustered_images_give_the_planned_interval_of_a_share():
    m, icc, share = 6, 0.4, 0.9
    a = Assumptions(prevalence=0.5, images_per_patient=m, icc=icc, sensitivity=share)
    n = needs(prevalence=0.5, images_per_patient=m, icc=icc, sensitivity=share)
    positive = n["sensitivity_width"].positive
    rng, scale = np.random.default_rng(4), 1 / icc - 1  # of a beta distribution with that ICC
    chance = rng.beta(share * scale, (1 - share) * scale, size=(4000, positive))
    found = (rng.uniform(size=(4000, positive, m)) < chance[..., None]).mean(axis=(1, 2))
    expected = share * (1 - share) / (0.5 * a.effective(n["sensitivity_width"].patients))
    assert np.var(found) == pytest.approx(expected, rel=0.06)


def test_no_number_of_patients_makes_up_for_too_few_seeds():
    made = plan.plan(Assumptions(training_sd=0.03))
    last = made.needs[-1]
    assert last.undefined.startswith("more seeds: with 3 ")
    enough = int(last.undefined.split()[-4])
    assert plan.plan(Assumptions(training_sd=0.03, seeds=enough)).needs[-1].patients > 0
    assert plan.plan(Assumptions(training_sd=0.03, seeds=enough - 1)).needs[-1].undefined
    assert made.total.patients == max(need.patients for need in made.needs)
    assert "meet all other goals" in made.headline


def test_more_is_asked_of_narrower_intervals_smaller_differences_and_rarer_disease():
    usual = needs()
    for change, keys in (
        ({"width": 0.05}, ("auroc_width", "sensitivity_width", "specificity_width")),
        ({"calibration_width": 0.1}, ("o_e_width", "slope_width")),
        ({"difference": 0.03}, ("power",)),
        ({"power": 0.9}, ("power",)),
        ({"correlation": 0.2}, ("power",)),
        ({"prevalence": 0.05}, ("auroc_width", "sensitivity_width", "slope_width", "power")),
        ({"level": 0.99}, tuple(usual)),
    ):
        other = needs(**change)
        assert all(other[key].patients > usual[key].patients for key in keys), change


def test_the_curve_meets_the_wanted_value_where_the_table_says():
    made = plan.plan(Assumptions())
    patients = made.curve["patients"]
    for need in made.needs:
        values = dict(zip(patients, made.curve[need.goal.key], strict=True))
        assert all(need.goal.is_met(n) == (n >= need.patients) for n in values)
        assert min(patients) < need.patients <= made.total.patients < max(patients)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"auroc": 0.97, "difference": 0.03}, "difference"),
        ({"auroc": 0.96, "difference": 0.01, "width": 0.1}, "width"),
    ],
)
def test_assumptions_that_contradict_each_other_are_refused(changes, field):
    section = dataclasses.asdict(Assumptions(**changes))
    del section["seeds"]
    with pytest.raises(UserError, match=rf"^config\.plan\.{field} is .*; give a smaller "):
        Assumptions.of(section, seeds=3)


def test_a_goal_that_no_data_set_can_meet_is_left_out_of_the_total():
    made = plan.plan(Assumptions(prevalence=1e-9))
    left = {need.goal.key for need in made.needs if not need.undefined}
    assert left == {"specificity_width"}
    assert "The O:E needs more than 100,000,000 patients." in made.notes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prevalence": 0.0123456, "images_per_patient": 123.5, "difference": 0.0123456},
        {"width": 0.005, "calibration_width": 0.005, "difference": 0.001, "training_sd": 0.0},
        {"seeds": 1, "images_per_patient": 300.0, "icc": 0.123456, "training_sd": 0.012345},
    ],
)
def test_the_text_is_at_most_100_columns_wide_and_has_every_number(changes):
    made = plan.plan(Assumptions(**changes))
    text = plan.render(made)
    assert max(map(len, text.splitlines())) <= 100
    for need in made.needs:
        assert need.undefined or f" {need.patients:,}" in text
    assert ("one seed" in text) == (changes.get("seeds") == 1)
