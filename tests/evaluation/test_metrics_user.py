"""A user's metric: found by its plug-in string, resampled like all others, and named where it
fails."""

import dataclasses
import math

import numpy as np
import pytest
from random_predictions import random_case
from sklearn import metrics as sk
from test_analysis import CLASSES, SETTINGS, split_of

from medtl.errors import UserError
from medtl.evaluation import analysis, metrics, table, to_json
from medtl.evaluation.metrics import EvaluationSet, Options, Scorer
from medtl.evaluation.report import html


def accuracy(y_true, y_prob, weight):
    return np.average(y_prob.argmax(axis=1) == y_true, weights=weight)


def auroc(y_true, y_prob, weight):
    return sk.roc_auc_score(y_true, y_prob[:, 1], sample_weight=weight)


def test_a_plug_in_string_becomes_a_metric_with_its_options(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def power(y_true, y_prob, weight, k=1):\n    return float(len(weight)) ** k\n")
    found = metrics.from_config({"metrics": {"squared": f"{file}:power(k=2)"}})
    label, p, _ = random_case(0, 30, 2)
    logged = metrics.compute(label, p, classes=("a", "b"), extra=found)
    assert list(logged) == [*metrics.NAMES, "squared"] and logged["squared"] == 900
    assert metrics.from_config({}) == metrics.from_config({"metrics": {}}) == {}
    with pytest.raises(UserError, match=r"^config.evaluation.metrics.auroc: there is a built-in"):
        metrics.from_config({"metrics": {"auroc": "math:fabs"}})
    with pytest.raises(UserError, match=r"config.evaluation.metrics.x: .*no 'powr'"):
        metrics.from_config({"metrics": {"x": f"{file}:powr"}})


def test_its_resamples_are_those_of_the_metric_it_computes():
    label, p, _ = random_case(1, 80, 2, 1)
    patient = np.random.default_rng(0).integers(0, 30, 80)
    counts = np.random.default_rng(1).integers(0, 3, (6, 30)).astype(float)
    options = Options(extra={"mine": accuracy, "area": auroc})
    above = np.nextafter(0.5, 1)  # a tie goes to the first class, as with argmax
    data = EvaluationSet(label, p, patient, threshold=above)
    scorer = Scorer(data, classes=("a", "b"), options=options, units=30)
    values = dict(zip(scorer.names, scorer(counts).T, strict=True))
    np.testing.assert_allclose(values["mine"], values["accuracy"], rtol=1e-12)
    np.testing.assert_allclose(values["area"], values["auroc"], rtol=1e-12)


def test_it_is_in_the_analysis_the_report_and_the_table():
    settings = dataclasses.replace(SETTINGS, extra={"agreement": accuracy}, threshold="0.5")
    found = analysis.analyse(split_of(), CLASSES, settings)
    arm = found["arms"]["good"]["metrics"]
    assert arm["agreement"]["value"] == pytest.approx(arm["accuracy"]["value"], abs=1e-12)
    assert arm["agreement"]["low"] < arm["agreement"]["value"] < arm["agreement"]["high"]
    one, two = (found["comparisons"][0]["all_metrics"][n] for n in ("agreement", "accuracy"))
    assert one["value"] == pytest.approx(two["value"], abs=1e-12) and one["low"] < one["high"]
    assert found["settings"]["extra"] == ["agreement"] and '"agreement"' in to_json(found)
    assert "agreement" in html.html(found, None)
    label, p, _ = random_case(0, 30, 2)
    entry = metrics.describe(label, p, classes=("a", "b"), extra={"agreement": accuracy})
    summary = {"arms": {"net": {"test": entry}}, "evaluation": found}
    text = table.render(summary)
    assert "arm  split   n  agreement" in text and f"{entry['agreement']:.3f}" in text


def test_arms_can_be_compared_in_it():
    settings = dataclasses.replace(SETTINGS, extra={"agreement": accuracy}, metric="agreement")
    found = analysis.analyse(split_of(), CLASSES, settings)
    assert found["comparisons"][0]["metric"] == "agreement"
    groups = found["arms"]["good"]["subgroups"]["site"]["groups"]
    assert all("agreement" in group["metrics"] for group in groups.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_undefined(value):
    label, p, _ = random_case(0, 30, 2)
    extra = {"mine": lambda *_: value}
    found = metrics.describe(label, p, classes=("a", "b"), extra=extra)
    assert math.isnan(found["mine"]) and "NaN or an infinite" in found["undefined"]["mine"]
    empty = metrics.describe(label[:0], p[:0], classes=("a", "b"), extra=extra)
    assert empty["undefined"]["mine"] == "there is no labelled example"


@pytest.mark.parametrize("value", [None, "0.5", [0.5, 0.6], 1j])
def test_what_is_no_number_is_refused_by_name(value):
    label, p, _ = random_case(0, 30, 2)
    with pytest.raises(UserError, match="metric 'mine' returned .* it must return one number"):
        metrics.compute(label, p, classes=("a", "b"), extra={"mine": lambda *_: value})


def test_a_metric_that_raises_is_named():
    label, p, _ = random_case(0, 30, 2)
    with pytest.raises(UserError, match="metric 'mine' fails: ZeroDivisionError"):
        metrics.compute(label, p, classes=("a", "b"), extra={"mine": lambda *_: 1 / 0})
    settings = dataclasses.replace(SETTINGS, extra={"mine": lambda *_: 1 / 0})
    with pytest.raises(UserError, match="metric 'mine' fails"):
        analysis.analyse(split_of(), CLASSES, settings)


def test_a_metric_cannot_change_the_predictions():
    def spoil(y_true, y_prob, weight):
        y_prob[:] = 0.5
        return 0.0

    label, p, _ = random_case(0, 30, 2)
    with pytest.raises(UserError, match="read-only"):
        metrics.compute(label, p, classes=("a", "b"), extra={"mine": spoil})
