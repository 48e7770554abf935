"""Which of our variables is which tensor of a torchvision state_dict, and which architecture a set of tensors is.

`layer1.0.downsample.0.weight` is `params/layer1_0/downsample_0/kernel`; kernels are HWIO here and OIHW there, dense
kernels [in, out] here and [out, in] there. Shapes in reports and errors are those of the state_dict.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError

Shape = tuple[int, ...]

STEMS = ("conv1.weight", "features.0.weight")
_CLASSIFIERS = ("fc.", "linear.", "classifier.", "head.", "pre_logits.")
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our variables: its path, what was given for it, and the shape its tensor has in a state_dict."""

    path: tuple[str, ...]
    value: Any
    torch_shape: Shape


def torch_name(path: Sequence[str]) -> str:
    """The state_dict name of a variable, e.g. ("params", "layer1_0", "bn1", "scale") -> "layer1.0.bn1.weight".

    Raises:
      UserError: such a variable has no counterpart there.
    """
    collection, *modules, leaf = path
    if (collection, leaf) not in _LEAVES:
        raise UserError(
            f"weights: the backbone's {'/'.join(path)} has no counterpart in a PyTorch state_dict"
        )
    parts = [re.sub(r"_(?=\d+(?:_|$))", ".", module) for module in modules]
    return ".".join([*parts, _LEAVES[collection, leaf]])


def leaves(variables: Mapping[str, Any]) -> dict[str, Leaf]:
    """State_dict name -> our variable, in the order of `variables`."""
    return {
        torch_name(path): Leaf(path, value, _torch_shape(path, value.shape))
        for path, value in _walk(variables, ())
    }


def nest(
    values: Mapping[tuple[str, ...], np.ndarray], collections: Iterable[str]
) -> dict[str, Any]:
    """Arrays by path -> nested dicts, with every collection, the empty ones too."""
    tree: dict[str, Any] = {collection: {} for collection in collections}
    for (*parents, leaf), value in values.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def to_torch(path: Sequence[str], value: Any) -> np.ndarray:
    """Our array -> the state_dict's layout, float32."""
    array = np.asarray(value, np.float32)
    if path[-1] == "kernel":
        array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    return np.ascontiguousarray(array)


def from_torch(path: Sequence[str], tensor: np.ndarray) -> np.ndarray:
    """The state_dict's tensor -> our layout, float32."""
    array = np.asarray(tensor, np.float32)
    if path[-1] == "kernel":
        array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    return np.ascontiguousarray(array)


def is_planned(name: str, wanted: Mapping[str, Leaf], stages: int) -> bool:
    """Whether a tensor is meant to stay unused: the classifier, PyTorch's step counters, stages that are cut off."""
    if name.endswith(".num_batches_tracked") or name.startswith(_CLASSIFIERS):
        return True
    if not stages:
        return False
    if match := re.match(r"layer(\d+)\.", name):
        return int(match[1]) > stages
    if match := re.match(r"features\.(\d+)\.", name):
        return int(match[1]) > max(_feature_indices(wanted), default=-1)
    return False


def _walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, (*path, key))
        else:
            yield (*path, key), value


def _torch_shape(path: Sequence[str], shape: Sequence[int]) -> Shape:
    if path[-1] != "kernel":
        return tuple(shape)
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else (shape[1], shape[0])


def _feature_indices(names: Iterable[str]) -> list[int]:
    return sorted({int(m[1]) for name in names if (m := re.match(r"features\.(\d+)\.", name))})


# A leaf package cannot ask medtl.models; a test holds these equal to what is built there.
# name -> (shape of layer1.0.conv2.weight without its 3x3, bottleneck, blocks in each stage)
_RESNETS: dict[str, tuple[Shape, bool, Shape]] = {
    "resnet18": ((64, 64), False, (2, 2, 2, 2)),
    "resnet34": ((64, 64), False, (3, 4, 6, 3)),
    "resnet50": ((64, 64), True, (3, 4, 6, 3)),
    "resnet101": ((64, 64), True, (3, 4, 23, 3)),
    "resnet152": ((64, 64), True, (3, 8, 36, 3)),
    **{f"cifar_resnet{6 * n + 2}": ((16, 16), False, (n, n, n)) for n in (3, 5, 7, 9, 18)},
}
# name -> convolutions in each stage
_VGGS: dict[str, Shape] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
KNOWN = (*_RESNETS, *_VGGS, *(f"{name}_bn" for name in _VGGS))


def guess(shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """The architectures of `KNOWN` that state_dict names and shapes can come from; several where stages are cut off."""
    depths = held_stages(shapes)
    if depths:
        width = shapes.get("layer1.0.conv2.weight", ())[:2]
        found = (width, any(".conv3." in name for name in shapes))
        return tuple(
            n
            for n, (*kind, full) in _RESNETS.items()
            if tuple(kind) == found and full[: len(depths)] == depths
        )
    convs = [
        i for i in _feature_indices(shapes) if len(shapes.get(f"features.{i}.weight", ())) == 4
    ]
    if not convs:
        return ()
    suffix = "_bn" if "features.1.running_mean" in shapes else ""
    return tuple(
        f"{name}{suffix}"
        for name, full in _VGGS.items()
        if any(
            convs == vgg_convs(full[:n], batch_norm=bool(suffix)) for n in range(1, len(full) + 1)
        )
    )


def held_stages(names: Iterable[str]) -> Shape:
    """The number of residual blocks in each stage that is there, from the first on."""
    blocks = {
        (int(m[1]), int(m[2])) for name in names if (m := re.match(r"layer(\d+)\.(\d+)\.", name))
    }
    depths: list[int] = []
    while count := sum(stage == len(depths) + 1 for stage, _ in blocks):
        depths.append(count)
    return tuple(depths)


def vgg_convs(depths: Sequence[int], *, batch_norm: bool) -> list[int]:
    """The i of the convolutions `features.<i>`: BatchNorm, if any, and ReLU follow each, a pooling ends a stage."""
    indices, i = [], 0
    for depth in depths:
        for _ in range(depth):
            indices.append(i)
            i += 3 if batch_norm else 2
        i += 1
    return indices
