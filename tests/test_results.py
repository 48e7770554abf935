"""The report of predictions alone: those of a run again, and those of any other tool; `--mode=report`."""

import json

import numpy as np
import pytest
from tiny_run import tiny

from medtl import cli
from medtl.experiment import experiment

HEADER = "arm,split,id,label,prob_ill,prob_well,patient_id,site"


def foreign(path, seed=0, n=80):
    """Predictions of another tool: a good arm and a guess, two sites, two images a patient."""
    rng = np.random.default_rng(seed)
    lines = [HEADER]
    for arm, skill in (("mine", 1.5), ("theirs", 0.0)):
        for split in ("val", "test"):
            for i in range(n):
                ill = (i // 2) % 2
                p = 1 / (1 + np.exp(-(skill * (2 * ill - 1) + rng.normal())))
                label = "ill" if ill else "well"
                lines.append(
                    f"{arm},{split},{split}{i},{label},{p:.6f},{1 - p:.6f},{split}{i // 2},{'north' if i % 3 else 'south'}"
                )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_predictions_of_any_tool_get_a_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    foreign(tmp_path / "preds.csv")
    arguments = [
        "--mode=report",
        "--predictions=preds.csv",
        "--workdir=out",
        "--config.evaluation.positive=ill",
    ]
    assert cli.run([*arguments, "--config.evaluation.reference=theirs"]) == 0
    out = capsys.readouterr().out
    assert "mine helps: AUROC +" in out and "negative transfer" not in out
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    found = written["evaluation"]
    assert (found["positive"], found["split"], found["n"], found["patients"]) == (
        "ill",
        "test",
        80,
        40,
    )
    assert found["arms"]["mine"]["threshold"]["chosen_on"] == "val"
    assert found["arms"]["mine"]["subgroups"]["site"]["groups"].keys() == {"north", "south"}
    assert {t["name"] for t in found["comparisons"][0]["tests"]} == {
        "patient bootstrap",
        "DeLong",
        "McNemar",
    }
    assert "config" not in written
    assert "<svg" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_a_run_s_report_is_rebuilt_from_its_predictions_and_keeps_its_record(tmp_path, capsys):
    folder = tmp_path / "run"
    first = experiment.train(tiny(evaluation__resamples=100), folder)
    assert cli.run(["--mode=report", f"--workdir={folder}"]) == 0
    again = json.loads((folder / "metrics.json").read_text())
    assert again["arms"]["transfer"]["test"]["auroc"] == pytest.approx(
        first["arms"]["transfer"]["test"]["auroc"]
    )
    assert (
        again["config"] == json.loads(json.dumps(first["config"]))
        and again["versions"] == first["versions"]
    )
    assert again["evaluation"]["verdict"] == first["evaluation"]["verdict"]
    assert again["evaluation"]["errors"] == first["evaluation"]["errors"]
    assert (
        cli.run(["--mode=report", f"--workdir={folder}", "--config.evaluation.reference=transfer"])
        == 0
    )
    changed = json.loads((folder / "metrics.json").read_text())["evaluation"]
    assert [c["arm"] for c in changed["comparisons"]] == ["scratch"]
    capsys.readouterr()
    assert cli.run(["--mode=report", f"--workdir={folder}", "--config.seeds=3"]) == 2
    assert "a run's report can change config.evaluation alone" in capsys.readouterr().err
    foreign(tmp_path / "preds.csv")
    assert (
        cli.run(["--mode=report", f"--workdir={folder}", f"--predictions={tmp_path / 'preds.csv'}"])
        == 2
    )
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
    text = foreign(tmp_path / "preds.csv").read_text().splitlines()
    text[3] = text[3].replace(text[3].split(",")[4], "nan")
    (tmp_path / "bad.csv").write_text("\n".join(text) + "\n")
    assert cli.run(["--mode=report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 2
    assert not (tmp_path / "out/report.html").exists()
