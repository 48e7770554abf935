"""The command line: flags and a config in, one call of `medtl.experiment` out.

A mistake is answered in one or two lines and exit code 2, before JAX is imported; nothing is written for it.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from medtl import __version__, data, plugins
from medtl import config as configs
from medtl.config import check
from medtl.errors import UserError, nearest
from medtl.experiment import results, run_folder
from medtl.training import memory

HELP = """\
medtl: transfer learning for medical diagnosis. Pretrained weights -> source stage -> target stage -> evaluation
against training from scratch. Without a flag it runs the embedded experiment on synthetic images.

  --config=FILE          an experiment: a Python file with get_config(), such as those in configs/
  --config.FIELD=VALUE   override one field, e.g. --config.stages.target.epochs=2; all of them: medtl/config.py
  --workdir=FOLDER       where the run is kept (default: runs/<config.name>); the same command resumes it
  --mode=MODE            train (default): train and evaluate every arm; evaluate: its checkpoints; report: rebuild it;
                         predict: score the images of a manifest; sweep: try all of config.sweep, by one program
  --profile              trace some training steps: a trace in WORKDIR/profile, the ten costliest operations here
  --help, --version

with --mode=report, which takes --config.evaluation.FIELD=VALUE and writes to --workdir:
  --predictions=FILE     a CSV with the columns arm, id, label, prob_CLASS..., by whichever tool (default: the run's)

with --mode=predict:
  --manifest=FILE        a CSV with a column image_path
  --checkpoint=FOLDER    a stage's checkpoint (default: the target stage of the run's first arm)
  --output=FILE          where the scores go (default: scored.csv in --checkpoint, else in --workdir)

examples:
  python launch.py --config=configs/covid_ct.py --config.arms=target_only --workdir=runs/linear
  python launch.py --workdir=runs/five_fold --config.evaluation.folds=5 --config.evaluation.repeats=3
  python launch.py --mode=report --predictions=mine.csv --workdir=runs/mine --config.evaluation.positive=covid
  python launch.py --mode=predict --workdir=runs/linear --manifest=new_patients.csv
"""

MODES = ("train", "evaluate", "report", "predict", "sweep")
_ONLY = {
    "manifest": "predict",
    "checkpoint": "predict",
    "output": "predict",
    "predictions": "report",
    "profile": "train",
}
_ILLEGAL = re.compile(r"flag --config\.(?P<path>[^=]+)=")
_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]*)(?P<set>=(?P<value>.*))?", re.DOTALL)


def run(argv: Sequence[str] | None = None) -> int:
    """Does what the command line says.

    Args:
      argv: the arguments without the program's name; by default `sys.argv`'s.

    Returns:
      The exit code: 0; 2 after a user's mistake; 130 after Ctrl-C.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(
            os.getcwd()
        )  # `my_package.losses:focal` beside the user, as `python -m` has it
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"medtl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"medtl: stopped; {str(stopped) or 'the same command resumes'}", file=sys.stderr)
        return 130
    return 0


def _run(argv: list[str]) -> None:
    if {"--help", "-help", "-h"} & set(argv):
        print(HELP, end="")
        return
    if {"--version", "-version"} & set(argv):
        print(f"medtl {__version__}")
        return
    path, rest = _take_config(argv)
    values = _parse(rest, load_config_file(path) if path else configs.default())
    _check_mode(values)
    folder = Path(values.workdir or Path("runs") / values.config.name)
    if values.mode != "sweep" and not values.checkpoint:
        run_folder.check_no_sweep(folder)
    if values.mode == "report":
        _report(values, folder, rest, given=bool(path))
        return
    if values.mode in ("train", "sweep"):
        check.check(values.config)
        if values.mode == "sweep":
            check.check_sweep(values.config)
        run_folder.check(folder, values.config)
    elif not values.checkpoint:
        config = run_folder.load_config(folder)
        if path or any(map(_OVERRIDE.fullmatch, rest)):
            run_folder.check(folder, values.config)
        if values.mode == "evaluate":
            check.check(config)
    if values.mode == "predict":
        data.check(
            configs.dataset(path=values.manifest),
            key="--manifest",
            require_label=False,
            require_train=False,
        )
    _start(values, folder, shlex.join(["python", "launch.py", *argv]))


def _start(values: flags.FlagValues, folder: Path, command: str) -> None:
    memory.keep()
    from medtl.experiment import experiment, inference

    if values.mode == "sweep":
        from medtl.sweep import sweep

        try:
            sweep.sweep(values.config, folder, command=command)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "the same command begins the sweep again; features and source stages that were done are kept"
            ) from None
    elif values.mode == "train":
        experiment.train(values.config, folder, command=command, profile=values.profile)
    elif values.mode == "evaluate":
        experiment.evaluate(run_folder.load_config(folder), folder, command=command)
    else:
        inference.predict(
            folder, manifest=values.manifest, checkpoint=values.checkpoint, output=values.output
        )


def _report(values: flags.FlagValues, folder: Path, rest: list[str], *, given: bool) -> None:
    """Of a run's predictions with the run's own config, of others with the one given; the command line may change config.evaluation."""
    if values.predictions and not values.workdir:
        raise UserError("--predictions needs --workdir=FOLDER, where the report goes")
    config = values.config
    if (folder / run_folder.CONFIG).exists():
        if given:
            raise UserError(
                f"--workdir={folder} holds a run, whose config the report takes; leave --config out"
            )
        for arg in rest:
            override = _OVERRIDE.fullmatch(arg)
            if override and not override["path"].startswith("evaluation."):
                raise UserError(
                    f"--config.{override['path']}: a run's report can change config.evaluation alone"
                )
        stored = run_folder.load_config(folder).copy_and_resolve_references()
        config = _parse(rest, stored.unlock() or stored).config
    check.check_evaluation(config)
    results.rebuild(folder, config, file=Path(values.predictions) if values.predictions else None)


def _check_mode(values: flags.FlagValues) -> None:
    if values.mode not in MODES:
        raise UserError(f"--mode={values.mode}: there is no such mode{nearest(values.mode, MODES)}")
    for name, mode in _ONLY.items():
        if values.mode != mode and values[name].present:
            raise UserError(f"--{name} is for --mode={mode}; the mode is {values.mode}")
    if values.mode != "predict":
        return
    if not values.manifest:
        raise UserError("--mode=predict needs --manifest=FILE, a CSV with a column image_path")
    if values.checkpoint and not Path(values.checkpoint).is_dir():
        raise UserError(f"--checkpoint={values.checkpoint}: there is no such folder")


def load_config_file(path: str) -> ConfigDict:
    """Runs `get_config()` of a Python file.

    Raises:
      UserError: there is no such file (names the nearest), or it raises (names the line), or gives no ConfigDict.
    """
    module = plugins.load_file(path, key="--config")
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"--config: {path} has no function get_config()")
    with plugins.blame(path, key="--config"):
        config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: {path}: get_config() gives a {type(config).__name__}; it must be a ConfigDict"
        )
    return config


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The last --config, and the arguments without any: overrides apply to its config, wherever it stands."""
    path, rest, i = None, [], 0
    while i < len(argv):
        name, equals, value = argv[i].partition("=")
        if name not in ("--config", "-config"):
            rest.append(argv[i])
        elif equals or i + 1 < len(argv):
            path = value if equals else argv[i + 1]
            i += not equals
        if name in ("--config", "-config") and not path:
            raise UserError("--config needs a file: --config=configs/NAME.py")
        i += 1
    return path, rest


def _parse(argv: list[str], config: ConfigDict) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    flags.DEFINE_string("mode", "train", "", flag_values=values)
    flags.DEFINE_bool("profile", False, "", flag_values=values)
    for name in _ONLY.keys() - {"profile"}:
        flags.DEFINE_string(name, "", "", flag_values=values)
    names = [f"--{name}" for name in (*values, "config", "help", "version")]
    arguments = ["medtl", *_spell_out(argv, config)]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        unused = values(arguments)[1:]
    except flags.UnrecognizedFlagError as error:
        near = nearest(f"--{error.flagname.partition('.')[0]}", names)
        raise UserError(f"there is no flag --{error.flagname}{near}") from None
    except flags.Error as error:
        raise _flag_error(str(error), config) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"--config: {' '.join(str(error).split())}: a flag sets a field of a section that another replaces"
        ) from None
    if unused:
        raise UserError(f"{unused[0]!r} is not a flag; flags are written --name=value")
    return values


def _flag_error(message: str, config: ConfigDict) -> UserError:
    """The message of absl; for a value of the wrong type, the type that the field has in place of what Python's parser said."""
    illegal = _ILLEGAL.match(message)
    if not illegal:
        return UserError(" ".join(message.split()))
    value = _field(config, illegal["path"])
    like = "" if isinstance(value, ConfigDict) else f", like {value!r}"
    return UserError(f"--config.{illegal['path']}: it must be {check.KINDS[type(value)]}{like}")


def _spell_out(argv: list[str], config: ConfigDict) -> list[str]:
    """Checks that each overridden field exists, and writes tuples as ml_collections reads them: "a,b" is a literal only of numbers."""
    arguments: dict[
        str, str
    ] = {}  # absl would add a tuple that is given twice up; as elsewhere the last counts
    for arg in argv:
        override = _OVERRIDE.fullmatch(arg)
        current = _field(config, override["path"]) if override else None
        if override and isinstance(current, tuple) and override["set"]:
            arg = f"--config.{override['path']}={_as_tuple(override['value'])}"
        repeated = override and isinstance(current, tuple)
        arguments[
            f"config.{override['path']}" if override and repeated else f"{len(arguments)}"
        ] = arg
    return list(arguments.values())


def _as_tuple(text: str) -> str:
    """A list in words, such as a,b or [25,all], as the literal of a tuple; what is none is left as it is."""
    inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    try:
        value = ast.literal_eval(text)
        return repr(tuple(value)) if isinstance(value, list | tuple) else text
    except (ValueError, SyntaxError):
        if inner.startswith(("(", "[")):
            return text
    items = [item.strip() for item in inner.split(",") if item.strip()]
    return repr(tuple(int(item) if item.isdecimal() else item for item in items))


def _field(config: ConfigDict, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            raise check.no_such_field(f"config.{path}", config)
        value = value[part]
    return value
