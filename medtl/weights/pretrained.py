"""Fits a weight file to a backbone. What does not fit is an error that names it, unless the config allows it."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.examples import Normalization
from medtl.weights import formats, hub, naming, stated
from medtl.weights.report import LoadReport


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A backbone's variables from a weight file.

    Attributes:
      variables: nested dicts as given, of float32 NumPy arrays; without the leaves that were left random.
      normalization: the input that the weights expect.
      report: what was loaded and what was not.
      sha256: of the file.
      path: as in the config.
      epsilon: of the BatchNorm that the weights were trained with.
    """

    variables: dict[str, Any]
    normalization: Normalization
    report: LoadReport
    sha256: str
    path: str
    epsilon: float


def check(path: str, *, sha256: str = "") -> None:
    """Checks what can be checked without reading the tensors, without JAX and without a network.

    Args:
      path: a local file, or hf://org/repo/file[@revision], of which only the form is checked.
      sha256: the one it must have; empty: any.

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
    architecture: str,
    variables: Mapping[str, Any],
    *,
    stages: int = 0,
    stride_in: str = "3x3",
    sha256: str = "",
    normalization: str = "auto",
    allow: Sequence[str] = (),
) -> Pretrained:
    """Reads a weight file into a backbone's variables.

    Where the input channels differ, the first kernel is adapted: summed over the file's channels for one; for others
    repeated cyclically and scaled by (file's / backbone's channels), which keeps the size of its response.

    Args:
      path: .safetensors, .npz, .pth, .th, Keras-applications .h5; local, or hf://org/repo/file[@revision].
      architecture: the backbone's name, e.g. "resnet50".
      variables: {"params": ..., "batch_stats": ...} of the backbone, nested dicts of anything with a shape.
      stages: how many stages the backbone has; 0: all. The file's further stages stay unused.
      stride_in: the backbone's; see `medtl.models.backbone`.
      sha256: the one the file must have; empty: any.
      normalization: "auto": what the file states or is usual in its format; or one of `NORMALIZATIONS`.
      allow: patterns (fnmatch) of names that may be missing, unused or of another shape.

    Raises:
      UserError: the file is damaged, does not fit the backbone, or contradicts the config.
    """
    formats.check_sha256(sha256)
    local = hub.fetch(path) if hub.is_address(path) else path
    formats.check(local)
    sha256 = formats.digest(local, sha256)
    file = formats.read(local)
    says = stated.read(file.metadata, path)

    wanted = naming.leaves(variables)
    tensors, adapted = _adapt_stem(file.tensors, wanted)
    report = _compare(tensors, wanted, notes=adapted)
    likely = (
        (says.architecture,)
        if says.architecture
        else naming.guess({n: t.shape for n, t in file.tensors.items()})
    )
    if architecture not in naming.KNOWN:
        likely = ()
    _refuse_surprises(report, wanted, path, architecture, likely, stages, allow)
    stated.check_stride(says, architecture, stride_in, path)
    chosen, note = stated.normalization(says, file.assumed, normalization, path)
    values = {
        wanted[name].path: naming.from_torch(wanted[name].path, tensors[name])
        for name, _ in report.loaded
    }
    _refuse_bad_numbers(values, path)
    report = dataclasses.replace(report, notes=(note, *report.notes))
    return Pretrained(naming.nest(values, variables), chosen, report, sha256, path, says.epsilon)


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Kernel [O, C, h, w] -> [O, channels, h, w]: summed for one channel, else repeated and times C / channels."""
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    return kernel[:, np.arange(channels) % kernel.shape[1]] * np.float32(kernel.shape[1] / channels)


def _adapt_stem(
    tensors: Mapping[str, np.ndarray], wanted: Mapping[str, naming.Leaf]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    for name in naming.STEMS:
        if name in tensors and name in wanted:
            found, want = tensors[name].shape, wanted[name].torch_shape
            if (
                len(found) == 4
                and found[1] != want[1]
                and (found[0], *found[2:]) == (want[0], *want[2:])
            ):
                how = (
                    "summed over"
                    if want[1] == 1
                    else f"repeated and scaled by {found[1]}/{want[1]} from"
                )
                note = f"{name} adapted to {want[1]} input channels: {how} the file's {found[1]}"
                return {
                    **tensors,
                    name: adapt_stem(np.asarray(tensors[name], np.float32), want[1]),
                }, (note,)
    return dict(tensors), ()


def _compare(
    tensors: Mapping[str, np.ndarray], wanted: Mapping[str, naming.Leaf], *, notes: tuple[str, ...]
) -> LoadReport:
    shared = [
        (name, leaf.torch_shape, tensors[name].shape)
        for name, leaf in wanted.items()
        if name in tensors
    ]
    return LoadReport(
        loaded=tuple((name, want) for name, want, found in shared if want == found),
        left_random=tuple(
            (name, leaf.torch_shape) for name, leaf in wanted.items() if name not in tensors
        ),
        unused=tuple(
            (name, tensor.shape) for name, tensor in tensors.items() if name not in wanted
        ),
        mismatched=tuple((name, found, want) for name, want, found in shared if want != found),
        notes=notes,
    )


def _refuse_surprises(
    report: LoadReport,
    wanted: Mapping[str, naming.Leaf],
    path: str,
    architecture: str,
    likely: Sequence[str],
    stages: int,
    allow: Sequence[str],
) -> None:
    """Raises for what is neither planned nor allowed, and for another architecture whose first stages happen to fit.

    `likely`: what the file says or looks like, where that is known.
    """
    surprises = {
        name: f"{name} {list(found)} should be {list(want)}"
        for name, found, want in report.mismatched
    }
    surprises |= {name: f"{name} {list(shape)} is missing" for name, shape in report.left_random}
    surprises |= {
        name: f"{name} {list(shape)} has no place"
        for name, shape in report.unused
        if not naming.is_planned(name, wanted, stages)
    }
    texts = [
        text
        for name, text in surprises.items()
        if not any(fnmatch.fnmatchcase(name, p) for p in allow)
    ]
    other = () if architecture in likely else tuple(likely)
    if not texts and (allow or not other):
        return
    kept = f" with {stages} stages" if stages else ""
    problem = f"config.weights.path: {path} does not fit {architecture}{kept}"
    if texts:
        problem += (
            f", in {len(texts)} tensors: {'; '.join(texts[:5])}{'; ...' if len(texts) > 5 else ''}"
        )
    raise UserError(f"{problem}\n{_advice(report, other)}")


def _advice(report: LoadReport, other: Sequence[str]) -> str:
    if other:
        return f"It looks like {' or '.join(other)}: set config.model.name to that, or config.weights.path to another file"
    held = len(naming.held_stages(name for name, *_ in report.loaded))
    lacking = [re.match(r"layer(\d+)\.", name) for name, _ in report.left_random]
    if held and lacking and all(match and int(match[1]) > held for match in lacking):
        return f"It holds stages 1 to {held} only: set config.model.stages={held}"
    return "Give the file of this architecture, or name what may differ in config.weights.allow"


def _refuse_bad_numbers(values: Mapping[tuple[str, ...], np.ndarray], path: str) -> None:
    for at, value in values.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"config.weights.path: {path} has NaN or Inf in {naming.torch_name(at)}; it is damaged"
            )
        if at[-1] == "var" and (value < 0).any():
            raise UserError(
                f"config.weights.path: {path} has a negative variance in {naming.torch_name(at)}; it is damaged"
            )
