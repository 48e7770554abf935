import errno
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import GRID, config_file, error_of, watch
from PIL import Image

from medtl import cli
from medtl import config as configs
from medtl.errors import UserError
from medtl.experiment import run_folder


@pytest.fixture
def calls(monkeypatch, tmp_path):
    return watch(monkeypatch, tmp_path)


def test_workdir_is_where_the_run_is_kept(calls):
    assert cli.run(["--workdir=elsewhere/a"]) == 0
    assert calls[0][2] == Path("elsewhere/a")


def test_the_same_command_resumes_and_another_config_is_refused(calls, capsys):
    assert cli.run(["--workdir=w"]) == 0
    assert cli.run(["--workdir=w"]) == 0
    message = error_of(capsys, "--workdir=w", "--config.seeds=1")
    assert message.startswith(
        "--workdir=w holds a run of another config: seeds is (0, 1, 2) there and (1,) here\n"
    )
    assert len(calls) == 2


def test_a_run_goes_on_with_or_without_its_profile(calls):
    for arguments in (["--workdir=w"], ["--workdir=w", "--profile"], ["--workdir=w"]):
        assert cli.run(arguments) == 0
    assert [config.to_dict() for _, config, _ in calls] == [configs.default().to_dict()] * 3


def test_evaluate_takes_the_config_of_the_run(calls, capsys):
    cli.run(["--workdir=w", "--config.seeds=5"])
    assert cli.run(["--workdir=w", "--mode=evaluate"]) == 0
    assert cli.run(["--workdir=w", "--mode=evaluate", "--config.seeds=5"]) == 0
    assert [config.seeds for _, config, _ in calls] == [(5,)] * 3
    assert "another config" in error_of(
        capsys, "--workdir=w", "--mode=evaluate", "--config.seeds=6"
    )


def test_a_bad_manifest_is_found_before_the_model_is_loaded(calls, capsys, tmp_path):
    cli.run([])
    assert "x.csv" in error_of(capsys, "--mode=predict", "--manifest=x.csv")
    (tmp_path / "x.csv").write_text("image,diagnosis\na.png,sick\n")
    assert "did you mean 'image'" in error_of(capsys, "--mode=predict", "--manifest=x.csv")
    assert len(calls) == 1


def test_prediction_does_not_need_the_data_of_the_training(calls, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "new.csv").write_text("image_path\na.png\n")
    config = configs.default()
    config.data.target = configs.dataset(path="moved/away.csv")
    with run_folder.opened(tmp_path / "w", config):
        pass
    assert cli.run(["--mode=predict", "--manifest=new.csv", "--workdir=w"]) == 0
    assert len(calls) == 1


def test_predict_gets_its_files(calls, tmp_path):
    cli.run([])
    (tmp_path / "new.csv").write_text("image_path\na.png\n")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "stage").mkdir()
    assert cli.run(["--mode=predict", "--manifest=new.csv"]) == 0
    assert (
        cli.run(
            [
                "--mode=predict",
                "--manifest=new.csv",
                "--checkpoint=stage",
                "--output=o.csv",
                "--workdir=none",
            ]
        )
        == 0
    )
    assert calls[1:] == [
        (
            "predict",
            Path("runs/phantom"),
            {"manifest": "new.csv", "checkpoint": "", "output": "", "accept_code": False},
        ),
        (
            "predict",
            Path("none"),
            {
                "manifest": "new.csv",
                "checkpoint": "stage",
                "output": "o.csv",
                "accept_code": False,
            },
        ),
    ]


def test_an_error_of_a_lower_layer_is_printed_and_ctrl_c_is_not_a_traceback(
    calls, capsys, monkeypatch
):
    def fail(config, folder, **options):
        raise UserError("manifest.csv, row 7: no such image")

    monkeypatch.setattr(calls.stub, "train", fail)
    assert error_of(capsys) == "manifest.csv, row 7: no such image"

    def interrupt(config, folder, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(calls.stub, "train", interrupt)
    assert cli.run([]) == 130
    assert capsys.readouterr().err == "medtl: stopped; the same command resumes\n"


class XlaRuntimeError(RuntimeError):
    """As JAX names its class."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/phantom/metrics.json"),
            "runs/phantom/metrics.json: No space left on device; free space there, ",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "cache/images.npy"),
            "cache/images.npy: Permission denied; allow access, ",
        ),
        (MemoryError("Unable to allocate 3 GiB"), "the machine is out of memory (Unable to "),
        (
            ValueError("RESOURCE_EXHAUSTED: Error writing 'd/1': No space left on device"),
            "No space left on device; free space there, ",
        ),
        (
            XlaRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying\nto allocate 123456 bytes."
            ),
            "the device is out of memory (allocate 123456 bytes); reduce the batch_size",
        ),
        (
            XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
            "the device is out of memory; reduce",
        ),
    ],
)
def test_a_fault_of_the_machine_ends_in_one_line_with_advice(
    calls, capsys, monkeypatch, error, message
):
    def fail(config, folder, **options):
        raise error

    monkeypatch.setattr(calls.stub, "train", fail)
    assert cli.run([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"medtl: error: {message}")
    assert err.endswith("; then run the same command again\n")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "no"), XlaRuntimeError("INTERNAL: x")],
)
def test_a_bug_keeps_its_traceback(calls, monkeypatch, error):
    def fail(config, folder, **options):
        raise error

    monkeypatch.setattr(calls.stub, "train", fail)
    with pytest.raises(type(error)):
        cli.run([])


def test_check_shows_a_preview_and_writes_nothing(calls, tmp_path):
    assert cli.run(["--mode=check", "--config.stages.target.epochs=3"]) == 0
    [(mode, config)] = calls
    assert (mode, config.stages.target.epochs) == ("check", 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["train", "evaluate", "predict", "report"])
def test_the_folder_of_a_sweep_has_no_models(capsys, tmp_path, mode):
    (tmp_path / "w").mkdir()
    for command, advice in (
        ("python launch.py --x", "train the chosen values:\n  python launch.py --x"),
        (None, "another folder"),
    ):
        (tmp_path / "w/sweep.json").write_text(json.dumps({"command": command}))
        asked = [
            f"--mode={mode}",
            f"--workdir={tmp_path / 'w'}",
            *(["--manifest=m.csv"] if mode == "predict" else []),
        ]
        assert error_of(capsys, *asked).endswith(advice)


def test_a_sweep_that_is_stopped_says_what_the_next_one_repeats(monkeypatch, calls, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(calls.stub, "sweep", stopped)
    assert (
        cli.run(
            ["--mode=sweep", "--config.sweep.grid.stages.target.learning_rate=1,2", "--workdir=w"]
        )
        == 130
    )
    assert "the same command goes on after the settings that are done" in capsys.readouterr().err


def test_a_sweep_is_asked_for_by_its_mode(calls, capsys, tmp_path):
    np.savez("w.npz", kernel=np.zeros(1))
    stages = "\n".join(
        f"c.stages.{stage}.update(freeze='backbone', batch_norm='frozen')"
        for stage in ("source", "target")
    )
    config_file(tmp_path, f"c.weights.path = 'w.npz'\nc.augment.flip = False\n{stages}")
    assert cli.run(["--mode=sweep", "--config=own.py", GRID + "[0,0.1,10]", "--workdir=w"]) == 0
    [(mode, config, folder)] = calls
    assert (mode, folder) == ("sweep", Path("w"))
    assert configs.paths(config.sweep.grid) == {"objective.lambda_": (0, 0.1, 10)}
    assert "nothing to try" in error_of(capsys, "--mode=sweep", "--config=own.py")
    asked = ("--mode=sweep", f"{GRID}1,2", "--config.sweep.solver=lbfgs")
    assert "frozen backbone" in error_of(capsys, *asked)
