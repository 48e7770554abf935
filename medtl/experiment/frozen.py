"""The frozen image encoder of a run: one copy in the run folder, in place of one a checkpoint.

A checkpoint of a stage whose image encoder stays as the weight file has it holds the trained
parameters alone, and the checksums of the others. Whoever loads it without the experiment takes
them from the copy, or else from the weight file, and compares every array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from medtl import files
from medtl.errors import UserError, damaged
from medtl.training import factory
from medtl.training.checkpoint import checksum, named

FILE = "frozen_backbone.safetensors"
_PREFIXES = ("params/encoders/image/", "batch_stats/encoders/image/")


def arrays(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of the image encoder by their names in a checkpoint."""
    tree = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    return {n: np.asarray(a) for n, a in named(tree).items() if n.startswith(_PREFIXES)}


def keep(folder: Path, shared: Mapping[str, np.ndarray]) -> None:
    """Write the copy into a run folder that has none."""
    if not (folder / FILE).exists():
        with files.atomic(folder / FILE) as file:
            file.write(save({name: np.ascontiguousarray(a) for name, a in shared.items()}))


def load(stage: Path, record: Mapping[str, Any], config: Any) -> dict[str, np.ndarray]:
    """Return the arrays that a checkpoint shares; {} for one that holds everything.

    Args:
      stage: the folder of the training stage.
      record: the checkpoint's.
      config: the checkpoint's.

    Raises:
      UserError: neither the copy nor the weight file has them unchanged.
    """
    wanted = record.get("shared", {})
    if not wanted:
        return {}
    reasons = []
    for found in _candidates(stage, config):
        if isinstance(found, UserError):
            reasons.append(str(found))
        elif all(n in found and checksum(found[n]) == crc for n, crc in wanted.items()):
            return {name: found[name] for name in wanted}
        else:
            reasons.append("it holds other arrays than those of the training")
    raise UserError(
        f"the checkpoints in {stage} hold the trained parameters alone. Put back {FILE} in the run "
        f"folder ({reasons[0]}), or the weight file {record['weights']['path']} ({reasons[1]})"
    )


def _candidates(stage: Path, config: Any) -> Iterator[dict[str, np.ndarray] | UserError]:
    """Yield the arrays of the copy, then of the weight file, or why there are none."""
    copies = [f / FILE for f in stage.absolute().parents if (f / FILE).is_file()]
    try:
        if not copies:
            raise UserError("it is not there")
        with damaged("it cannot be read"):
            found = load_file(copies[0])
        yield found
    except UserError as error:
        yield error
    try:
        loaded = factory.pretrained(config)
        assert loaded is not None
        tree = {c: {"encoders": {"image": values}} for c, values in loaded.variables.items()}
        yield arrays(tree)
    except UserError as error:
        yield error
