"""Methods define every figure that a report shows, and nothing else."""

import analysis_example
import pytest

from medtl.evaluation import metrics
from medtl.evaluation.report.definitions import _METRICS, _PARTS
from medtl.evaluation.report.methods import methods

ENTRIES = {
    "margin": 0.02,
    "subgroups": {"site": {"heterogeneity": {}}},
    "sites": {"arms": {}, "left_out": False},
    "per_patient": {"rule": "mean", "arms": {}},
}


def terms(analysis):
    return [method.term for method in methods(analysis)]


def with_metrics(*names):
    """Return an analysis of one arm that shows these metrics and nothing else."""
    arm = {"metrics": {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in names}}
    return {**analysis_example.minimal(), "arms": {"net": arm}}


@pytest.mark.parametrize("name", metrics.ALL_NAMES)
def test_every_metric_is_defined_where_it_is_shown(name):
    without = terms(with_metrics())
    added = [term for term in terms(with_metrics(name)) if term not in without]
    assert len(added) == 1, added


def test_auroc_and_auprc_are_defined():
    by_term = {m.term: m.text for m in methods(with_metrics("auroc", "auprc"))}
    assert "random positive has a higher score than a random negative" in by_term["AUROC"]
    assert "Average precision of the positive class" in by_term["AUPRC"]


def test_a_metric_of_the_user_is_said_to_be_one():
    analysis = {**with_metrics("accuracy"), "settings": {"extra": ["hits"]}}
    assert "The user's metrics" in terms(analysis)


def test_a_report_with_every_part_defines_each_once():
    analysis = {**analysis_example.two_class(), **ENTRIES, "settings": {"extra": ["hits"]}}
    first = next(iter(analysis["arms"].values()))
    first["per_1000"] = {"prevalence": 0.1}
    first["metrics"]["kappa_quadratic"] = first["metrics"]["mcc"]
    analysis["comparisons"][0] |= {"reclassified": {"newly_found": {}}, "net_benefit": {"low": []}}
    analysis["learning_curve"]["fit"] = {"transfer": {"undefined": "two sizes"}}
    assert "Law of the learning curve" not in terms(analysis)
    analysis["learning_curve"]["fit"]["scratch"] = {"x": [25, 50]}
    shown = terms(analysis)
    assert len(set(shown)) == len(shown)
    assert {one.term for one in (*_METRICS, *_PARTS)} <= set(shown)


def test_a_part_that_is_not_shown_is_not_defined():
    shown = terms(analysis_example.minimal())
    for one in _PARTS:
        assert (one.term in shown) == (one.term == "Confusion matrix"), one.term


@pytest.mark.parametrize("name", ["two_class", "multi_class", "multi_label", "minimal"])
def test_definitions_are_sentences_with_their_sources(name):
    for method in methods(getattr(analysis_example, name)()):
        assert method.text.endswith(".")
        assert all(source.endswith(".") for source in method.sources)
