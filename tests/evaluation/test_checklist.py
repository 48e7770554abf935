import dataclasses
import math
from collections import Counter

import analysis_example
import pytest
from record_example import record

from medtl import config as configs
from medtl.evaluation import plan
from medtl.evaluation.report import checklist as checklists
from medtl.evaluation.report.checklist import ABSENT, AUTHOR, FILLED, checklist
from medtl.evaluation.report.checklist_answers import ANSWERS
from medtl.evaluation.report.checklist_items import ITEMS

STARD, TRIPOD, CLAIM = ITEMS
EXAMPLES = ("two_class", "multi_class", "multi_label", "minimal")
FLOW = {
    "rows": 560,
    "labelled": 543,
    "unlabelled": 17,
    "excluded": [{"reason": "the diagnosis is unknown", "rows": 17, "patients": 8}],
    "splits": {"test": {"examples": 543, "patients": 216, "positive_patients": 95}},
}


def full_record():
    """Return the record of a run whose config has every field."""
    return {**record(), "config": configs.default().to_dict()}


def item(guideline, number, analysis=None, of_run=None):
    """Return one item of the two-class example, changed by `analysis`."""
    shown = {**analysis_example.two_class(), **(analysis or {})}
    return next(
        i for i in checklist(shown, of_run) if (i.guideline, i.number) == (guideline, number)
    )


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("of_run", [None, record(), full_record()], ids=["none", "old", "full"])
def test_every_item_of_the_guidelines_is_there_once_with_a_state(name, of_run):
    items = checklist(getattr(analysis_example, name)(), of_run)
    assert Counter(i.guideline for i in items) == {STARD: 48, TRIPOD: 52, CLAIM: 44}
    assert len({(i.guideline, i.number) for i in items}) == 144
    for i in items:
        assert i.state in (FILLED, AUTHOR, ABSENT)
        assert bool(i.text) or i.state == AUTHOR, i
        assert bool(i.place) or i.state != FILLED or i.number == "40b", i
        assert not i.text or i.text.endswith("."), i
        assert "None" not in i.text.removeprefix("None").replace(": None", ""), i
        assert "nan" not in i.text, i


def test_numbers_run_as_in_the_guidelines_and_every_answer_is_used():
    for rows, last in zip(ITEMS.values(), (40, 27, 44), strict=True):
        whole = [int(number.rstrip("abcdefg")) for number, _, _ in rows]
        assert whole == sorted(whole)
        assert set(whole) == set(range(1, last + 1))
    used = {name.removesuffix("+") for rows in ITEMS.values() for *_, name in rows}
    assert used - {""} == set(ANSWERS)
    assert set(checklists.SOURCES) == set(ITEMS)


@pytest.mark.parametrize(
    ("guideline", "number"), [(STARD, "24"), (TRIPOD, "20a"), (TRIPOD, "21"), (CLAIM, "20")]
)
def test_unknown_patients_are_not_done(guideline, number):
    unknown = item(guideline, number, {"patients": None, "flow": FLOW}, record())
    assert unknown.state == ABSENT
    assert "Patients are unknown" in unknown.text
    assert item(guideline, number, {"flow": FLOW}, record()).state == FILLED


def test_the_flow_counts_patients_and_positive_patients():
    flow = item(STARD, "24", {"flow": FLOW})
    assert flow.text == "560 rows; 543 labelled; test: 216 patients, 95 positive."
    assert flow.place == "flow"
    assert item(STARD, "24").state == ABSENT


def test_rows_without_a_label_are_told():
    assert item(TRIPOD, "11").state == AUTHOR
    told = item(TRIPOD, "11", {"flow": FLOW})
    assert told.state == FILLED
    assert told.text == "17 of 560 images have no label; left out: the diagnosis is unknown (17)."
    none = {**FLOW, "unlabelled": 0, "excluded": []}
    assert item(TRIPOD, "11", {"flow": none}).text == "0 of 560 images have no label."


def test_recalibration_is_filled_where_a_map_was_fitted():
    fitted = item(TRIPOD, "24")
    assert fitted.state == FILLED
    # Vector and isotonic scaling are undefined in the example.
    assert fitted.text == "Temperature scaling, fitted on val, before and after."
    shown = analysis_example.two_class()
    shown["arms"]["transfer"]["calibration"] = {"undefined": "val has 3 examples of covid"}
    missing = item(TRIPOD, "24", {"arms": shown["arms"]})
    assert (missing.state, missing.text) == (
        ABSENT,
        "No recalibration: val has 3 examples of covid.",
    )


def test_groups_and_sites_fill_fairness_and_heterogeneity():
    assert item(STARD, "23").state == AUTHOR  # the author adds why these groups
    assert "site and sex" in item(STARD, "23").text
    assert item(TRIPOD, "23b").state == FILLED
    arms = {
        name: {**arm, "subgroups": {}} for name, arm in analysis_example.two_class()["arms"].items()
    }
    assert item(STARD, "23", {"arms": arms}).state == ABSENT
    assert item(TRIPOD, "23b", {"arms": arms}).state == ABSENT
    assert item(STARD, "29").state == ABSENT
    design = {**analysis_example.two_class()["design"], "left_out": "site"}
    assert item(STARD, "29", {"design": design}).text.startswith("Each site was left out of ")


def test_accuracy_has_the_numbers_of_the_analysis():
    estimate = analysis_example.two_class()["arms"]["transfer"]["metrics"]["auroc"]
    shown = f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
    assert item(STARD, "31").text.startswith(f"transfer: AUROC {shown}; ")
    bare = analysis_example.minimal()
    assert item(STARD, "31", {"arms": bare["arms"], "comparisons": []}).state == ABSENT


def test_a_threshold_is_filled_with_its_rule_and_whether_it_was_planned():
    text = item(STARD, "15c").text
    assert text == "transfer: 0.430, youden, chosen on val; from 0.380 to 0.470 over 15 models."
    planned = {"hash": "ab", "settings": {}, "changed": []}
    assert item(STARD, "15c", {"planned": planned}).text.endswith("was stated before training.")
    planned["changed"] = ["threshold was youden"]
    assert item(STARD, "15c", {"planned": planned}).text.endswith(
        "was changed after results were seen."
    )


def test_a_sample_size_is_filled_where_the_config_states_a_plan():
    of_run = full_record()
    assert item(CLAIM, "21", of_run=of_run).state == ABSENT
    of_run["config"]["plan"]["prevalence"] = 0.47
    stated = plan.plan(plan.Assumptions(prevalence=0.47, seeds=3))
    filled = item(CLAIM, "21", of_run=of_run)
    assert filled.state == FILLED
    assert stated.headline in filled.text
    assert set(of_run["config"]["plan"]) == {
        field.name for field in dataclasses.fields(plan.Assumptions)
    } - {"seeds"}


def test_what_only_the_run_knows_is_the_authors_for_foreign_predictions():
    known = {i: checklist(analysis_example.two_class(), i and full_record()) for i in (True, None)}
    changed = {
        (a.guideline, a.number)
        for a, b in zip(known[True], known[None], strict=True)
        if a.state == FILLED and b.state == AUTHOR
    }
    assert {(CLAIM, n) for n in ("9", "20", "22", "23", "24", "25", "26", "27", "32")} <= changed
    assert item(CLAIM, "24", of_run=full_record()).text.startswith("weights/resnet50.pth, sha256 ")
    assert item(CLAIM, "24", of_run={**full_record(), "weights": None}).text == "Random."


def test_undefined_numbers_are_not_shown():
    arms = analysis_example.two_class()["arms"]
    for estimate in arms["transfer"]["metrics"].values():
        estimate |= {"value": math.nan, "low": None, "high": None}
    assert item(CLAIM, "38", {"arms": arms}).state == ABSENT
