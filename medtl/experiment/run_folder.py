"""The folder of a run: its config, its lock, and the refusal of another run's folder.

A run folder belongs to one config, kept in `config.json`; another config is refused, so that no run
resumes from the checkpoints of another and no results of two experiments mix. Imports no JAX.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medtl import config as configs
from medtl import files
from medtl.config.check import check_fields
from medtl.config.lookup import leaves
from medtl.errors import UserError, damaged, nearest

try:
    import fcntl
except ImportError:  # Windows has none; no folder is locked there
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.json"
INSPECTION = "inspect.html"  # of --mode=inspect
SWEEP = "sweep.json"
# Fields that permit data, and the way of using devices: the numbers are the same, up to rounding.
_MAY_DIFFER = {"data.allow", "data.max_pixels", "parallel"}
_ABSENT = object()


@contextlib.contextmanager
def opened(folder: str | os.PathLike, config: ConfigDict) -> Iterator[Path]:
    """Make or open the folder of a run, and hold it for this process.

    The lock comes before `config.json` is compared and written, so that two commands started at the
    same time cannot both begin. The system releases it when the process ends, however it ends.

    A run holds ids of patients and pictures: a folder that is made here is the user's alone (0700).
    To share a run, make its folder beforehand with the permissions that it shall have.

    Raises:
      UserError: as `check`, or another process holds the folder.
      OSError: the folder cannot be made or written.
    """
    check(folder, config)  # before anything is written into a folder that is somebody else's
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--workdir={folder} is in use by another run; wait for it, or give another folder"
            ) from None
        check(folder, config)
        files.sweep_temporary(folder)
        if not (folder / CONFIG).exists():
            text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
            files.write_text(folder / CONFIG, f"{text}\n")
        yield folder


def appears(folder: Path, seconds: float = 30.0) -> bool:
    """Return whether a folder that another machine opened is seen here, at the latest then."""
    until = time.monotonic() + seconds  # file systems in a network keep what they saw for a while
    while not (is_there := (folder / CONFIG).exists()) and time.monotonic() < until:
        time.sleep(0.5)
    return is_there


def check(folder: str | os.PathLike, config: ConfigDict) -> None:
    """Refuse a folder that is not new, empty, or of an equal config; writes nothing.

    Raises:
      UserError: the folder holds a run of another config (names the first three fields that
        differ), or something else, or cannot be written.
    """
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--workdir={folder}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"--workdir={folder}: {existing} cannot be written to; give another folder")
    if existing != folder:
        return
    if not (folder / CONFIG).exists():
        # A killed run may leave a temporary file, and desktops leave theirs; both are hidden.
        names = {child.name for child in folder.iterdir() if not child.name.startswith(".")}
        if names - {INSPECTION}:
            raise UserError(
                f"--workdir={folder} is not empty and holds no run; give a new or empty folder"
            )
        return
    stored = load_config(folder)
    if differing := differences(stored, with_sizes(config, stored)):
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"--workdir={folder} holds a run of another config: {'; '.join(differing[:3])}{more}\n"
            "  give another --workdir, or delete that one"
        )


def resolved(folder: str | os.PathLike, config: ConfigDict) -> ConfigDict:
    """Return the config, with the batch sizes of the run in `folder` where its own are "auto"."""
    exists = (Path(folder) / CONFIG).exists()
    return with_sizes(config, load_config(folder)) if exists else config


def with_sizes(config: ConfigDict, other: ConfigDict) -> ConfigDict:
    """Return the config, with the batch sizes of another where its own are "auto"."""
    copy = config.copy_and_resolve_references()
    for name, stage in copy.get("stages", {}).items():
        if stage.get("batch_size") == configs.AUTO and name in other.get("stages", {}):
            stage.batch_size = other.stages[name].batch_size
    return copy


def check_no_sweep(folder: str | os.PathLike) -> None:
    """Refuse the folder of a sweep, which keeps no models.

    Raises:
      UserError: names the command that trains the chosen values.
    """
    path, command = Path(folder) / SWEEP, None
    if not path.exists():
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        command = json.loads(path.read_text(encoding="utf-8")).get("command")
    advice = f"train the chosen values:\n  {command}" if command else "give another folder"
    raise UserError(f"--workdir={folder} holds a sweep, which keeps no models; {advice}")


def load_config(folder: str | os.PathLike) -> ConfigDict:
    """Return the config of the run in `folder`, locked; one of an older version in today's fields.

    Raises:
      UserError: there is no run, or its `config.json` cannot be read, or a field has a value that
        it cannot have.
    """
    path = Path(folder) / CONFIG
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        parent = path.parent.parent
        runs = [str(run.parent) for run in parent.glob(f"*/{CONFIG}")] if parent.is_dir() else []
        raise UserError(
            f"there is no run in {path.parent}: it holds no {CONFIG}"
            f"{nearest(str(path.parent), runs)}"
        ) from None
    except ValueError:
        raise UserError(
            f"{path} is damaged: it is not JSON; give another --workdir, or delete that one"
        ) from None
    if not isinstance(stored, dict):
        raise UserError(f"{path} is not a config: it must hold an object; give another --workdir")
    with damaged(f"{path} is damaged; give another --workdir, or delete that one"):
        config = ConfigDict(configs.upgrade(stored)).lock()
    try:
        check_fields(config)
    except UserError as error:
        raise UserError(f"{path} is damaged, or of a newer medtl: {error}") from None
    return config


def differences(there: ConfigDict, here: ConfigDict) -> list[str]:
    """Return "FIELD is VALUE there and VALUE here" for each differing field, sorted by field.

    Fields that accept data, and `parallel`, change nothing that is computed, and may differ.
    """
    old, new = dict(leaves(there)), dict(leaves(here))
    return [
        f"{field} is {_show(old.get(field, _ABSENT))} there "
        f"and {_show(new.get(field, _ABSENT))} here"
        for field in sorted((old.keys() | new.keys()) - _MAY_DIFFER)
        if old.get(field, _ABSENT) != new.get(field, _ABSENT)
    ]


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
