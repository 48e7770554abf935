"""A received run folder runs no code that the user has not run before."""

import json
import shutil

import pytest
from tiny_run import tiny

from medtl import cli
from medtl.errors import UserError
from medtl.experiment import experiment, inference, trust

LOSS = "from medtl.losses import cross_entropy as mine\n"


@pytest.fixture(autouse=True)
def data_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    experiment.train(tiny(arms=("scratch",)), folder / "r")
    return folder / "r"


def received(finished, folder, **objective):
    """Copy a run and change its config, as a stranger could."""
    shutil.copytree(finished, folder)
    for path in (folder / "config.json", *folder.glob("seed_*/**/checkpoints/*/record/metadata")):
        content = json.loads(path.read_text())
        for name in ("digest", "checksums"):  # of a record; a stranger could compute them
            content.pop(name, None)
        content.get("config", content)["objective"] |= objective
        path.write_text(json.dumps(content))
    return folder


def test_code_in_a_received_folder_is_not_run_and_is_named(finished, tmp_path, capsys):
    text = f"os:system('touch {tmp_path}/ran')"
    folder = received(finished, tmp_path / "r", lambda_schedule=text)
    assert cli.run(["--mode=evaluate", f"--workdir={folder}"]) == 2
    assert not (tmp_path / "ran").exists()
    error = capsys.readouterr().err
    assert f"asks to run {text!r} (config.objective.lambda_schedule)" in error
    assert "--accept_code" in error


def test_a_metric_in_a_received_folder_is_not_run_by_a_report(finished, tmp_path, capsys):
    folder = received(finished, tmp_path / "r")
    config = json.loads((folder / "config.json").read_text())
    config["evaluation"]["metrics"] = {"mine": f"os:system('touch {tmp_path}/ran')"}
    (folder / "config.json").write_text(json.dumps(config))
    assert cli.run(["--mode=report", f"--workdir={folder}"]) == 2
    assert not (tmp_path / "ran").exists()
    assert "config.evaluation.metrics.mine" in capsys.readouterr().err


def test_a_backbone_in_a_received_checkpoint_is_not_run(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "r")
    (tmp_path / "net.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nNet = dict\n")
    for path in folder.glob("seed_*/**/checkpoints/*/record/metadata"):
        content = json.loads(path.read_text())
        del content["digest"], content["checksums"]  # a stranger could compute them
        content["config"]["model"]["name"] = f"{tmp_path}/net.py:Net"
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"asks to run .*net\.py:Net"):
        inference.load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_the_user_s_own_code_needs_no_acceptance_until_it_changes(tmp_path):
    loss = tmp_path / "mine.py"
    loss.write_text(LOSS)
    config = tiny(arms=("scratch",), objective__losses__main__loss=f"{loss}:mine")
    experiment.train(config, tmp_path / "r")
    command = ["--mode=evaluate", f"--workdir={tmp_path / 'r'}"]
    assert cli.run(command) == 0
    texts = {"config.objective.losses.main.loss": f"{loss}:mine"}
    trust.check(texts, tmp_path)
    loss.write_text(f"{LOSS}# changed\n")
    with pytest.raises(UserError, match="which you have not run before"):
        trust.check(texts, tmp_path)
    trust.check(texts, tmp_path, accept=True)
    trust.check(texts, tmp_path)


def test_names_of_medtl_and_optax_need_no_acceptance(tmp_path):
    trust.check({"a": "adam", "b": "cosine_decay_schedule(1.0, 10)", "c": ""}, tmp_path)
    with pytest.raises(UserError):
        trust.check({"a": "lr_scheduler.os.system('ls')"}, tmp_path)
