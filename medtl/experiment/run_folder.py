"""The folder of a run: whose it is, and how files are written into it. Imports no JAX.

A run folder belongs to one config, kept in `config.json`; it refuses another one, so that no run goes on from another's
checkpoints and no figures of two experiments lie side by side.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medtl import files
from medtl.errors import UserError, nearest

try:
    import fcntl
except ImportError:  # Windows has none; there nothing is locked
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.json"
SWEEP = "sweep.json"
_ABSENT = object()


def check(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Accepts a folder that is new, empty, or of an equal config; writes nothing.

    Raises:
      UserError: the folder holds a run of another config (names the first three fields that differ), or something else.
    """
    workdir = Path(workdir)
    place = workdir
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise UserError(f"--workdir={workdir}: {place} is a file; give a folder")
    if not os.access(place, os.W_OK):
        raise UserError(f"--workdir={workdir}: {place} cannot be written to; give another folder")
    if place != workdir:
        return
    if not (workdir / CONFIG).exists():
        # A killed run may leave a temporary file, and desktops leave theirs; both are hidden.
        if any(not child.name.startswith(".") for child in workdir.iterdir()):
            raise UserError(
                f"--workdir={workdir} is not empty and holds no run; give a new or empty folder"
            )
        return
    differing = differences(load_config(workdir), config)
    if differing:
        shown = "; ".join(differing[:3]) + (
            f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        )
        raise UserError(
            f"--workdir={workdir} holds a run of another config: {shown}\n  give another --workdir, or delete that one"
        )


def check_no_sweep(workdir: str | os.PathLike) -> None:
    """Refuses the folder of a sweep, which keeps no models.

    Raises:
      UserError: names the command that trains the chosen values.
    """
    path, command = Path(workdir) / SWEEP, None
    if not path.exists():
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        command = json.loads(path.read_text(encoding="utf-8")).get("command")
    advice = f"train the chosen values:\n  {command}" if command else "give another folder"
    raise UserError(f"--workdir={workdir} holds a sweep, which keeps no models; {advice}")


def prepare(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Makes the folder and writes `config.json`, all fields sorted; with an equal config there, changes nothing.

    Raises:
      UserError: as `check`, or the folder cannot be written.
    """
    check(workdir, config)
    workdir = Path(workdir)
    if (workdir / CONFIG).exists():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_text(
            workdir / CONFIG, json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
        )
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def locked(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the folder for this process; the system lets go of it when the process ends, however it ends.

    Raises:
      UserError: another process holds it.
    """
    with open(Path(workdir) / ".lock", "w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"--workdir={workdir} is in use by another run; wait for it, or give another folder"
                ) from None
        yield


def load_config(workdir: str | os.PathLike) -> ConfigDict:
    """The config of the run in `workdir`, equal to the one that `prepare` was given.

    Raises:
      UserError: there is no run, or its `config.json` cannot be read.
    """
    path = Path(workdir) / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        parent = path.parent.parent
        runs = [str(run.parent) for run in parent.glob(f"*/{CONFIG}")] if parent.is_dir() else []
        raise UserError(
            f"there is no run in {path.parent}: it holds no {CONFIG}{nearest(str(path.parent), runs)}"
        ) from None
    except ValueError:
        raise UserError(
            f"{path} is damaged: it is not JSON; give another --workdir, or delete that one"
        ) from None
    if not isinstance(fields, dict):
        raise UserError(f"{path} is not a config: it must hold an object; give another --workdir")
    return ConfigDict(_tuples(fields)).lock()


def differences(there: ConfigDict, here: ConfigDict) -> list[str]:
    """For each field in which two configs differ, "FIELD is VALUE there and VALUE here"; sorted by field."""
    old, new = _flat(there.to_dict()), _flat(here.to_dict())
    return [
        f"{field} is {_show(old.get(field, _ABSENT))} there and {_show(new.get(field, _ABSENT))} here"
        for field in sorted(old.keys() | new.keys())
        if old.get(field, _ABSENT) != new.get(field, _ABSENT)
    ]


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= (
            _flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return flat


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)


def _tuples(value: Any) -> Any:
    """JSON has no tuples, and a config has no lists."""
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
