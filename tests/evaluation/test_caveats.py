"""What a reader must know first, and the one operating threshold of two classes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from medtl.evaluation import analysis, arm_results, caveats, comparisons, metrics, operating
from medtl.evaluation.predictions import Predictions

CLASSES = ("well", "ill")
RULE = "sensitivity=0.9"


def predictions(arm, split, *, patients=40, images=1, share=0.5, seed=0, shift=0.0):
    """Return predictions of two classes; the first patients of each split are ill."""
    rng = np.random.default_rng([seed, len(split), len(arm)])
    label = np.repeat(np.arange(patients) < round(share * patients), images).astype(np.int64)
    z = rng.normal(size=len(label)) + 1.5 * label - 2 + shift
    p = 1 / (1 + np.exp(-z))
    return Predictions(
        arm,
        split,
        np.array([f"{split}{i}" for i in range(len(label))]),
        label,
        np.stack([1 - p, p], axis=1),
        seed=0,
        patient=np.repeat([f"{split} patient {i}" for i in range(patients)], images),
    )


def warnings_of(rows, **fields):
    settings = analysis.Settings(resamples=100, **fields)
    return analysis.analyse(rows, CLASSES, settings)["warnings"]


def test_a_large_sample_with_a_threshold_of_the_users_has_no_warning():
    rows = [predictions("a", split) for split in ("val", "test")]
    assert warnings_of(rows, threshold="sensitivity=0.95") == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"patients": 18}, ["Only 18 patients: the intervals are rough.", "9 with 'well'"]),
        ({"patients": 12, "images": 10}, ["Only 12 patients", "In simulations with 10 patients"]),
        ({"share": 0.2}, ["Only 8 with 'ill' among the patients: at least 10"]),
    ],
)
def test_few_patients_are_counted_not_their_images(fields, words):
    rows = [predictions("a", split, **fields) for split in ("val", "test")]
    made = " ".join(warnings_of(rows, threshold="0.3"))
    for part in words:
        assert part in made
    assert ("simulations" in made) == (fields.get("patients", 40) < 15)


def test_unknown_patients_and_labels_and_the_default_threshold_are_warned_of():
    rows = [predictions("a", split) for split in ("val", "test")]
    rows = [dataclasses.replace(p, patient=None) for p in rows]
    rows[1].label[:3] = -1
    made = warnings_of(rows)
    assert len(made) == 3
    assert made[0].startswith("Patients are unknown: each example counts as a patient")
    assert made[1] == "3 examples of test without a label are left out."
    assert made[2].startswith("The operating threshold is a default, for a sensitivity of 0.9 on")
    [alone] = warnings_of([predictions("a", "test")])
    assert alone.startswith("The operating threshold is 0.5: there is no val")


def test_val_that_chose_is_not_a_test():
    [warning] = caveats.best_on_val("val", val_chooses=True)
    assert "optimistic" in warning
    assert caveats.best_on_val("val", val_chooses=False) == []
    assert caveats.best_on_val("test", val_chooses=True) == []


def test_every_metric_and_test_follows_the_one_threshold():
    """Nobody's probability is above 0.5, but the threshold calls 90 % of the ill."""
    rows = [predictions(arm, s, shift=-4.0) for arm in ("a", "b") for s in ("val", "test")]
    result = analysis.analyse(rows, CLASSES, analysis.Settings(resamples=100))
    arm = result["arms"]["a"]
    (tn, fp), (fn, tp) = arm["confusion"]
    value = {name: entry["value"] for name, entry in arm["metrics"].items()}
    assert tp > 0.5 * (tp + fn)
    assert value["accuracy"] == pytest.approx((tn + tp) / (tn + fp + fn + tp))
    assert value["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert value["balanced_accuracy"] == pytest.approx((tp / (tp + fn) + tn / (tn + fp)) / 2)
    assert value["f1_macro"] == pytest.approx(
        (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2
    )
    options = metrics.Options(resamples=100)
    e = arm_results.collect(rows, "test", options, rule=RULE)
    right = [np.mean(e[name].called(0) == e[name].sets[0].label) for name in ("a", "b")]
    mcnemar = comparisons._mcnemar(e["a"], e["b"], clustered=False, level=0.95)
    assert mcnemar["difference"] == pytest.approx(right[0] - right[1])
    assert right[0] == pytest.approx(value["accuracy"])


def test_the_threshold_s_interval_is_the_quantile_s():
    """At a sensitivity of 0.9 it is about the 10th percentile of the scores of the ill."""
    rng = np.random.default_rng(0)
    n = 400
    score = np.where(np.arange(n) < n // 2, rng.uniform(0.5, 1.0, n), rng.uniform(0, 0.5, n))
    val = dataclasses.replace(
        predictions("a", "val", patients=n),
        probability=np.stack([1 - score, score], axis=1),
    )
    threshold = operating.choose(val, RULE, 1)
    card = operating.card([threshold], [val], rule=RULE, positive=1)
    # The p-quantile of m uniform numbers has the standard error sqrt(p (1 - p) / m), here of 0.5.
    half = 1.96 * 0.5 * np.sqrt(0.9 * 0.1 / (n // 2))
    assert card["high"] - card["low"] == pytest.approx(2 * half, rel=0.35)
    assert card["low"] < threshold < card["high"]
    assert "for sensitivity 0.9, chosen on val (95 % interval" in card["words"]
    one_class = dataclasses.replace(val, label=np.zeros(n, np.int64))
    assert operating.choose(one_class, RULE, 1) == 0.5
    assert operating.choose(one_class, "0.2", 1) == 0.2


def test_the_interval_of_balanced_accuracy_is_that_of_its_two_rates():
    """Zou & Donner: the sum's limits from those of sensitivity and specificity."""
    rows = [predictions("a", s, patients=200, share=0.1) for s in ("val", "test")]
    m = analysis.analyse(rows, CLASSES, analysis.Settings(resamples=2000))["arms"]["a"]["metrics"]
    ba, one, two = (m[n] for n in ("balanced_accuracy", "sensitivity", "specificity"))
    for end, sign in (("low", -1), ("high", 1)):
        half = np.hypot(one[end] - one["value"], two[end] - two["value"]) / 2
        # Of patients of one class each, the rates are independent but for the draws' noise.
        assert ba[end] == pytest.approx(ba["value"] + sign * half, abs=0.01)


def test_the_coverage_in_the_warning_is_the_measured_one():
    path = Path(__file__).parents[2] / "benchmarks/results/first_table_coverage.json"
    designs = json.loads(path.read_text())["designs"]
    measured = [
        100 * entry["coverage"]
        for design in designs
        if design["patients"] == 10
        for entry in design["metrics"].values()
        if entry["coverage"] is not None
    ]
    assert (round(min(measured)), round(max(measured))) == caveats.COVERAGE
