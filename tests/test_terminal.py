"""Names from data neither steer the terminal nor run in a spreadsheet, and are read back."""

import csv
import re

import numpy as np
import pytest

from medtl import cli, files, terminal
from medtl.evaluation import predictions
from medtl.evaluation.predictions import Predictions
from medtl.evaluation.report.html import legible

NASTY = ("\x1b]0;owned\x07", "\x1b[31mred", "a\u202eb", "c\u2066d", "\x9bm")
TEXTS = ["=1+1", "+cmd", "-x", "@SUM(A1)", "'=a", "''=a", "'a'", "-1", "a=b", "'", "\tx", "=\u00e9"]


def test_what_a_command_prints_holds_no_control_characters(tmp_path, monkeypatch, capsys):
    image = "\x1b[2J\u202e.png"
    (tmp_path / "m.csv").write_text(f"image_path,diagnosis,split\n{image},ill,train\n")
    flags = {"path": tmp_path / "m.csv", "kind": "manifest"}
    fields = [f"--config.data.target.{name}={value}" for name, value in flags.items()]
    code = cli.run(["--mode=check", "--config.arms=target_only", *fields])
    shown = capsys.readouterr()
    assert code == 2 and "\\x1b[2J" in shown.err and "\\u202e" in shown.err
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown.out + shown.err)


def test_everything_printed_is_escaped_and_lines_stay(capsys):
    with terminal.escaping():
        for text in NASTY:
            print(text, end="\t\n")
        print("kept é λ\r", flush=True)
    shown = capsys.readouterr().out
    assert shown.endswith("kept é λ\r\n") and shown.count("\n") == len(NASTY) + 1
    assert not any(c in shown for c in "\x1b\x07\u202e\u2066\x9b")


def test_a_report_shows_bidirectional_controls_as_text():
    assert legible("a\u202eb\u2069 é") == "a\\u202eb\\u2069 é"


@pytest.mark.parametrize("text", [*TEXTS, *NASTY])
def test_a_cell_is_no_formula_and_is_read_as_it_was(text):
    cell = files.harmless(text)
    assert cell[0] not in "=+@\t\r" and (cell[0] != "-" or float(cell))
    assert files.as_written(cell) == text


def test_predictions_come_back_and_no_cell_of_text_is_a_formula(tmp_path):
    path, n = tmp_path / "predictions.csv", len(TEXTS)
    probability = np.full((n, 3), 1 / 3)
    one = Predictions(
        "=arm",
        "test",
        np.array(TEXTS),
        np.arange(n) % 3,
        probability,
        patient=np.array(TEXTS[::-1]),
        groups={"site": np.array(["@here"] * n)},
    )
    classes = ("=ill", "-well", "a")
    predictions.write(path, [one], classes)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in ("arm", "id", "label", "patient_id", "site"):
            assert row[name][0] not in "=+@\t" and (row[name][0] != "-" or row[name] == "-1")
    (read,), names = predictions.read(path)
    assert names == classes and read.arm == "=arm"
    assert read.id.tolist() == TEXTS and read.patient.tolist() == TEXTS[::-1]
    assert read.label.tolist() == one.label.tolist() and set(read.groups["site"]) == {"@here"}
