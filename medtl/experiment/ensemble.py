"""The checkpoints that predict together, the mean of their scores, and each one's val.

Refuses a folder without checkpoints, and a model whose val predictions are not in the run folder.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medtl import config as configs
from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.evaluation.predictions import Predictions
from medtl.experiment import run_folder

_PART = re.compile(r"(repeat|fold)_(\d+)")


def members(folder: str | Path, checkpoint: str | Path | None) -> list[str | Path | None]:
    """Return the folders of the stages that score together; [None] for the run's first.

    Args:
      folder: the run folder.
      checkpoint: a stage's folder, or one that holds target stages; None: those of the first arm
        that the config asks for.
    """
    if checkpoint is not None:
        if (Path(checkpoint) / "checkpoints").is_dir():
            return [checkpoint]
        return [*_stages(Path(checkpoint))] or [checkpoint]
    config = run_folder.load_config(folder)
    if not (config.checkpoint.keep_folds or config.evaluation.ensembles):
        return [None]
    arms = [Path(folder) / f"seed_{seed}" / config.arms[0] for seed in config.seeds]
    if configs.is_cross_validated(config):
        return [stage for arm in arms for stage in _stages(arm)] or [None]
    return [arm / "target" for arm in arms]


def _stages(folder: Path) -> list[Path]:
    """Return the target stages below a folder, without those of trials and subsets."""
    found = sorted(path.parent for path in folder.glob("**/target/checkpoints"))
    return [
        path
        for path in found
        if not any(part.startswith(("trial_", "size_")) for part in path.relative_to(folder).parts)
    ]


def mean(rows: Sequence[Predictions]) -> Predictions:
    """Return the mean probabilities of several models of an arm; one model's are as they are."""
    if len(rows) == 1:
        return rows[0]
    return dataclasses.replace(
        rows[0],
        arm=f"{rows[0].arm} (ensemble of {len(rows)} models)",
        probability=np.mean([p.probability for p in rows], axis=0),
        seed=None,
    )


def val_of(folder: Path, name: str, arm: str, seed: int) -> Predictions:
    """Return a model's predictions of val, from the run's `predictions.csv`.

    Args:
      folder: the run folder.
      name: the path of the model's checkpoint, which names its fold.
      arm: its arm.
      seed: its seed.

    Raises:
      UserError: there are none.
    """
    path = folder / "predictions.csv"
    parts = Path(name).parts
    seeds = [i for i, part in enumerate(parts) if part == f"seed_{seed}"]
    found = [_PART.fullmatch(part) for part in parts[max(seeds, default=0) :]]
    place = {match[1]: int(match[2]) for match in found if match}
    wanted = (place.get("repeat"), place.get("fold"))
    rows = predictions.read(path)[0] if path.is_file() else []
    for p in rows:
        is_seed = p.seed in (seed, None)  # a single seed is not written
        if (p.arm, p.split, is_seed, p.repeat, p.fold) == (arm, "val", True, *wanted):
            return p
    raise UserError(
        f"config.evaluation.label_shift compares with val, but {path} has no val of {name}; give "
        "the --workdir of its run, or train with a val part"
    )
