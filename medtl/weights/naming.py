"""The mapping between our variables and a torchvision state_dict, and the guess of an architecture.

`layer1.0.downsample.0.weight` is `params/layer1_0/downsample_0/kernel`; kernels are HWIO here and
OIHW there, dense kernels [in, out] here and [out, in] there. Reports and errors give the shapes of
the state_dict.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.models.architectures import ARCHITECTURES, Architecture

Shape = tuple[int, ...]

HEAD = "medtl_head."
"""The prefix of an exported head, which no backbone has."""
_CLASSIFIERS = ("fc.", "linear.", "classifier.", "head.", "pre_logits.", "pooler.", "decoder", HEAD)
# Of masked training, DINOv3's rotations, Hugging Face's CLIP, torchxrayvision.
_UNUSED = (".num_batches_tracked", "mask_token", ".periods", ".position_ids", "op_threshs")
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    **{("params", name): name for name in ("cls_token", "reg_token", "pos_embed", "latent")},
    ("params", "gamma"): "gamma",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our variables.

    Attributes:
      path: the names from the collection down.
      value: the array, or whatever was given with a shape.
      torch_shape: the shape of its tensor in a state_dict.
    """

    path: tuple[str, ...]
    value: Any
    torch_shape: Shape


def torch_name(path: Sequence[str]) -> str:
    """Return the state_dict name of a variable.

    Args:
      path: the names from the collection down.

    Raises:
      UserError: a state_dict has no such variable.

    >>> torch_name(("params", "layer1_0", "bn1", "scale"))
    'layer1.0.bn1.weight'
    """
    collection, *modules, leaf = path
    if (collection, leaf) not in _LEAVES:
        raise UserError(
            f"weights: the backbone's {'/'.join(path)} has no counterpart in a PyTorch state_dict"
        )
    return ".".join([*map(torch_module, modules), _LEAVES[collection, leaf]])


def torch_module(module: str) -> str:
    """Return the name of a submodule in a state_dict.

    >>> torch_module("layer1_0")
    'layer1.0'
    """
    return re.sub(r"_(?=\d+(?:_|$))", ".", module)


def leaves(variables: Mapping[str, Any]) -> dict[str, Leaf]:
    """Return state_dict name -> our variable, in the order of `variables`."""
    return {
        torch_name(path): Leaf(path, value, _torch_shape(path, value.shape))
        for path, value in _walk(variables, ())
    }


def nest(
    values: Mapping[tuple[str, ...], np.ndarray], collections: Iterable[str]
) -> dict[str, Any]:
    """Return arrays by path as nested dicts, with all collections, also the empty ones."""
    tree: dict[str, Any] = {collection: {} for collection in collections}
    for (*parents, leaf), value in values.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def is_float(tensor: np.ndarray) -> bool:
    """Return whether the numbers can be weights: integers are counters, or damage."""
    return tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"


def to_torch(path: Sequence[str], value: Any) -> np.ndarray:
    """Return our array in the layout of a state_dict, float32."""
    array = np.asarray(value, np.float32)
    if path[-1] == "kernel":
        array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    return np.ascontiguousarray(array)


def from_torch(path: Sequence[str], tensor: np.ndarray) -> np.ndarray:
    """Return a state_dict's tensor in our layout, float32."""
    array = np.asarray(tensor, np.float32)
    if path[-1] == "kernel":
        array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    return np.ascontiguousarray(array)


def is_planned(name: str, architecture: Architecture | None, last_layer: str) -> bool:
    """Return whether a tensor of a file is meant to stay unused.

    These are the classifier, PyTorch's step counters, what only the pretraining needs, a pooling
    that is not in use, and layers that are cut off.

    Args:
      name: of the tensor.
      architecture: None for a user's own module, whose layers are not in the table.
      last_layer: the last layer that is kept; "": all are.
    """
    if name.endswith(_UNUSED) or name.startswith(_CLASSIFIERS) or name == "proj":
        return True
    if architecture is None:
        return False
    if name.startswith("attn_pool.") and architecture.options.get("pool") == "mean":
        return True
    if not last_layer:
        return False
    cut = architecture.layers[architecture.layers.index(last_layer) + 1 :]
    return any(in_layer(name, architecture, layer) for layer in cut)


def in_layer(name: str, architecture: Architecture, layer: str) -> bool:
    """Return whether a tensor belongs to a layer of an architecture."""
    return name.startswith(tuple(f"{torch_module(m)}." for m in architecture.prefixes(layer)))


def guess(shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """Return the architectures whose first layers have these tensors.

    Several fit where layers are cut, or where checkpoints share their shapes, as ViT-B/16 of
    supervised training, DeiT, MAE and DINO.

    Args:
      shapes: state_dict name -> shape.
    """
    vgg = {m[0] for name in shapes if (m := re.match(r"features\.\d+", name))}
    depths = {family: _depths(pattern, shapes) for family, pattern in _BLOCKS.items()}
    return tuple(
        name
        for name, architecture in ARCHITECTURES.items()
        if (
            _has_convolutions(architecture, vgg)
            if architecture.family == "vgg"
            else _begins(architecture.depths, depths[architecture.family])
            and _has_kind(architecture, shapes)
        )
    )


_BLOCKS = {  # the number of a layer and that of a block in it, or of a block alone
    "resnet": r"layer(\d+)\.(\d+)\.",
    "cifar_resnet": r"layer(\d+)\.(\d+)\.",
    "vit": r"blocks\.(\d+)()\.[a-z]",
    "convnext": r"stages\.(\d+)\.blocks\.(\d+)\.",
    "densenet": r"denseblock(\d+)\.denselayer(\d+)\.",
    "efficientnet": r"blocks\.(\d+)\.(\d+)\.",
    "resnetv2": r"stages\.(\d+)\.blocks\.(\d+)\.",
}


def _depths(pattern: str, names: Iterable[str]) -> tuple[int, ...]:
    """Return the number of blocks of each layer."""
    blocks = {m.groups() for name in names if (m := re.match(pattern, name))}
    counts = collections.Counter(int(layer) for layer, _ in blocks)
    return tuple(count for _, count in sorted(counts.items()))


def _begins(depths: tuple[int, ...], found: tuple[int, ...]) -> bool:
    return bool(found) and depths[: len(found)] == found


def _has_convolutions(architecture: Architecture, modules: set[str]) -> bool:
    """Return whether these are the convolutions of the first layers of a VGG."""
    expected: set[str] = set()
    for layer in architecture.layers:
        expected |= {torch_module(module) for module in architecture.prefixes(layer)}
        if expected == modules:
            return True
    return False


def _has_kind(architecture: Architecture, shapes: Mapping[str, Shape]) -> bool:
    """Return whether the tensors by which networks of equal depths differ are as they should be."""
    ends, optional = _kind(architecture)
    return all(shapes.get(name, ())[-len(end) :] == end for name, end in ends.items()) and all(
        (name in shapes) == is_there for name, is_there in optional.items()
    )


def _kind(architecture: Architecture) -> tuple[dict[str, Shape], dict[str, bool]]:
    """Return the ends of the shapes that show width and kind, and whether a tensor is there."""
    settings, width = architecture.settings, architecture.widths[0]
    if architecture.family == "vit":
        patch = settings["patch"]
        return {
            "blocks.0.attn.qkv.weight": (3 * width, width),
            "patch_embed.proj.weight": (patch, patch),
        }, {
            "cls_token": settings.get("class_token", True),
            "reg_token": settings.get("registers", 0) > 0,
            "pos_embed": settings.get("position") != "rope",
            "norm_pre.weight": settings.get("pre_norm", False),
            "attn_pool.latent": architecture.options["pool"] == "attention",
            "blocks.0.ls1.gamma": settings.get("layer_scale", False),
            "blocks.0.mlp.fc1_g.weight": settings.get("gated", False),
        }
    if architecture.family == "convnext":
        return {"stages.0.blocks.0.conv_dw.weight": (width, 1, 7, 7)}, {
            "stages.0.blocks.0.gamma": True  # ConvNeXt V2 has none
        }
    if architecture.family == "densenet":  # growth 32; DenseNet-161 has 48
        return {"denseblock1.denselayer1.conv2.weight": (32, 128, 3, 3)}, {}
    if architecture.family == "efficientnet":
        return {"blocks.0.0.conv_dw.weight": (32, 1, 3, 3)}, {
            "blocks.0.0.se.conv_reduce.weight": not settings["lite"]
        }
    if architecture.family == "resnetv2":
        return {"stages.0.blocks.0.conv2.weight": (width // 4, width // 4, 3, 3)}, {}
    cardinality = settings.get("cardinality", 1)
    if architecture.bottleneck:
        width = width // 4 * settings.get("base_width", 64) // 64 * cardinality
    return {"layer1.0.conv2.weight": (width, width // cardinality, 3, 3)}, {
        "layer1.0.conv3.weight": architecture.bottleneck,
        "conv1.0.weight": settings.get("deep_stem", False),
    }


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
