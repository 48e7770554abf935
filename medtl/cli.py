"""The command line: flags and a config in, one call of `medtl.experiment` out.

A mistake is answered in one or two lines and exit code 2, before JAX is imported and before
anything is written.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from medtl import __version__, data, files, plugins, terminal
from medtl import config as configs
from medtl.config import check, lookup, recipes
from medtl.config.command_line import HELP, MODES, ONLY
from medtl.config.rules import KINDS
from medtl.errors import UserError, nearest
from medtl.evaluation import plan
from medtl.evaluation.report import plan_page
from medtl.experiment import results, run_folder, trust
from medtl.training import launching, memory, stopping

_SEVERAL = ("coordinator", "process_id", "process_count")
_ILLEGAL = re.compile(r"flag --config\.(?P<path>[^=]+)=")
_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]*)(?P<set>=(?P<value>.*))?", re.DOTALL)
_AUTO = re.compile(r"stages\.\w+\.batch_size")
_LESS_MEMORY = "set config.data.cache='stream' or reduce the batch_size of config.stages"


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
      argv: the arguments without the program's name; by default those of `sys.argv`.

    Returns:
      The exit code: 0; 1 where the machine is at fault (disk full, no permission, out of memory,
      another process of the run ended);
      2 after a user's mistake; 130 after Ctrl-C, 143 after SIGTERM.
    """
    if os.getcwd() not in sys.path:  # for `my_package.losses:focal`, as with `python -m`
        sys.path.append(os.getcwd())
    with terminal.escaping():
        return _exit_code(list(sys.argv[1:] if argv is None else argv))


def _exit_code(argv: list[str]) -> int:
    try:
        with stopping.raised():
            _run(argv)
    except UserError as error:
        print(f"medtl: error: {error}", file=sys.stderr)
        return launching.leave(2, together=False)
    except KeyboardInterrupt as stopped:
        print(f"medtl: stopped; {str(stopped) or 'the same command resumes'}", file=sys.stderr)
        code = getattr(stopped, "exit_code", 130)
        return launching.leave(code, together=getattr(stopped, "is_agreed", False))
    except Exception as error:
        if launching.is_loss(error):
            print(f"medtl: error: {launching.LOST}", file=sys.stderr)
            return launching.leave(1, together=False)
        message = _machine_message(error)
        if message is None and not launching.is_joined():
            raise
        text = message and f"medtl: error: {message}; then run the same command again"
        print(text or traceback.format_exc(), file=sys.stderr)
        return launching.leave(1, together=False)
    return launching.leave(0, together=True)


def _machine_message(error: Exception) -> str | None:
    """Return one line for a fault of the machine, None for a bug, which keeps its traceback."""
    text = " ".join(str(error).split())
    if message := files.fault(error):
        return message
    if isinstance(error, memory.OutOfMemoryError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"the machine is out of memory{f' ({text})' if text else ''}; {_LESS_MEMORY}"
    if memory.is_exhausted(error):
        return (
            f"the device is out of memory{memory.requested(text)}; reduce the "
            "batch_size of config.stages, raise its accumulate, or set config.model.remat=True"
        )
    return None


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
    if values.mode == "plan":
        _plan(values)
        return
    folder = Path(values.workdir or Path("runs") / values.config.name)
    if values.mode in ("inspect", "export_tfds"):
        _look_at_data(values, folder)
        return
    if values.mode in ("embed", "export"):
        _hand_out(values, folder)
        return
    if values.mode not in ("sweep", "check") and not values.checkpoint:
        run_folder.check_no_sweep(folder)
    if values.mode == "report":
        _report(values, folder, rest, has_config_file=bool(path))
        return
    if values.mode in ("train", "check", "sweep"):
        _apply_recipe(values.config, rest)
        check.check(values.config)
        check.check_installed(values.config)
        if values.mode == "sweep" or (
            values.mode == "check" and configs.paths(values.config.sweep.grid)
        ):
            check.check_sweep(values.config)
        if values.mode != "check":
            run_folder.check(folder, values.config)
    elif not values.checkpoint:
        config = run_folder.load_config(folder)
        if path or any(map(_OVERRIDE.fullmatch, rest)):
            run_folder.check(folder, values.config)
        if values.mode == "evaluate":
            trust.check(configs.plugin_strings(config), folder, accept=values.accept_code)
            check.check(config)
        # What a table needs only its checkpoint shows.
        d = config.data
        renamed = d.source.columns or d.target.columns  # read with the model
        if values.mode == "predict" and tuple(d.inputs) == ("image",) and not renamed:
            data.check(
                configs.dataset(path=values.manifest),
                key="--manifest",
                require_label=False,
                require_train=False,
            )
    _start(values, folder, shlex.join(["python", "launch.py", *argv]))


def _apply_recipe(config: ConfigDict, rest: Sequence[str]) -> None:
    """Set the fields of the requested recipe that no flag sets, and say which it is."""
    matches = filter(None, map(_OVERRIDE.fullmatch, rest))
    if line := recipes.apply(config, given={match["path"] for match in matches}):
        print(line)


def _start(values: flags.FlagValues, folder: Path, command: str) -> None:
    memory.keep()
    if values.mode == "sweep":
        from medtl.sweep import sweep

        try:
            sweep.sweep(values.config, folder, command=command)
        except KeyboardInterrupt as stopped:
            stopped.args = (
                "the same command goes on after the settings that are done; heads of a frozen "
                "backbone, which one program trains together, begin again",
            )
            raise
    elif values.mode == "predict":
        from medtl.experiment import inference

        inference.predict(
            folder,
            manifest=values.manifest,
            checkpoint=values.checkpoint,
            output=values.output,
            accept_code=values.accept_code,
        )
    elif values.mode == "check":
        from medtl.experiment import preview

        preview.preview(values.config)
    else:
        with launching.joined(_launch(values)):
            from medtl.experiment import experiment

            if values.mode == "train":
                experiment.train(values.config, folder, command=command, profile=values.profile)
            else:
                experiment.evaluate(run_folder.load_config(folder), folder, command=command)


def _launch(values: flags.FlagValues) -> launching.Launch | None:
    return launching.launch_of(values.coordinator, values.process_id, values.process_count)


def _look_at_data(values: flags.FlagValues, folder: Path) -> None:
    """Write a page about the data, or the data as TFDS data sets."""
    if values.mode == "inspect":
        from medtl.experiment import inspection

        inspection.inspect(values.config, folder)
        return
    from medtl.experiment import export

    if not values.workdir:
        raise UserError("--mode=export_tfds needs --workdir=FOLDER, where the data sets go")
    export.export(values.config, folder)


def _hand_out(values: flags.FlagValues, folder: Path) -> None:
    """Write features, or a trained model, for other tools."""
    from medtl.experiment import embedding, inference

    memory.keep()
    checkpoint, accept = values.checkpoint or None, values.accept_code
    if values.mode == "export":
        inference.export(folder, values.output, checkpoint=checkpoint, accept_code=accept)
    elif checkpoint:
        stored = inference.load_checkpoint(folder, checkpoint, accept_code=accept)
        embedding.embed_with(stored, values.manifest, values.output)
    else:
        embedding.embed(values.config, folder, manifest=values.manifest, output=values.output)


def _plan(values: flags.FlagValues) -> None:
    """Print how many patients to collect; with --workdir, write the curves, too."""
    check.check_plan(values.config)
    section, seeds = values.config.plan, len(values.config.seeds)
    made = plan.plan(plan.Assumptions.of(section, seeds=seeds))
    names = plan_page.write(values.workdir, made) if values.workdir else []
    print(plan.render(made))
    if names:
        print(f"\n{values.workdir}: {', '.join(names)}")


def _report(
    values: flags.FlagValues, folder: Path, rest: list[str], *, has_config_file: bool
) -> None:
    """Write the report of a run with its stored config, of other predictions with the given one."""
    if values.predictions and not values.workdir:
        raise UserError("--predictions needs --workdir=FOLDER, where the report goes")
    config = values.config
    if (folder / run_folder.CONFIG).exists():
        if has_config_file:
            raise UserError(
                f"--workdir={folder} holds a run, whose config the report takes; leave --config out"
            )
        for arg in rest:
            override = _OVERRIDE.fullmatch(arg)
            if override and not override["path"].startswith("evaluation."):
                raise UserError(
                    f"--config.{override['path']}: a run's report can change config.evaluation "
                    "alone"
                )
        stored = run_folder.load_config(folder).copy_and_resolve_references()
        trust.check(
            configs.plugin_strings(ConfigDict({"evaluation": stored.evaluation})),
            folder,
            accept=values.accept_code,
        )
        config = _parse(rest, stored.unlock() or stored).config
    check.check_evaluation(config)
    results.rebuild(folder, config, file=Path(values.predictions) if values.predictions else None)


def _check_mode(values: flags.FlagValues) -> None:
    if values.mode not in MODES:
        raise UserError(f"--mode={values.mode}: there is no such mode{nearest(values.mode, MODES)}")
    for name, modes in ONLY.items():
        if values.mode not in modes and values[name].present:
            raise UserError(f"--{name} is for --mode={' or '.join(modes)}, not {values.mode}")
    if values.mode in ("train", "evaluate"):
        _launch(values)
    elif given := [name for name in _SEVERAL if values[name].present]:
        raise UserError(f"--{given[0]} is for --mode=train and evaluate, not {values.mode}")
    if values.mode == "predict" and not values.manifest:
        raise UserError("--mode=predict needs --manifest=FILE, a CSV with a column image_path")
    needs_output = values.mode == "export" or values.manifest or values.checkpoint
    if values.mode in ("embed", "export") and needs_output and not values.output:
        suffix = "npz" if values.mode == "embed" else "safetensors"
        raise UserError(f"--mode={values.mode} needs --output=FILE.{suffix}")
    if values.mode == "embed" and values.checkpoint and not values.manifest:
        raise UserError("--mode=embed with --checkpoint needs --manifest=FILE")
    if values.checkpoint and not Path(values.checkpoint).is_dir():
        raise UserError(f"--checkpoint={values.checkpoint}: there is no such folder")


def load_config_file(path: str) -> ConfigDict:
    """Run `get_config()` of a Python file.

    Raises:
      UserError: there is no such file (names the nearest), it raises (names the line), or it
        returns no ConfigDict.
    """
    module = plugins.load_file(path, key="--config")
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"--config: {path} has no function get_config()")
    with plugins.blame(path, key="--config"):
        config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: {path}: get_config() returns a {type(config).__name__}; it must return a "
            "ConfigDict"
        )
    return config


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """Return the last --config and the other arguments; overrides may come before or after it."""
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
    for name in ("profile", "accept_code"):
        flags.DEFINE_bool(name, False, "", flag_values=values)
    for name in (*_SEVERAL, *(ONLY.keys() - {"profile"})):
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
            f"--config: {' '.join(str(error).split())}: a flag sets a field of a section that "
            "another replaces"
        ) from None
    if unused:
        raise UserError(f"{unused[0]!r} is not a flag; flags are written --name=value")
    return values


def _flag_error(message: str, config: ConfigDict) -> UserError:
    """Return absl's message; for a value of the wrong type, the type that the field has."""
    illegal = _ILLEGAL.match(message)
    if not illegal:
        return UserError(" ".join(message.split()))
    value = _field(config, illegal["path"])
    like = "" if isinstance(value, ConfigDict) else f", like {value!r}"
    return UserError(f"--config.{illegal['path']}: it must be {KINDS[type(value)]}{like}")


def _spell_out(argv: list[str], config: ConfigDict) -> list[str]:
    """Check that each overridden field exists, and write tuples as ml_collections reads them.

    Entries of open sections that a flag names are added to the config.
    """
    arguments: dict[str, str] = {}  # absl would join a tuple given twice; here the last counts
    for i, arg in enumerate(argv):
        override, name = _OVERRIDE.fullmatch(arg), f"{i}"
        if override:
            lookup.add_entries(config, override["path"])
            if isinstance(_field(config, override["path"]), tuple):
                name = f"config.{override['path']}"
                if override["set"]:
                    arg = f"--{name}={_as_tuple(override['value'])}"
            elif _AUTO.fullmatch(override["path"]) and override["value"] == "auto":
                arg = f"--config.{override['path']}={configs.AUTO}"
        arguments[name] = arg
    return list(arguments.values())


def _as_tuple(text: str) -> str:
    """Return a list such as a,b or [25,all] as the literal of a tuple, other text as it is."""
    try:
        value = ast.literal_eval(text)
        return repr(tuple(value)) if isinstance(value, list | tuple) else text
    except (ValueError, SyntaxError):
        inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        if inner.startswith(("(", "[")):
            return text
    items = [item.strip() for item in _split_at_commas(inner) if item.strip()]
    return repr(tuple(int(item) if item.isdecimal() else item for item in items))


def _split_at_commas(text: str) -> list[str]:
    """Split at the commas outside parentheses, so that "a,b(x=1,y=2)" has two parts."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _field(config: ConfigDict, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            raise lookup.no_such_field(f"config.{path}", config)
        value = value[part]
    return value
