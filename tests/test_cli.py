import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import GRID, config_file, error_of, watch

import medtl
from medtl import cli
from medtl import config as configs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    return watch(monkeypatch, tmp_path)


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
        (
            ["--config.evaluation.tune.objective.lambda_=[0.1,1]"],
            "evaluation.tune.objective.lambda_",
            (0.1, 1),
        ),
        (
            ["--config.sweep.grid.stages.target.optimizer=adam,sgd(momentum=0.9, nesterov=True)"],
            "sweep.grid.stages.target.optimizer",
            ("adam", "sgd(momentum=0.9, nesterov=True)"),
        ),
        (
            ["--config.sweep.grid.stages.target.freeze=none,layer1"],
            "sweep.grid.stages.target.freeze",
            ("none", "layer1"),
        ),
        (["--config.sweep.grid.augment.flip=True,False"], "sweep.grid.augment.flip", (True, False)),
        (["--config.loggers=a.py:csv(x=1, y=2)"], "loggers", ("a.py:csv(x=1, y=2)",)),
        (
            ["--config.objective.losses.extra.loss=focal.py:focal"],
            "objective.losses.extra.loss",
            "focal.py:focal",
        ),
        (
            ["--config.objective.losses.extra.loss=focal.py:focal"],
            "objective.losses.extra.weight",
            1.0,
        ),
        (
            [
                "--config.objective.terms.mmd.term=mmd.py:mmd",
                "--config.objective.terms.mmd.weight=0.1",
            ],
            "objective.terms.mmd.weight",
            0.1,
        ),
        (["--config.arm.mine.joint=True"], "arm.mine.joint", True),
        (["--config.arm.mine.joint"], "arm.mine.joint", True),
        (["--config.model.encoders.table=net.py:MLP"], "model.encoders.table", "net.py:MLP"),
        (["--config.evaluation.metrics.spec=m.py:spec"], "evaluation.metrics.spec", "m.py:spec"),
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
    config = calls[0][1]
    for part in field.split("."):
        config = config[part]
    assert config == value
    assert type(config) is type(value)


def test_overrides_apply_to_a_config_file_wherever_they_stand(calls, tmp_path):
    name = config_file(
        tmp_path, "c.name = 'own'\nc.stages.target.epochs = 7\nc.stages.source.epochs = 7"
    )
    assert cli.run(["--config.stages.target.epochs=2", f"--config={name}"]) == 0
    assert cli.run(["--config", name, "--config.stages.target.epochs=2"]) == 0
    for _, config, folder in calls:
        assert (config.stages.target.epochs, config.stages.source.epochs) == (2, 7)
        assert folder == Path("runs/own")


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
        (["--manifest=x.csv"], "--manifest is for --mode=predict or embed, not train"),
        (["--profile", "--mode=sweep"], "--profile is for --mode=train, not sweep"),
        (["--mode=evaluate", "--profile"], "--profile is for --mode=train, not evaluate"),
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
            "config.stages.target.epoch: there is no such field; did you mean "
            "'config.stages.target.epochs'?",
        ),
        (
            ["--config.target.epochs=2"],
            "config.target.epochs: there is no such field; did you mean "
            "'config.stages.target.epochs'?",
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
        (
            ["--config.arm.mine.jont=True"],
            "config.arm.mine.jont: there is no such field; did you mean 'config.arm.mine.joint'?",
        ),
        (
            ["--config.objective.terms.mmd.weight=0.1"],
            "config.objective.terms.mmd.term is empty; it must name a function or class",
        ),
        (
            [f"{GRID}1,big"],
            "config.sweep.grid.objective.lambda_ is 'big'; it must be a number",
        ),
        (
            ["--config.sweep.grid.objective.lamda_=1"],
            "config.sweep.grid.objective.lamda_: there is no such field; did you mean "
            "'config.sweep.grid.objective.lambda_'?",
        ),
        (
            ["--config.sweep.grid.objective=1"],
            "--config.sweep.grid.objective: it must be a dict literal",
        ),
        (
            ["--mode=check", GRID + "1", "--config.arms=target_only"],
            "config.sweep.grid.objective.lambda_ weighs the target of a joint arm, but "
            "target_only is "
            "not joint; config.sweep.arm names another",
        ),
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
        ("c = 3", "own.py: get_config() returns a int; it must return a ConfigDict"),
        (
            "c.stages.target.epoch = 3",
            "config.stages.target.epoch: there is no such field; did you mean",
        ),
        ("(", "own.py, line "),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(calls, capsys, tmp_path, body, message):
    name = config_file(tmp_path, body)
    error = error_of(capsys, f"--config={name}")
    assert message in error
    assert len(error) < 300


def test_a_file_without_get_config_is_refused(calls, capsys, tmp_path):
    (tmp_path / "own.py").touch()
    (tmp_path / "runs.csv").touch()
    assert error_of(capsys, "--config=own.py") == "--config: own.py has no function get_config()"
    assert "is not a Python file" in error_of(capsys, "--config=runs.csv")
    assert error_of(capsys, "--config=wn.py").endswith("did you mean 'own.py'?")


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
    for mode in cli.MODES:
        assert re.search(rf"\b{mode}( \(default\))?: ", out)
    assert len(out.splitlines()) <= 36
    assert max(map(len, out.splitlines())) <= 100


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"medtl {medtl.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "seconds"),
    [
        (["--help"], 0, 4.0),
        (["--wrkdir=w"], 2, 5.0),
        (["--config.stages.target.epoch=1"], 2, 5.0),
        (["--config.data.target.kind=manifest", "--config.data.target.path=none.csv"], 2, 5.0),
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
    exit_code, modules = json.loads(done.stdout.splitlines()[-1])
    assert exit_code == code
    assert "Traceback" not in done.stderr
    assert not {"jax", "flax", "optax", "orbax", "torch", "tensorflow", "pandas", "sklearn"} & set(
        modules
    )
    # Seconds of the processor: about 1 on an idle machine, 1.9 were seen on a slow one. What would
    # take long are the modules refused above.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < seconds
    assert list(tmp_path.iterdir()) == []


def test_a_config_file_that_ends_the_program_is_named(tmp_path, capsys):
    (tmp_path / "c.py").write_text("import sys\nsys.exit(0)\n")
    assert cli.run([f"--config={tmp_path}/c.py"]) == 2
    assert "c.py ends the program (exit code 0)" in capsys.readouterr().err


def test_a_pipe_or_a_name_with_a_nul_is_no_manifest(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (f"{tmp_path}/pipe.csv", "/dev/zero", "a\0b.csv"):
        options = ["--config.data.target.kind=manifest", f"--config.data.target.path={path}"]
        assert cli.run(options) == 2
        assert "is not a regular file" in capsys.readouterr().err
