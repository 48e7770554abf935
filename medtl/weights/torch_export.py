"""Exports a backbone, with or without its head, as safetensors for PyTorch and `weights.load`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medtl import __version__, files
from medtl.errors import UserError
from medtl.examples import Normalization
from medtl.models import architectures
from medtl.weights import naming
from medtl.weights.metadata import TORCH_EPSILON, normalization_text
from medtl.weights.naming import HEAD


@dataclasses.dataclass(frozen=True)
class ExportedHead:
    """The layers between a backbone's pooled features and the probabilities.

    Attributes:
      layers: (kernel f32[in, out], bias f32[out]) of each layer; ReLU is between them.
      classes: the names of the outputs.
      activation: "softmax" or "sigmoid".
    """

    layers: Sequence[tuple[Any, Any]]
    classes: Sequence[str]
    activation: str


def export(
    path: str | Path,
    architecture: str,
    variables: Mapping[str, Any],
    *,
    normalization: Normalization,
    last_layer: str = "",
    epsilon: float = TORCH_EPSILON,
    metadata: Mapping[str, str] | None = None,
    head: ExportedHead | None = None,
) -> None:
    """Write the variables of a backbone as float32 with torchvision's names.

    `torch_loader.Diagnosis` makes a PyTorch model of the file if it has a head.

    The file is complete or absent; the same variables give the same bytes.

    Args:
      path: ends in .safetensors.
      architecture: the backbone's plug-in string, e.g. "resnet50(stride_in='1x1')"; PyTorch's own
        ResNets have the stride in the 3x3.
      variables: {"params": ..., "batch_stats": ...} of the backbone.
      normalization: the input of its training.
      last_layer: the backbone's last layer; "": all.
      epsilon: of the backbone's BatchNorm; a PyTorch module must get it too, its default is 1e-5.
      metadata: further metadata.
      head: the head; None: the backbone alone.

    Raises:
      UserError: the path has another suffix or no folder, or a value is NaN or Inf.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise UserError(f"export: {path} must end in .safetensors, in a folder that exists")
    table_entry = architectures.parse(architecture, key="export")
    prefix = table_entry.prefix if table_entry else ""
    tensors: dict[str, np.ndarray] = {}
    for own_name, leaf in naming.leaves(variables).items():
        name = prefix + own_name
        tensors[name] = naming.to_torch(leaf.path, leaf.value)
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"export: {name} of {architecture} has NaN or Inf; nothing was written")
        if name.endswith(".running_mean"):  # PyTorch requires the number of steps of a BatchNorm
            tensors[name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    for i, (kernel, bias) in enumerate(head.layers if head else ()):
        tensors[f"{HEAD}{i}.weight"] = np.ascontiguousarray(np.asarray(kernel, np.float32).T)
        tensors[f"{HEAD}{i}.bias"] = np.asarray(bias, np.float32)
    options = table_entry.options if table_entry else {}
    kept = table_entry.layers.index(last_layer) + 1 if table_entry and last_layer else None
    left_out = table_entry.layers[kept:] if table_entry and kept else ()
    standard = {
        "format": "pt",
        "architecture": table_entry.name if table_entry else architecture,
        "last_layer": last_layer,
        **{name: str(value) for name, value in options.items()},
        "normalization": normalization_text(normalization),
        "bn_eps": repr(float(epsilon)),
        "left_out": json.dumps(left_out),
        "medtl": __version__,
    }
    if head:
        standard |= {"classes": json.dumps(head.classes), "activation": head.activation}
    if clash := standard.keys() & (metadata or {}).keys():
        raise ValueError(f"export sets {sorted(clash)} itself")
    _write(path, tensors, {**(metadata or {}), **standard})


def _write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write the safetensors format without the library, whose order of the metadata varies.

    The hash of the file would vary with it.
    """
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
    with files.atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes())
