import json
import resource
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medtl
from medtl import cli
from medtl import config as configs
from medtl.experiment import run_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the command line asked of `medtl.experiment`; the current folder is empty."""
    made = []
    stub = types.ModuleType("stub")

    def train(config, folder, *, command, profile):
        assert command.startswith("python launch.py")
        assert profile == ("--profile" in command.split())
        run_folder.prepare(folder, config)
        made.append(("train", config, folder))

    stub.train = train
    stub.evaluate = lambda config, folder, command: made.append(("evaluate", config, folder))
    stub.predict = lambda folder, **options: made.append(("predict", folder, options))
    stub.sweep = lambda config, folder, command: made.append(("sweep", config, folder))
    for name in ("experiment", "inference", "sweep"):
        monkeypatch.setitem(sys.modules, f"medtl.{name}", stub)
        monkeypatch.setattr(medtl, name, stub, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return made


def config_file(folder, body, name="own.py"):
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (folder / name).write_text(
        f"from medtl import config\n\n\ndef get_config():\n    c = config.default()\n{lines}    return c\n"
    )
    return name


def error_of(capsys, *argv):
    """The error that a mistaken command line gets: one or two lines on stderr, exit code 2, nothing on stdout."""
    assert cli.run(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("medtl: error: ")
    assert 1 <= len(err.splitlines()) <= 2
    return err.removeprefix("medtl: error: ").rstrip("\n")


def test_without_a_flag_the_embedded_experiment_is_trained(calls):
    assert cli.run([]) == 0
    [(mode, config, folder)] = calls
    assert mode == "train"
    assert config.to_dict() == configs.default().to_dict()
    assert config.is_locked
    assert folder == Path("runs/phantom")


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (
            ["--config.evaluation.target_sizes=[25,50,all]"],
            "evaluation.target_sizes",
            (25, 50, "all"),
        ),
        (["--config.evaluation.target_sizes=25,all"], "evaluation.target_sizes", (25, "all")),
        (["--config.evaluation.tune.lambda_=[0.1,1]"], "evaluation.tune.lambda_", (0.1, 1)),
        (["--config.stages.target.epochs=2"], "stages.target.epochs", 2),
        (["-config.stages.target.epochs", "2"], "stages.target.epochs", 2),
        (
            ["--config.stages.target.epochs=2", "--config.stages.target.epochs=3"],
            "stages.target.epochs",
            3,
        ),
        (["--config.stages.target.learning_rate=1"], "stages.target.learning_rate", 1.0),
        (["--config.augment.flip=false"], "augment.flip", False),
        (["--noconfig.augment.flip"], "augment.flip", False),
        (["--config.model.prior_bias"], "model.prior_bias", True),
        (["--config.seeds=3"], "seeds", (3,)),
        (["--config.seeds=0,1,2"], "seeds", (0, 1, 2)),
        (["--config.seeds=(0, 1)"], "seeds", (0, 1)),
        (["--config.arms=target_only"], "arms", ("target_only",)),
        (["--config.arms=target_only", "--config.arms=scratch"], "arms", ("scratch",)),
        (["--config.arms=target_only,scratch"], "arms", ("target_only", "scratch")),
        (["--config.arms=('target_only', 'scratch')"], "arms", ("target_only", "scratch")),
        (["--config.weights.allow=fc.*,layer4.*"], "weights.allow", ("fc.*", "layer4.*")),
        (["--config.model.hidden="], "model.hidden", ()),
        (["--config.data.target.split=0.5,0.25,0.25"], "data.target.split", (0.5, 0.25, 0.25)),
        (["--config.name=x=y"], None, "config.name is 'x=y'"),
        (
            ["--config.stages.target.optimizer=sgd(momentum=0.9)"],
            "stages.target.optimizer",
            "sgd(momentum=0.9)",
        ),
        (
            ["--config.objective.losses={'a': {'loss': 'mean_squared_error', 'weight': 2.0}}"],
            "objective.losses.a.weight",
            2.0,
        ),
    ],
)
def test_any_field_of_the_embedded_config_can_be_overridden(calls, capsys, arguments, field, value):
    if field is None:
        assert value in error_of(capsys, *arguments)
        return
    assert cli.run(arguments) == 0
    found = calls[0][1]
    for part in field.split("."):
        found = found[part]
    assert found == value
    assert type(found) is type(value)


def test_overrides_apply_to_a_config_file_wherever_they_stand(calls, tmp_path):
    name = config_file(
        tmp_path, "c.name = 'own'\nc.stages.target.epochs = 7\nc.stages.source.epochs = 7"
    )
    assert cli.run(["--config.stages.target.epochs=2", f"--config={name}"]) == 0
    assert cli.run(["--config", name, "--config.stages.target.epochs=2"]) == 0
    for _, config, folder in calls:
        assert (config.stages.target.epochs, config.stages.source.epochs) == (2, 7)
        assert folder == Path("runs/own")


def test_workdir_is_where_the_run_is_kept(calls):
    assert cli.run(["--workdir=elsewhere/a"]) == 0
    assert calls[0][2] == Path("elsewhere/a")


def test_the_same_command_resumes_and_another_config_is_refused(calls, capsys):
    assert cli.run(["--workdir=w"]) == 0
    assert cli.run(["--workdir=w"]) == 0
    message = error_of(capsys, "--workdir=w", "--config.seeds=1")
    assert message.startswith(
        "--workdir=w holds a run of another config: seeds is (0,) there and (1,) here\n"
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
    run_folder.prepare(tmp_path / "w", config)
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
        ("predict", Path("runs/phantom"), {"manifest": "new.csv", "checkpoint": "", "output": ""}),
        (
            "predict",
            Path("none"),
            {"manifest": "new.csv", "checkpoint": "stage", "output": "o.csv"},
        ),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wrkdir=w"], "there is no flag --wrkdir; did you mean '--workdir'?"),
        (["--hlep"], "there is no flag --hlep; did you mean '--help'?"),
        (["--cofnig.seeds=1"], "there is no flag --cofnig.seeds; did you mean '--config'?"),
        (["train"], "'train' is not a flag; flags are written --name=value"),
        (["--workdir"], "Missing value for flag --workdir"),
        (["--config"], "--config needs a file: --config=configs/NAME.py"),
        (["--config="], "--config needs a file: --config=configs/NAME.py"),
        (["--mode=trian"], "--mode=trian: there is no such mode; did you mean 'train'?"),
        (["--manifest=x.csv"], "--manifest is for --mode=predict; the mode is train"),
        (["--profile", "--mode=sweep"], "--profile is for --mode=train; the mode is sweep"),
        (["--mode=evaluate", "--profile"], "--profile is for --mode=train; the mode is evaluate"),
        (["--profle"], "there is no flag --profle; did you mean '--profile'?"),
        (
            ["--mode=predict"],
            "--mode=predict needs --manifest=FILE, a CSV with a column image_path",
        ),
        (
            ["--mode=predict", "--manifest=x.csv"],
            "there is no run in runs/phantom: it holds no config.json",
        ),
        (
            ["--mode=predict", "--manifest=x.csv", "--checkpoint=x"],
            "--checkpoint=x: there is no such folder",
        ),
        (["--mode=evaluate"], "there is no run in runs/phantom: it holds no config.json"),
        (
            ["--config.stages.target.epoch=2"],
            "config.stages.target.epoch: there is no such field; did you mean 'config.stages.target.epochs'?",
        ),
        (
            ["--config.target.epochs=2"],
            "config.target.epochs: there is no such field; did you mean 'config.stages.target.epochs'?",
        ),
        (["--config.=2"], "config.: there is no such field; did you mean 'config.arm'?"),
        (
            ["--config.arm={'a': {}}", "--config.arm.scratch.init=random"],
            "--config: \"'scratch'\": a flag sets a field of a section that another replaces",
        ),
        (
            ["--config.name.x=2"],
            "config.name.x: there is no such field; did you mean 'config.name'?",
        ),
        (
            ["--config.stages.target.epochs=2.5"],
            "--config.stages.target.epochs: it must be a whole number, like 10",
        ),
        (
            ["--config.stages.target.epochs="],
            "--config.stages.target.epochs: it must be a whole number, like 10",
        ),
        (
            ["--config.objective.lambda_=big"],
            "--config.objective.lambda_: it must be a number, like 1.0",
        ),
        (
            ["--config.augment.flip=maybe"],
            "--config.augment.flip: it must be true or false, like True",
        ),
        (
            ["--config.objective.losses=cross_entropy"],
            "--config.objective.losses: it must be a dict literal",
        ),
        (
            ["--config.objective.lambda_=-1"],
            "config.objective.lambda_ is -1.0; it must be at least 0",
        ),
        (
            ["--config.seeds=(0,a)"],
            "config.seeds is (0, 'a'); it must be whole numbers in 0 .. 2**32 - 1",
        ),
        (["--config=configs/none.py"], "--config: there is no file configs/none.py"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(calls, capsys, arguments, message):
    assert error_of(capsys, *arguments) == message
    assert calls == []
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "c.stages.target.epochs = 2.5",
            "own.py, line 6: TypeError: Could not override field 'epochs'",
        ),
        (
            "print(c.stages.traget)",
            "own.py, line 6: AttributeError: 'traget' Did you mean \"target\"",
        ),
        ("\nraise RuntimeError('two\\nlines')", "own.py, line 7: RuntimeError: two lines"),
        (
            "import no_such_package",
            "own.py, line 6: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("c = 3", "own.py: get_config() gives a int; it must be a ConfigDict"),
        (
            "c.stages.target.epoch = 3",
            "config.stages.target.epoch: there is no such field; did you mean",
        ),
        ("(", "own.py, line "),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(calls, capsys, tmp_path, body, message):
    name = config_file(tmp_path, body)
    found = error_of(capsys, f"--config={name}")
    assert message in found
    assert len(found) < 300


def test_a_file_without_get_config_is_refused(calls, capsys, tmp_path):
    (tmp_path / "own.py").touch()
    (tmp_path / "runs.csv").touch()
    assert error_of(capsys, "--config=own.py") == "--config: own.py has no function get_config()"
    assert "is not a Python file" in error_of(capsys, "--config=runs.csv")
    assert error_of(capsys, "--config=wn.py").endswith("did you mean 'own.py'?")


def test_an_error_of_a_lower_layer_is_printed_and_ctrl_c_is_not_a_traceback(
    calls, capsys, monkeypatch
):
    def fail(config, folder, **options):
        raise medtl.base.UserError("manifest.csv, row 7: no such image")

    monkeypatch.setattr(sys.modules["medtl.experiment"], "train", fail)
    assert error_of(capsys) == "manifest.csv, row 7: no such image"

    def interrupt(config, folder, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["medtl.experiment"], "train", interrupt)
    assert cli.run([]) == 130
    assert capsys.readouterr().err == "medtl: stopped; the same command resumes\n"


def test_a_bug_keeps_its_traceback(calls, monkeypatch):
    def fail(config, folder, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["medtl.experiment"], "train", fail)
    with pytest.raises(ZeroDivisionError):
        cli.run([])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag_on_one_screen(capsys, flag):
    assert cli.run([flag, "--nonsense"]) == 0
    out = capsys.readouterr().out
    for name in (
        "config",
        "workdir",
        "mode",
        "profile",
        "predictions",
        "manifest",
        "checkpoint",
        "output",
        "version",
    ):
        assert f"--{name}" in out
    assert len(out.splitlines()) <= 24
    assert max(map(len, out.splitlines())) <= 120


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"medtl {medtl.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "seconds"),
    [
        (["--help"], 0, 1.0),
        (["--wrkdir=w"], 2, 2.0),
        (["--config.stages.target.epoch=1"], 2, 2.0),
        (["--config.data.target.kind=manifest", "--config.data.target.path=none.csv"], 2, 2.0),
    ],
)
def test_an_answer_comes_at_once_and_without_jax(tmp_path, arguments, code, seconds):
    # `python launch.py`, and then the names of the modules that it imported.
    program = (
        "import json, runpy, sys\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'launch.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "print(json.dumps([code, sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found, modules = json.loads(done.stdout.splitlines()[-1])
    assert found == code
    assert "Traceback" not in done.stderr
    assert not {"jax", "flax", "optax", "orbax", "torch", "tensorflow", "pandas", "sklearn"} & set(
        modules
    )
    # Seconds of the processor, which do not depend on what else the machine is doing.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < seconds
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["train", "evaluate", "predict", "report"])
def test_the_folder_of_a_sweep_has_no_models(capsys, tmp_path, mode):
    (tmp_path / "w").mkdir()
    for command, said in (
        ("python launch.py --x", "train the chosen values:\n  python launch.py --x"),
        (None, "another folder"),
    ):
        (tmp_path / "w/sweep.json").write_text(json.dumps({"command": command}))
        asked = [
            f"--mode={mode}",
            f"--workdir={tmp_path / 'w'}",
            *(["--manifest=m.csv"] if mode == "predict" else []),
        ]
        assert error_of(capsys, *asked).endswith(said)


def test_a_sweep_that_is_stopped_begins_again(monkeypatch, calls, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["medtl.sweep"], "sweep", stopped)
    assert cli.run(["--mode=sweep", "--config.sweep.learning_rate=1,2", "--workdir=w"]) == 130
    assert "the same command begins the sweep again" in capsys.readouterr().err


def test_a_sweep_is_asked_for_by_its_mode(calls, capsys, tmp_path):
    np.savez("w.npz", kernel=np.zeros(1))
    stages = "\n".join(
        f"c.stages.{stage}.update(freeze='backbone', batch_norm='frozen')"
        for stage in ("source", "target")
    )
    config_file(tmp_path, f"c.weights.path = 'w.npz'\nc.augment.flip = False\n{stages}")
    assert (
        cli.run(
            ["--mode=sweep", "--config=own.py", "--config.sweep.lambda_=[0,0.1,10]", "--workdir=w"]
        )
        == 0
    )
    [(mode, config, folder)] = calls
    assert (mode, config.sweep.lambda_, folder) == ("sweep", (0, 0.1, 10), Path("w"))
    assert "nothing to try" in error_of(capsys, "--mode=sweep", "--config=own.py")
    asked = ("--mode=sweep", "--config.sweep.lambda_=1,2", "--config.sweep.solver=lbfgs")
    assert "frozen backbone" in error_of(capsys, *asked)
