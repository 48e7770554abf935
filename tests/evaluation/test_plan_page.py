import csv
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from command_line import config_file, error_of

from medtl import cli
from medtl.evaluation import plan
from medtl.evaluation.plan import Assumptions
from medtl.evaluation.report import plan_page

FILES = ["plan.html", "plan.csv", "plan_width.svg", "plan_power.svg"]


def test_a_plan_is_printed_and_written_where_the_workdir_says(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["--mode=plan", "--config.plan.prevalence=0.5"]) == 0
    out = capsys.readouterr().out
    assert out == plan.render(plan.plan(Assumptions(prevalence=0.5))) + "\n"
    assert list(tmp_path.iterdir()) == []
    assert cli.run(["--mode=plan", "--config.plan.prevalence=0.5", "--workdir=runs/plan"]) == 0
    assert capsys.readouterr().out == f"{out}\nruns/plan: {', '.join(FILES)}\n"
    assert {path.name for path in (tmp_path / "runs" / "plan").iterdir()} == set(FILES)


def test_a_config_file_states_what_is_planned(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = config_file(tmp_path, "c.seeds = (0, 1, 2, 3, 4)\nc.plan.auroc = 0.7")
    assert cli.run(["--mode=plan", f"--config={name}"]) == 0
    assert capsys.readouterr().out == plan.render(plan.plan(Assumptions(auroc=0.7, seeds=5))) + "\n"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("prevalence=0", "config.plan.prevalence is 0.0; it must be above 0 and below 1"),
        ("prevalence=20", "config.plan.prevalence is 20.0; it must be above 0 and below 1"),
        ("prevalence=often", "--config.plan.prevalence: it must be a number, like 0.2"),
        ("auroc=0.5", "config.plan.auroc is 0.5; it must be above 0.5 and below 1"),
        ("auroc=nan", "config.plan.auroc is nan; it must be a finite number"),
        ("sensitivity=1", "config.plan.sensitivity is 1.0; it must be above 0 and below 1"),
        ("width=0", "config.plan.width is 0.0; it must be at least 0.005 and below 1"),
        ("difference=0.2", "config.plan.difference is 0.2, but an AUROC of 0.85 can rise by less"),
        ("width=0.4", "config.plan.width is 0.4, but an interval around an AUROC of 0.85 must be"),
        ("power=1", "config.plan.power is 1.0; it must be above 0 and below 1"),
        ("correlation=1", "config.plan.correlation is 1.0; it must be at least 0 and below 1"),
        ("images_per_patient=0.5", "config.plan.images_per_patient is 0.5; it must be at least 1"),
        ("icc=1.5", "config.plan.icc is 1.5; it must be in 0 .. 1"),
        ("level=95", "config.plan.level is 95.0; it must be above 0 and below 1"),
        ("auc=0.9", "config.plan.auc: there is no such field; did you mean 'config.plan.auroc'?"),
    ],
)
def test_a_wrong_assumption_is_one_error(flag, words, capsys):
    assert error_of(capsys, "--mode=plan", f"--config.plan.{flag}").startswith(words)


def test_a_folder_that_cannot_be_made_is_one_error(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    message = error_of(capsys, "--mode=plan", f"--workdir={tmp_path / 'file'}")
    assert message.endswith("cannot be made: File exists; give another folder")


def test_without_a_comparison_there_is_no_power(tmp_path):
    files = plan_page.write(tmp_path, plan.plan(Assumptions(difference=0.0)))
    assert files == FILES[:-1]
    assert "Power" not in (tmp_path / "plan.html").read_text().partition("Methods</h2>")[0]


def test_a_plan_needs_no_jax():
    code = (
        "import sys; from medtl import cli; cli.run(['--mode=plan']); print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_the_files_of_a_plan_hold_its_numbers_and_need_no_other_file(tmp_path):
    made = plan.plan(Assumptions(images_per_patient=4, training_sd=0.04))
    assert plan_page.write(tmp_path, made) == FILES
    with open(tmp_path / "plan.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(made.curve)
    assert [int(row["patients"]) for row in rows] == made.curve["patients"]
    assert float(rows[7]["slope_width"]) == pytest.approx(made.curve["slope_width"][7], rel=1e-5)
    page = (tmp_path / "plan.html").read_text()
    for text in (
        made.headline,
        *made.notes,
        *(cell for row in plan.table_rows(made) for cell in row),
    ):
        assert text.replace("'", "&#39;") in page
    assert not re.findall(r"(?:src|href)=\"(?!data:,|#)|<script", page)


@pytest.mark.parametrize("name", ["plan_width.svg", "plan_power.svg"])
def test_a_curve_is_an_svg_by_itself_with_its_legend(tmp_path, name):
    made = plan.plan(Assumptions())
    plan_page.write(tmp_path, made)
    root = ET.parse(tmp_path / name).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in (tmp_path / name).read_text()
    text = "".join(root.itertext())
    rises = name == "plan_power.svg"
    assert all((n.goal.name in text) == (n.goal.rises == rises) for n in made.needs)
