"""Writes a backbone as safetensors with torchvision names, for PyTorch's `load_state_dict` and for `weights.load`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medtl import __version__
from medtl.errors import UserError
from medtl.examples import Normalization
from medtl.weights import naming, stated


def export(
    path: str | Path,
    architecture: str,
    variables: Mapping[str, Any],
    *,
    normalization: Normalization,
    stages: int = 0,
    stride_in: str = "3x3",
    epsilon: float = stated.TORCH_EPSILON,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the variables of a backbone as float32, whole or not at all; the same variables give the same bytes.

    Args:
      path: ends in .safetensors.
      architecture: the backbone's name, e.g. "resnet50".
      variables: {"params": ..., "batch_stats": ...} of the backbone.
      normalization: the input it was trained on.
      stages: as the backbone was built; 0: all.
      stride_in: as the backbone was built; PyTorch's own ResNets have it in the 3x3.
      epsilon: of the backbone's BatchNorm; PyTorch must be told where it is not its own 1e-5.
      metadata: more to say about the file.

    Raises:
      UserError: the path has another suffix or no folder, or a value is NaN or Inf.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise UserError(f"export: {path} must end in .safetensors and lie in a folder that exists")
    tensors: dict[str, np.ndarray] = {}
    for name, leaf in naming.leaves(variables).items():
        tensors[name] = naming.to_torch(leaf.path, leaf.value)
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"export: {name} of {architecture} has NaN or Inf; nothing was written")
        if name.endswith(
            ".running_mean"
        ):  # PyTorch counts the steps of a BatchNorm, and asks for the count
            tensors[name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    own = {
        "format": "pt",
        "architecture": architecture,
        "stages": str(stages),
        "stride_in": stride_in,
        "normalization": stated.to_metadata(normalization),
        "bn_eps": repr(float(epsilon)),
        "medtl": __version__,
    }
    if clash := own.keys() & (metadata or {}).keys():
        raise ValueError(f"export sets {sorted(clash)} itself")
    _write(path, tensors, {**(metadata or {}), **own})


def _write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """The safetensors format by hand: the library orders the metadata anew each time, so that the hash would change."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, tensor in ordered:
        dtype = {np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}[tensor.dtype]
        header[name] = {
            "dtype": dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, tensor in ordered:
                file.write(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
