"""What was planned is written before training, and a report made otherwise says so."""

import json

import pytest
from tiny_run import changed, tiny

from medtl import files
from medtl.errors import UserError
from medtl.experiment import experiment, planned, results
from medtl.experiment.arm import Arm
from medtl.experiment.run_folder import load_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned") / "run"
    return folder, experiment.train(tiny(arms=("scratch",)), folder)


def test_a_report_with_other_settings_says_that_they_changed(run):
    folder, summary = run
    first = summary["evaluation"]["planned"]
    assert first["changed"] == []
    assert first["settings"]["threshold"] == "sensitivity=0.9"
    assert first["hash"] == files.digest(planned.settings(tiny()))
    config = changed(load_config(folder).copy_and_resolve_references().unlock())
    config.evaluation.threshold = "youden"
    config.evaluation.positive = "nodule"
    again = results.rebuild(folder, config)["evaluation"]
    assert again["planned"]["hash"] == first["hash"]
    words = "threshold was 'sensitivity=0.9', is 'youden'"
    assert words in again["planned"]["changed"]
    assert again["warnings"][0].startswith("Changed after results were seen: ")
    assert words in again["warnings"][0] and "positive was '', is 'nodule'" in again["warnings"][0]
    back = results.rebuild(folder, load_config(folder))["evaluation"]
    assert back["planned"] == first


def test_an_edited_plan_does_not_pass(run):
    folder, _ = run
    path = folder / planned.FILE
    text = path.read_text()
    written = json.loads(text)
    written["settings"]["threshold"] = "youden"
    path.write_text(json.dumps(written))
    assert "planned.json was edited" in planned.compare(folder, tiny())["changed"]
    path.write_text(text)


def test_the_plan_is_on_disk_before_anything_is_trained(tmp_path, monkeypatch):
    def stop(arm):
        raise KeyboardInterrupt

    monkeypatch.setattr(Arm, "outcome", stop)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(tiny(arms=("scratch",)), tmp_path / "run")
    assert planned.compare(tmp_path / "run", tiny())["changed"] == []


def test_only_fields_that_change_an_answer_belong_to_the_plan():
    base = files.digest(planned.settings(tiny()))
    for same in ({"evaluation__batch_size": 7}, {"seeds": (5,)}, {"evaluation__times": 3}):
        assert files.digest(planned.settings(tiny(**same))) == base
    for other in (
        {"checkpoint__metric": "loss"},
        {"evaluation__reference": "scratch"},
        {"evaluation__positive": "nodule"},
        {"evaluation__threshold": "0.5"},
    ):
        assert files.digest(planned.settings(tiny(**other))) != base


@pytest.mark.parametrize("content", ["{", "[]", '{"hash": "0"}', '{"settings": {}}', "\x00"])
def test_a_damaged_plan_is_named(tmp_path, content):
    (tmp_path / planned.FILE).write_text(content)
    with pytest.raises(UserError, match=r"planned.json is damaged; delete it, and the report"):
        planned.compare(tmp_path, tiny())


def test_predictions_of_other_tools_were_not_planned(tmp_path):
    assert planned.compare(tmp_path, tiny()) is None
