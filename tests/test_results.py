"""`--mode=report`: the report of predictions alone, those of a run or of any other tool."""

import json

import numpy as np
import pytest
from tiny_run import tiny

from medtl import cli
from medtl.experiment import experiment

HEADER = "arm,split,id,label,prob_ill,prob_well,patient_id,site"


def write_foreign(path, seed=0, n=80):
    """Write another tool's predictions: a good arm and a guess, two sites, two images a patient."""
    rng = np.random.default_rng(seed)
    lines = [HEADER]
    for arm, skill in (("mine", 1.5), ("theirs", 0.0)):
        for split in ("val", "test"):
            for i in range(n):
                ill = (i // 2) % 2
                p = 1 / (1 + np.exp(-(skill * (2 * ill - 1) + rng.normal())))
                label, site = "ill" if ill else "well", "north" if i % 3 else "south"
                lines.append(
                    f"{arm},{split},{split}{i},{label},{p:.6f},{1 - p:.6f},{split}{i // 2},{site}"
                )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_predictions_of_any_tool_get_a_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_foreign(tmp_path / "preds.csv")
    arguments = [
        "--mode=report",
        "--predictions=preds.csv",
        "--workdir=out",
        "--config.evaluation.positive=ill",
        "--config.evaluation.reference=theirs",
    ]
    assert cli.run(arguments) == 0
    output = capsys.readouterr().out
    assert "This trained model of mine scores higher than that of theirs: AUROC +" in output
    assert "negative transfer" not in output
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert "config" not in written
    evaluation = written["evaluation"]
    assert (evaluation["positive"], evaluation["split"]) == ("ill", "test")
    assert (evaluation["n"], evaluation["patients"]) == (80, 40)
    mine = evaluation["arms"]["mine"]
    assert mine["threshold"]["chosen_on"] == "val"
    assert mine["subgroups"]["site"]["groups"].keys() == {"north", "south"}
    tests = {test["name"] for test in evaluation["comparisons"][0]["tests"]}
    assert tests == {"patient bootstrap", "DeLong", "McNemar"}
    assert "<svg" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, experiment.train(tiny(evaluation__resamples=100), folder)


def report(folder, *flags):
    """Write the report of a run again; return the content of its metrics.json."""
    assert cli.run(["--mode=report", f"--workdir={folder}", *flags]) == 0
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_s_report_is_rebuilt_from_its_predictions_and_keeps_its_record(finished):
    folder, first = finished
    again = report(folder)
    auroc = first["arms"]["transfer"]["test"]["auroc"]
    assert again["arms"]["transfer"]["test"]["auroc"] == pytest.approx(auroc)
    assert again["config"] == json.loads(json.dumps(first["config"]))
    for name in ("versions", "data", "training", "command", "seconds"):
        assert again[name] == json.loads(json.dumps(first[name])), name
    for name in ("verdict", "errors"):
        assert again["evaluation"][name] == first["evaluation"][name]


def test_a_run_s_report_can_change_the_evaluation_alone(finished, capsys):
    folder, _ = finished
    changed = report(folder, "--config.evaluation.reference=transfer")
    assert [c["arm"] for c in changed["evaluation"]["comparisons"]] == ["scratch"]
    capsys.readouterr()
    assert cli.run(["--mode=report", f"--workdir={folder}", "--config.seeds=3"]) == 2
    assert "a run's report can change config.evaluation alone" in capsys.readouterr().err


def test_other_predictions_are_not_reported_in_the_folder_of_a_run(finished, tmp_path, capsys):
    folder, _ = finished
    path = write_foreign(tmp_path / "preds.csv")
    arguments = ["--mode=report", f"--workdir={folder}", f"--predictions={path}"]
    assert cli.run(arguments) == 2
    assert "holds a run, whose report is not of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictions=preds.csv"], "--predictions needs --workdir=FOLDER"),
        (["--workdir=nowhere"], "there is no nowhere/predictions.csv"),
        (
            ["--workdir=out", "--predictions=preds.csv", "--config.evaluation.positive=il"],
            "did you mean 'ill'?",
        ),
        (
            ["--workdir=out", "--predictions=preds.csv", "--config.evaluation.reference=scratch"],
            "it can be mine, theirs",
        ),
        (
            ["--workdir=out", "--predictions=bad.csv"],
            "bad.csv, line 4, column prob_ill: nan is not a probability",
        ),
    ],
)
def test_what_cannot_be_reported_is_named(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    lines = write_foreign(tmp_path / "preds.csv").read_text().splitlines()
    lines[3] = lines[3].replace(lines[3].split(",")[4], "nan")
    (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")
    assert cli.run(["--mode=report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 2
    assert not (tmp_path / "out/report.html").exists()
