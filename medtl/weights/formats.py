"""Reads weight files as tensors with torchvision names; truncated and damaged files are errors.

A pickle never runs code: PyTorch files go through `torch.load(weights_only=True)`, NumPy files are
read without pickles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from medtl import files
from medtl.errors import UserError, damaged, nearest
from medtl.weights import families, flat_flax, keras_h5, siblings
from medtl.weights.siblings import INDEX

SUFFIXES = (".safetensors", ".npz", ".pth", ".th", ".pt", ".bin", ".h5", ".keras")
_TORCH = (".pth", ".th", ".pt", ".bin")
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")  # safetensors'
_HUB_HASH = re.compile(r"-([0-9a-f]{8})\.(?:pth|th|pt)")


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A weight file in memory.

    Attributes:
      tensors: torchvision name -> array in PyTorch's layout.
      metadata: the file's own; see `metadata.read`.
      usual_input: the usual input normalization of this format, "" where there is none.
      note: where in the file the tensors were, "" where there is no choice.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    usual_input: str
    note: str = ""


def check(path: str) -> None:
    """Check the name, the first bytes and the size of a local weight file.

    Raises:
      UserError: it is no weight file, or the library that reads it is missing.
    """
    _check_exists(Path(path))
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"config.weights.path: {path} is a Git LFS pointer, not the weights; run git lfs pull"
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(
            f"config.weights.path: {path} is a web page, not weights; download the file itself"
        )
    suffix = Path(path).suffix
    if path.endswith(INDEX):
        for part in _parts(path):
            check(part)
        return
    if suffix == ".safetensors":
        with _open_safetensors(path):
            pass
    elif suffix in (".h5", ".keras"):
        keras_h5.check(path)
    elif head.startswith(_ZIP):
        if not _is_zip(path):
            raise UserError(
                f"config.weights.path: {path} is truncated: its zip directory is missing"
            )
    elif suffix == ".npz" or not head.startswith(_PICKLE):
        raise UserError(
            f"config.weights.path: {path} is no {'NumPy' if suffix == '.npz' else 'PyTorch'} file"
        )
    if suffix in _TORCH and importlib.util.find_spec("torch") is None:
        raise UserError(
            f"config.weights.path: reading {path} needs PyTorch: pip install medtl[torch]"
        )


def _is_zip(path: str) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def check_sha256(sha256: str) -> None:
    """Raise UserError unless it is empty or 64 hexadecimal digits."""
    if not re.fullmatch(r"(?:[0-9a-fA-F]{64})?", sha256):
        raise UserError(f"config.weights.sha256: {sha256!r} is not 64 hexadecimal digits")


def has_expected_digest(path: str, sha256: str) -> bool:
    """Return whether the config, or a torch-hub name with its first digits, gives a sha256."""
    return bool(sha256 or _HUB_HASH.search(Path(path).name))


def digest(path: str, sha256: str = "") -> str:
    """Return the file's sha256, after comparing it with the expected one and a torch-hub name.

    Raises:
      UserError: they differ.
    """
    if path.endswith(INDEX):  # of the digests of all parts
        parts = "".join(digest(part) for part in _parts(path))
        actual = hashlib.sha256(parts.encode()).hexdigest()
    else:
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and actual != sha256.lower():
        raise UserError(
            f"config.weights.sha256: {path} has {actual}, not {sha256}; "
            "it is damaged or another file"
        )
    named = _HUB_HASH.search(Path(path).name)
    if named and not actual.startswith(named[1]):
        raise UserError(
            f"config.weights.path: the sha256 of {path} begins with {actual[:8]}, "
            f"not with {named[1]} as in its name; "
            "it is truncated or another file (rename it if those digits are no hash)"
        )
    return actual


def read(path: str) -> WeightFile:
    """Read a file that passed `check`.

    Raises:
      UserError: it is damaged, or holds anything but named tensors.
    """
    suffix, note = Path(path).suffix, ""
    metadata: dict[str, str] = {}
    tensors: dict[str, np.ndarray] = {}
    if path.endswith(INDEX):
        for part in _parts(path):
            of_part, metadata = _read_safetensors(part)
            tensors |= of_part
    elif suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    elif suffix == ".npz":
        tensors = flat_flax.to_torch(_read_npz(path))
    elif suffix in (".h5", ".keras"):
        tensors, metadata = keras_h5.read(path)
    else:
        tensors, note = _read_torch(path)
    if not tensors:
        raise UserError(f"config.weights.path: {path} holds no tensor")
    usual = {".npz": "", ".h5": "caffe", ".keras": "caffe"}.get(suffix, "torchvision")
    return WeightFile(_from_timm(tensors), metadata, usual, note)


def _parts(index: str) -> list[str]:
    """Return the paths of the parts that an index names."""
    paths = [str(Path(index).with_name(name)) for name in siblings.parts(index)]
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"config.weights.path: {index} names {path}, which is missing")
    return paths


def _check_exists(path: Path) -> None:
    if path.suffix not in SUFFIXES and not path.name.endswith(INDEX):
        raise UserError(f"config.weights.path: {path} should end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES]
        raise UserError(
            f"config.weights.path: there is no file {path}{nearest(path.name, siblings)}"
        )
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise UserError(f"config.weights.path: {path} is empty")
    except OSError as error:
        raise UserError(f"config.weights.path: {path} cannot be read ({error.strerror})") from error


@contextmanager
def _open_safetensors(path: str) -> Iterator[Any]:
    """Open the file, which compares its size with its header."""
    import safetensors

    with (
        damaged(f"config.weights.path: {path} is truncated, damaged or no safetensors file"),
        safetensors.safe_open(path, "numpy") as file,
    ):
        yield file


def _read_safetensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy

    with _open_safetensors(path) as file:
        names, metadata = list(file.keys()), file.metadata() or {}
    tensors = {}
    for name in names:
        # Opened each time: the pages of the mapped file would stay in memory beside the tensors.
        with _open_safetensors(path) as file:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _DTYPES:
                raise UserError(
                    f"config.weights.path: {name} in {path} has dtype {dtype}; the tensors must be "
                    f"{', '.join(_DTYPES)}"
                )
            tensors[name] = file.get_tensor(name)
    return tensors, metadata


def _read_npz(path: str) -> dict[str, np.ndarray]:
    import ml_dtypes

    with (
        damaged(f"config.weights.path: {path} is damaged or holds more than arrays"),
        files.open_npz(path) as file,
    ):
        tensors = {name: file[name] for name in file.files}
    two_bytes = np.dtype("V2")  # bfloat16, which NumPy's format has no name for
    return {
        n: x.view(ml_dtypes.bfloat16) if x.dtype == two_bytes else x for n, x in tensors.items()
    }


def _read_torch(path: str) -> tuple[dict[str, np.ndarray], str]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"config.weights.path: {path} is damaged, or a pickle of more than tensors, which is "
            "never run; if you trust it, convert it in an environment that has its code:\n"
            "  import torch\n"
            f"  model = torch.load({path!r}, map_location='cpu', weights_only=False)\n"
            "  torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:  # the unpickler raises anything for a damaged stream
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"config.weights.path: {path} is truncated or damaged ({reason})"
        ) from error
    tensors, note = families.state_dict(content, _is_plain_tensor)
    if tensors is None:
        keys = ", ".join(map(repr, list(content)[:8])) if isinstance(content, Mapping) else ""
        held = f"it has the keys {keys}" if keys else f"it holds a {type(content).__name__}"
        raise UserError(f"config.weights.path: {path} holds no state_dict of named tensors; {held}")
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in tensors.items()
    }, note


def _is_plain_tensor(value: Any) -> bool:
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_meta
    )


def _from_timm(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return timm's tensors under torchvision's names.

    They differ for the fully connected layers of a VGG alone, which timm keeps as convolutions.
    """
    renamed = {
        "pre_logits.fc1.": "classifier.0.",
        "pre_logits.fc2.": "classifier.3.",
        "head.fc.": "classifier.6.",
    }
    if "pre_logits.fc1.weight" not in tensors:
        return tensors
    result = {}
    for name, tensor in tensors.items():
        old = next((prefix for prefix in renamed if name.startswith(prefix)), "")
        flat = old and name.endswith(".weight")
        result[renamed.get(old, "") + name.removeprefix(old)] = (
            tensor.reshape(len(tensor), -1) if flat else tensor
        )
    return result
