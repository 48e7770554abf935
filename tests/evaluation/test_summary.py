"""The summary over seeds by hand, and JSON that a strict parser reads."""

import json
import math

import numpy as np
import pytest

from medtl import evaluation
from medtl.evaluation import metrics


def entry(auroc, n=10, confusion=((4, 1), (2, 3)), undefined=None):
    values = dict.fromkeys(metrics.NAMES, 0.5) | {"auroc": auroc}
    fields = {"n": n, **values, "confusion": [list(row) for row in confusion]}
    return fields | ({"undefined": undefined} if undefined else {})


def test_one_seed_is_its_own_summary():
    results = {
        7: {"transfer": {"val": entry(0.7), "test": entry(0.6)}, "scratch": {"val": entry(0.5)}}
    }
    summary = evaluation.summarize(results)
    assert summary == {"arms": results[7], "seeds": {"7": results[7]}}


def test_means_and_standard_deviations_by_hand():
    results = {
        s: {"a": {"val": entry(v, confusion=((s, 0), (0, 4)))}}
        for s, v in zip((0, 1, 2), (0.6, 0.7, 0.8), strict=True)
    }
    summary = evaluation.summarize(results)
    mean = summary["arms"]["a"]["val"]
    assert list(mean) == list(entry(0.5)) and mean["n"] == 10 and isinstance(mean["n"], int)
    assert mean["auroc"] == pytest.approx(0.7) and mean["confusion"] == [[1, 0], [0, 4]]
    assert summary["std"]["a"]["val"] == pytest.approx(
        dict.fromkeys(metrics.NAMES, 0.0) | {"auroc": 0.1}
    )
    assert list(summary["seeds"]) == ["0", "1", "2"] and summary["seeds"]["1"] == results[1]


@pytest.mark.filterwarnings("error")
def test_a_mean_is_over_the_splits_that_have_the_metric_and_names_the_others():
    results = {
        f"fold {i}": {"a": {"test": entry(value, undefined={"auroc": "one class"} if i else None)}}
        for i, value in enumerate((0.6, math.nan))
    }
    results["fold 2"] = {"a": {"test": entry(0.8)}}
    summary = evaluation.summarize(results, runs="splits")
    mean = summary["arms"]["a"]["test"]
    assert mean["auroc"] == pytest.approx(0.7) and "undefined" not in mean
    assert summary["std"]["a"]["test"]["auroc"] == pytest.approx(math.sqrt(0.02))
    assert mean["left_out"] == {"auroc": "fold 1: one class"} and mean["accuracy"] == 0.5


@pytest.mark.filterwarnings("error")
def test_a_metric_that_no_seed_has_is_undefined_with_the_first_reason():
    undefined = {"auroc": "one class"}
    results = {s: {"a": {"val": entry(math.nan, undefined=undefined)}} for s in (0, 1)}
    summary = evaluation.summarize(results)
    mean = summary["arms"]["a"]["val"]
    assert math.isnan(mean["auroc"]) and math.isnan(summary["std"]["a"]["val"]["auroc"])
    assert mean["undefined"] == {"auroc": "seed 0: one class"} and "left_out" not in mean


def test_seeds_that_do_not_compare_are_refused():
    with pytest.raises(ValueError, match="no seed"):
        evaluation.summarize({})
    with pytest.raises(ValueError, match="seed 1"):
        evaluation.summarize({0: {"a": {"val": entry(0.6)}}, 1: {"a": {"test": entry(0.6)}}})


def test_json_is_strict_and_keeps_every_finite_value():
    value = {
        "nan": math.nan,
        "inf": [np.float32("inf"), -math.inf],
        0: (1, np.int64(2), np.float32(0.1), True, None),
        "array": np.array([[1.5, np.nan]]),
        "set": {"b", "a"},
        "text": 'naïve "漢字"\n',
    }
    text = evaluation.to_json(value)
    back = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert back == {
        "nan": None,
        "inf": ["Infinity", "-Infinity"],
        "0": [1, 2, float(np.float32(0.1)), True, None],
        "array": [[1.5, None]],
        "set": ["a", "b"],
        "text": value["text"],
    }
    assert list(back) == [str(key) for key in value] and text.endswith("}\n")
    with pytest.raises(TypeError):
        evaluation.to_json({"x": object()})


def test_floats_survive_json():
    values = np.random.default_rng(0).normal(size=100).tolist()
    assert json.loads(evaluation.to_json(values)) == values
