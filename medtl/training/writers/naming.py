"""The name and the lasting id of a training stage in a tracker."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from medtl import files


def run_folder(folder: Path) -> Path:
    """Return the folder of the run to which the folder of a training stage belongs."""
    parents = [f for f in folder.absolute().parents if (f / "config.json").is_file()]
    return parents[-1] if parents else folder.absolute()


def name_of(folder: Path) -> str:
    """Return the stage's place in its run, such as "runs_name/seed_0/transfer/target"."""
    run = run_folder(folder)
    return folder.absolute().relative_to(run.parent).as_posix()


def lasting_id(
    folder: Path, tracker: str, make: Callable[[], str] = lambda: secrets.token_hex(8)
) -> str:
    """Return the tracker's id of a stage; a run that resumes goes on under the same id."""
    path = folder / f"{tracker}_id"
    if not path.exists():
        files.write_text(path, make())
    return path.read_text(encoding="utf-8")
