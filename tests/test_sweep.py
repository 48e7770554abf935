"""A sweep compares settings on val alone and gives the command that trains the best."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from opened import backbone_file
from swept import DECAY, LAMBDA, RATE, frozen, moving

from medtl import cli
from medtl import config as configs
from medtl.errors import UserError
from medtl.experiment import experiment
from medtl.experiment.arm import Arm
from medtl.sweep import sweep


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("weights"))


def test_lambda_rises_slowest_whatever_the_order_of_the_grid():
    config = moving({RATE: (0.1, 0.01), LAMBDA: (3, 0.5)})
    values = [(trial.values[LAMBDA], trial.values[RATE]) for trial in sweep.settings(config)]
    assert values == [(0.5, 0.01), (0.5, 0.1), (3, 0.01), (3, 0.1)]
    assert [trial.name for trial in sweep.settings(config)] == [f"trial_{i}" for i in range(4)]


@pytest.mark.parametrize("solver", ["train", "lbfgs"])
def test_a_sweep_compares_on_val_and_gives_the_command_to_launch(solver, weights, tmp_path, capsys):
    config = frozen(
        weights,
        {LAMBDA: (3.0, 0.0)},
        sweep__solver=solver,
        stages__target__weight_decay=0.01,
        evaluation__folds=2,
        data__target__split=(0.6, 0.2, 0.2),
    )
    command = (
        "python launch.py --mode=sweep --config=c.py --workdir runs/x "
        f"--config.sweep.grid.{LAMBDA}=[3,0] --config.seeds=0"
    )
    result = sweep.sweep(config, tmp_path / "first", command=command)
    output = capsys.readouterr().out
    written = json.loads((tmp_path / "first/sweep.json").read_text())
    for points in (written["points"], written["curve"]):
        assert [point[LAMBDA] for point in points] == [0.0, 3.0]
    scores = [point["value"] for point in result["points"]]
    for point in result["points"]:
        assert point["low"] < point["value"] < point["high"]
        assert len(point["by_split"]) == 2
    assert result["best"] == int(np.argmin(scores))  # the metric is the loss
    launch = (
        f"python launch.py --config=c.py --config.seeds=0 --workdir={tmp_path}/first_chosen "
        f"--config.objective.lambda_={3.0 * result['best']}"
    )
    assert written["command"] == launch
    assert output.rstrip().endswith(launch)
    assert "The test split was not used." in output
    assert "<svg" in (tmp_path / "first/sweep.html").read_text()


def test_any_field_can_be_swept_and_the_command_line_reads_the_chosen_value(weights, tmp_path):
    config = frozen(weights, {"model.hidden": ((), (4,)), "model.prior_bias": (True,)})
    result = sweep.sweep(config, tmp_path / "run", command="python launch.py --mode=sweep")
    assert [point["model.hidden"] for point in result["points"]] == [(), (4,)]
    assert result["curve"] == []
    assert not (tmp_path / "run/sweep.html").exists()
    flags = shlex.split(result["command"])[2:]
    chosen = cli._parse(flags, configs.default()).config
    assert chosen.model.hidden == result["chosen"]["model.hidden"]
    assert chosen.model.prior_bias


def test_labels_of_test_change_nothing(weights, tmp_path, monkeypatch):
    config = frozen(weights, {LAMBDA: (0.0, 3.0)})
    first = sweep.sweep(config, tmp_path / "first")
    load_data = experiment.load_data

    def with_wrong_labels(config):
        examples = load_data(config)
        target = examples["target"]
        label = np.where(target.split == "test", 0, target.label)
        return examples | {"target": dataclasses.replace(target, label=label)}

    monkeypatch.setattr(experiment, "load_data", with_wrong_labels)
    again = sweep.sweep(config, tmp_path / "second")
    assert again["points"] == first["points"]
    assert again["command"] is None


@pytest.mark.parametrize("is_frozen", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_setting_that_diverges_is_undefined_and_not_chosen(is_frozen, weights, tmp_path):
    def swept(rates):
        fields = dict(stages__target__optimizer="sgd", seeds=(0,))
        values = {RATE: rates}
        return frozen(weights, values, **fields) if is_frozen else moving(values, **fields)

    result = sweep.sweep(swept((0.01, 1e38)), tmp_path / "one")
    assert "diverged" in result["points"][1]["undefined"]
    assert np.isnan(result["points"][1]["value"])
    assert result["best"] == 0
    assert "undefined" in sweep.table(result)
    with pytest.raises(UserError, match="every setting of the sweep diverged"):
        sweep.sweep(swept((1e38,)), tmp_path / "all")


def test_among_equal_settings_the_smaller_lambda_is_chosen(weights, tmp_path):
    """With a learning rate of 0 all λ are equal."""
    config = frozen(weights, {LAMBDA: (2.0, 0.5, 1.0), RATE: (0.0,)})
    assert sweep.sweep(config, tmp_path)["chosen"][LAMBDA] == 0.5


def test_a_sweep_without_a_val_part_is_refused_before_anything_is_written(weights, tmp_path):
    config = frozen(
        weights,
        {LAMBDA: (1.0,)},
        data__target__split=(0.5, 0.0, 0.5),
        checkpoint__select="last",
    )
    with pytest.raises(UserError, match=r"compares on val, and config\.data\.target has no val"):
        sweep.sweep(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sweep_of_moving_models_keeps_the_source_stage_and_no_model(tmp_path):
    config = moving({RATE: (1e-2, 1e-1)}, arms=("transfer",), seeds=(0,))
    result = sweep.sweep(config, tmp_path / "run")
    assert result["trained"] == "models"
    kept = [str(p.relative_to(tmp_path / "run")) for p in tmp_path.glob("run/**/checkpoints")]
    assert kept == ["seed_0/transfer/source/checkpoints"]


def test_a_sweep_that_was_stopped_goes_on_after_the_settings_that_are_done(tmp_path, monkeypatch):
    config = moving({RATE: (1e-3, 1e-2, 1e-1)}, seeds=(0,))
    straight = sweep.sweep(config, tmp_path / "straight")
    train, trained = Arm.validation_probabilities, []

    def stopped(arm):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(arm.trial.name)
        return train(arm)

    monkeypatch.setattr(Arm, "validation_probabilities", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(config, tmp_path / "stopped")
    trained.clear()
    result = sweep.sweep(config, tmp_path / "stopped")
    assert trained == ["trial_2"]
    assert result["points"] == straight["points"]

    point = next((tmp_path / "stopped").rglob("trial_0.npz"))
    point.write_bytes(point.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"trial_0.npz is damaged; delete it"):
        sweep.sweep(config, tmp_path / "stopped")


def test_the_command_to_launch_keeps_the_flags_that_the_sweep_did_not_set():
    command = (
        "python launch.py --mode sweep --config c.py -config.seeds 0,1 --workdir=runs/x "
        "--config.sweep.solver=lbfgs --config.objective.lambda_ 7 --config.name='a b' "
        "--noconfig.augment.flip"
    )
    launch = sweep.launch_command(command, {LAMBDA: 0.1, DECAY: 1e-5}, Path("runs/x"))
    assert shlex.split(launch)[2:] == [
        *("--config", "c.py", "-config.seeds", "0,1", "--config.name=a b"),
        *("--noconfig.augment.flip", "--workdir=runs/x_chosen"),
        *("--config.objective.lambda_=0.1", "--config.stages.target.weight_decay=1e-05"),
    ]
