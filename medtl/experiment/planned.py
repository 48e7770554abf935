"""What was planned: the settings of the evaluation, written before anything is trained.

A report made with others says so. Imports no JAX.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medtl import files
from medtl.config import lookup
from medtl.errors import damaged
from medtl.evaluation import plain

FILE = "planned.json"
# How models are trained and tuned; a run folder refuses other values of these.
_OF_TRAINING = (
    "batch_size",
    "times",
    "folds",
    "repeats",
    "leave_out",
    "tune",
    "target_sizes",
    "size_repeats",
)


def settings(config: Any) -> dict[str, Any]:
    """Return the metric, and every field of `evaluation` that changes an answer, as JSON has it."""
    fields = {
        name: value
        for name, value in lookup.leaves(config.evaluation)
        if name.split(".")[0] not in _OF_TRAINING
    }
    return {"metric": config.checkpoint.metric, **plain(fields)}


def write(folder: Path, config: Any) -> None:
    """Write the settings and their hash into a run folder that has no results yet."""
    if (folder / FILE).exists() or (folder / "metrics.json").exists():
        return
    planned = settings(config)
    text = json.dumps({"hash": files.digest(planned), "settings": planned}, indent=2)
    files.write_text(folder / FILE, f"{text}\n")


def compare(folder: Path, config: Any) -> dict[str, Any] | None:
    """Return what was planned and what has changed.

    Returns:
      "hash", "settings", and "changed": "threshold was 'sensitivity=0.9', is 'youden'"; None where
      nothing was planned, as for the predictions of another tool.

    Raises:
      UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with damaged(f"{path} is damaged; delete it, and the report is made without what was planned"):
        written = json.loads(path.read_text(encoding="utf-8"))
        before, original = dict(written["settings"]), written["hash"]
    now = settings(config)
    # A field that a later version added was not planned, but nobody changed it.
    changed = [
        f"{name} was {before[name]!r}, is {now[name]!r}"
        for name in before
        if name in now and before[name] != now[name]
    ]
    if files.digest(before) != original:
        changed.append(f"{FILE} was edited")
    return {"hash": original, "settings": before, "changed": changed}
