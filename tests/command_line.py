"""Command lines in tests: the calls that they make, and the errors that they get."""

import sys
import types

from medtl import cli, experiment, sweep
from medtl.experiment import run_folder

GRID = "--config.sweep.grid.objective.lambda_="


class Calls(list):
    """The calls that a command line made of `stub`, in place of the modules that import JAX."""

    stub: types.ModuleType


def watch(monkeypatch, tmp_path):
    """Return the calls that command lines will make; the current folder is empty."""
    made = Calls()
    stub = types.ModuleType("stub")

    def train(config, folder, *, command, profile):
        assert command.startswith("python launch.py")
        assert profile == ("--profile" in command.split())
        with run_folder.opened(folder, config):
            pass
        made.append(("train", config, folder))

    stub.train = train
    stub.evaluate = lambda config, folder, command: made.append(("evaluate", config, folder))
    stub.predict = lambda folder, **options: made.append(("predict", folder, options))
    stub.sweep = lambda config, folder, command: made.append(("sweep", config, folder))
    stub.preview = lambda config: made.append(("check", config))
    for package, name in (
        (experiment, "experiment"),
        (experiment, "inference"),
        (experiment, "preview"),
        (sweep, "sweep"),
    ):
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", stub)
        monkeypatch.setattr(package, name, stub, raising=False)
    made.stub = stub
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return made


def config_file(folder, body, name="own.py"):
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (folder / name).write_text(
        f"from medtl import config\n\n\ndef get_config():\n    c = config.default()\n{lines}    "
        f"return c\n"
    )
    return name


def error_of(capsys, *argv):
    """Return a command line's error: exit code 2, one or two lines on stderr, none on stdout."""
    assert cli.run(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("medtl: error: ")
    assert 1 <= len(err.splitlines()) <= 2
    return err.removeprefix("medtl: error: ").rstrip("\n")
