"""Fits a weight file to a backbone. A misfit is an error, unless the config allows it."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.examples import Normalization
from medtl.models.architectures import STEMS, Architecture
from medtl.weights import families, formats, hub, metadata, naming, siblings, transformers
from medtl.weights.report import LoadReport


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A backbone's variables from a weight file.

    Attributes:
      variables: nested dicts as given, of float32 NumPy arrays, without the leaves that the file
        lacks.
      normalization: the input that the weights expect.
      report: the fate of each tensor and variable.
      sha256: of the file.
      path: as in the config.
      epsilon: of BatchNorm in the training of the weights.
    """

    variables: dict[str, Any]
    normalization: Normalization
    report: LoadReport
    sha256: str
    path: str
    epsilon: float


def check(path: str, *, sha256: str = "") -> None:
    """Check a weight file without reading its tensors, without JAX and without a network.

    Args:
      path: a local file, or hf://org/repo/file[@revision], of which only the form is checked.
      sha256: the one that it must have; empty: any.

    Raises:
      UserError: the file is missing, unreadable, truncated, not a weight file, or has another hash.
    """
    if hub.is_address(path):
        formats.check_sha256(sha256)
        hub.check(path)
    else:
        formats.check(path)
        formats.check_sha256(sha256)
        if formats.has_expected_digest(path, sha256):
            formats.digest(path, sha256)


def load(
    path: str,
    architecture: Architecture | None,
    variables: Mapping[str, Any],
    *,
    last_layer: str = "",
    sha256: str = "",
    normalization: str = "auto",
    allow: Sequence[str] = (),
) -> Pretrained:
    """Read a weight file into a backbone's variables.

    Where the numbers of input channels differ, the first kernel is adapted: summed over the file's
    channels for one; for others repeated cyclically and scaled by (file's / backbone's channels),
    which keeps the size of its response.

    Args:
      path: .safetensors (or the index of its parts), .npz, .pth, .th, Keras-applications .h5 or
        .keras; local, or hf://org/repo[/file][@revision].
      architecture: see `medtl.models.parse`; None for a user's own module, for which names and
        shapes alone are compared.
      variables: {"params": ..., "batch_stats": ...} of the backbone, nested dicts of anything with
        a shape.
      last_layer: the last layer of the backbone; "": all. The file's further layers stay unused.
      sha256: the one that the file must have; empty: any.
      normalization: "auto": the file's, or the usual one of its format; or a name or numbers, see
        `examples.parse_normalization`.
      allow: patterns (fnmatch) of names that may be missing, unused or of another shape.

    Raises:
      UserError: the file is damaged, does not fit the backbone, or contradicts the config.
    """
    formats.check_sha256(sha256)
    local = hub.fetch(path) if hub.is_address(path) else path
    formats.check(local)
    sha256 = formats.digest(local, sha256)
    file = formats.read(local)
    stated = metadata.read(file.metadata, path)
    beside = siblings.normalization(local)
    if stated.normalization is None and beside is not None:
        stated = dataclasses.replace(stated, normalization=metadata.named(beside[0]))

    leaves, own_names = naming.leaves(variables), list(file.tensors)
    if any(".qkv." in name for name in leaves):
        has_key_bias = architecture is not None and architecture.settings.get("key_bias", True)
        transformers.join(file.tensors, key_bias=has_key_bias)
    named, notes = families.renamed(
        file.tensors, leaves, lambda n: not naming.is_planned(n, architecture, last_layer)
    )
    named, added = transformers.completed(named, leaves)
    tensors, adapted = _adapt_stem(named, leaves)
    report = _compare(tensors, leaves, (*filter(None, [file.note]), *notes, *added, *adapted))
    misfits = _misfits(report, architecture, last_layer, allow)
    others = _other_architectures(named, stated, architecture)
    # Another architecture's first layers can have the same shapes.
    if misfits or (others and not allow) or (leaves and not report.loaded):
        name = architecture.name if architecture else "the backbone"
        kept = f" with last_layer={last_layer!r}" if last_layer else ""
        raise UserError(
            f"config.weights.path: {path} does not fit {name}{kept}{_listed(misfits)}\n"
            f"{_advice(report, architecture, others)}{_names_of(own_names, report)}"
        )
    metadata.check_stride(stated, architecture, path)
    usual = (architecture.usual_input if architecture else "") or file.usual_input
    chosen, note = metadata.choose_normalization(stated, usual, normalization, path)
    file.tensors.clear()
    named.clear()  # the last references but those of `tensors`, which are dropped one by one
    values = {}
    for name, _ in report.loaded:
        variable = leaves[name].path
        values[variable] = _converted(name, variable, tensors.pop(name), path)
    if beside is not None:
        note = f"{note} ({beside[1]})" if note.endswith("stated by the file") else note
    report = dataclasses.replace(report, notes=(note, *report.notes))
    epsilon = architecture.epsilon if architecture else metadata.TORCH_EPSILON
    if stated.epsilon is not None:
        epsilon = stated.epsilon
    nested = naming.nest(values, variables)
    return Pretrained(nested, chosen, report, sha256, hub.pinned(path, local), epsilon)


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Return a first kernel for another number of input channels.

    One channel takes the sum over the kernel's C channels; several take its channels cyclically,
    times C / channels.

    Args:
      kernel: [O, C, h, w].
      channels: of the images.

    Returns:
      [O, channels, h, w].
    """
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    return kernel[:, np.arange(channels) % kernel.shape[1]] * np.float32(kernel.shape[1] / channels)


def _adapt_stem(
    tensors: Mapping[str, np.ndarray], leaves: Mapping[str, naming.Leaf]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the tensors with an adapted first kernel, and a note about it."""
    for name in (f"{naming.torch_module(module)}.weight" for module in STEMS):
        if name not in tensors or name not in leaves or not naming.is_float(tensors[name]):
            continue
        old, new = tensors[name].shape, leaves[name].torch_shape
        if len(old) == 4 and old[1] != new[1] and (old[0], *old[2:]) == (new[0], *new[2:]):
            how = "summed over" if new[1] == 1 else f"repeated and scaled by {old[1]}/{new[1]} from"
            note = f"{name} adapted to {new[1]} input channels: {how} the file's {old[1]}"
            adapted = adapt_stem(np.asarray(tensors[name], np.float32), new[1])
            return {**tensors, name: adapted}, (note,)
    return dict(tensors), ()


def _compare(
    tensors: Mapping[str, np.ndarray], leaves: Mapping[str, naming.Leaf], notes: tuple[str, ...]
) -> LoadReport:
    shared = [
        (name, tensors[name].shape, leaf.torch_shape)
        for name, leaf in leaves.items()
        if name in tensors
    ]
    return LoadReport(
        loaded=tuple((name, ours) for name, theirs, ours in shared if ours == theirs),
        left_random=tuple(
            (name, leaf.torch_shape) for name, leaf in leaves.items() if name not in tensors
        ),
        unused=tuple(
            (name, tensor.shape) for name, tensor in tensors.items() if name not in leaves
        ),
        mismatched=tuple((name, theirs, ours) for name, theirs, ours in shared if ours != theirs),
        notes=notes,
    )


def _misfits(
    report: LoadReport, architecture: Architecture | None, last_layer: str, allow: Sequence[str]
) -> list[str]:
    """Return a text for each tensor that neither fits nor is planned or allowed to differ."""
    texts = {
        name: f"{name} {list(theirs)} should be {list(ours)}"
        for name, theirs, ours in report.mismatched
    }
    texts |= {name: f"{name} {list(shape)} is missing" for name, shape in report.left_random}
    texts |= {
        name: f"{name} {list(shape)} is not in the backbone"
        for name, shape in report.unused
        if not naming.is_planned(name, architecture, last_layer)
    }
    return [
        text
        for name, text in texts.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allow)
    ]


def _listed(misfits: Sequence[str]) -> str:
    more = "; ..." if len(misfits) > 5 else ""
    return f", in {len(misfits)} tensors: {'; '.join(misfits[:5])}{more}" if misfits else ""


def _names_of(names: Sequence[str], report: LoadReport) -> str:
    """Return the file's own names where the backbone's are not in it."""
    if not report.left_random:
        return ""
    more = ", ..." if len(names) > 5 else ""
    count = f"{len(report.loaded)} of its {len(names)} tensors fit"
    return f". {count}; it has {', '.join(names[:5])}{more}"


def _other_architectures(
    tensors: Mapping[str, np.ndarray],
    stated: metadata.Metadata,
    architecture: Architecture | None,
) -> tuple[str, ...]:
    """Return the architectures that the file states or looks like, unless ours is one of them."""
    if architecture is None:
        return ()
    if stated.architecture:
        likely: tuple[str, ...] = (stated.architecture,)
    else:
        likely = naming.guess({name: tensor.shape for name, tensor in tensors.items()})
    return () if architecture.name in likely else likely


def _advice(report: LoadReport, architecture: Architecture | None, others: Sequence[str]) -> str:
    if others:
        return (
            f"It looks like {' or '.join(others)}: set config.model.name to that, "
            "or config.weights.path to another file"
        )
    if architecture and (last := _last_held_layer(report, architecture)):
        return f"It ends with {last}: set config.model.last_layer={last!r}"
    return "Give the file of this architecture, or name what may differ in config.weights.allow"


def _last_held_layer(report: LoadReport, architecture: Architecture) -> str:
    """Return the file's last layer, if it lacks all later ones and nothing else."""
    loaded = [name for name, _ in report.loaded]
    lacking = [name for name, _ in report.left_random]
    held = [
        layer
        for layer in architecture.layers
        if any(naming.in_layer(name, architecture, layer) for name in loaded)
    ]
    later = architecture.layers[len(held) :]
    is_cut = all(any(naming.in_layer(n, architecture, layer) for layer in later) for n in lacking)
    return held[-1] if held and lacking and is_cut else ""


def _converted(name: str, variable: Sequence[str], tensor: np.ndarray, path: str) -> np.ndarray:
    """Return a tensor of the file as our float32 array.

    Raises:
      UserError: no weight has such numbers.
    """
    if not naming.is_float(tensor):
        raise UserError(
            f"config.weights.path: {path} has {tensor.dtype} in {name}; weights are floats"
        )
    with np.errstate(over="ignore"):  # Inf is refused below
        value = naming.from_torch(variable, tensor)
    if not np.isfinite(value).all():
        raise UserError(f"config.weights.path: {path} has NaN or Inf in {name}; it is damaged")
    if variable[-1] == "var" and (value < 0).any():
        raise UserError(
            f"config.weights.path: {path} has a negative variance in {name}; it is damaged"
        )
    return value
