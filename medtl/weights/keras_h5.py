"""Keras-applications .h5 files of ResNet50/101/152 and VGG16/19 as torchvision tensors for RGB.

Reads the layout of the published files (layer groups with `weight_names`) and that of Keras 3's
`save_weights` (`.weights.h5`) and `save` (`.keras`, a zip file with the former inside). Any other
model is an error, ResNetV2 included.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from medtl import files
from medtl.errors import UserError, damaged
from medtl.models.architectures import vgg_convs

EPSILON = 1.001e-5
_BLOCK = re.compile(r"conv(\d+)_block(\d+)_([0-3])_(conv|bn)")
_VGG_CONV = re.compile(r"block(\d+)_conv(\d+)")
_VGG_DENSE = {"fc1": "classifier.0", "fc2": "classifier.3", "predictions": "classifier.6"}
_RESNET_LAYERS = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc", "probs": "fc"}

Layers = dict[str, list[np.ndarray]]


def check(path: str) -> None:
    """Open the file, which fails where it is truncated.

    Raises:
      UserError: it is truncated or no HDF5 file, or h5py is missing.
    """
    with _open(path):
        pass


def read(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a file of Keras-applications.

    Keras trained these on BGR: the input channels of the first kernel are reversed. The biases of
    convolutions before a BatchNorm go into its running mean: (conv + b) - mean = conv - (mean - b).

    Returns:
      torchvision name -> tensor (OIHW), and metadata as `export` writes it.

    Raises:
      UserError: the file is broken or holds another model.
    """
    layers = _read_layers(path)
    if any(array.dtype.kind != "f" for arrays in layers.values() for array in arrays):
        raise UserError(f"config.weights.path: {path} has weights that are no floats")
    metadata = {"bn_eps": repr(EPSILON)}
    try:
        if "block1_conv1" in layers:
            return _vgg(layers), metadata
        if "conv1_conv" in layers:
            return _resnet(layers), {**metadata, "stride_in": "1x1"}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"config.weights.path: {path} is no Keras-applications ResNet or VGG: {error}"
        ) from error
    names = ", ".join(list(layers)[:5]) or "no layer"
    raise UserError(
        f"config.weights.path: {path} holds neither conv1_conv nor block1_conv1 but {names}; "
        "the Keras models that can be read are ResNet50/101/152 and VGG16/19"
    )


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
    if importlib.util.find_spec("h5py") is None:
        raise UserError(f"config.weights.path: reading {path} needs h5py: pip install medtl[keras]")
    import h5py

    with contextlib.ExitStack() as opened:
        with damaged(f"config.weights.path: {path} is truncated or no Keras file"):
            content: Any = path
            if path.endswith(".keras"):
                # On disk: in memory it would lie beside its arrays.
                content = opened.enter_context(tempfile.TemporaryFile())
                archive = opened.enter_context(zipfile.ZipFile(path))
                files.check_members(archive)
                with archive.open("model.weights.h5") as member:
                    shutil.copyfileobj(member, content, 1 << 20)
            file = opened.enter_context(h5py.File(content, "r"))
        yield file


def _read_layers(path: str) -> Layers:
    """Return layer name -> its arrays in Keras's order.

    It is kernel, bias; or gamma, beta, moving mean, moving variance.
    """
    with _open(path) as file, damaged(f"config.weights.path: {path} is damaged"):
        group = file.get("model_weights", file)
        if "layers" in group and not _names(group, "layer_names"):
            return _keras_3_layers(group["layers"], path)
        return _layers(group)


def _layers(group: Any) -> Layers:
    """Return the layers of the group, or of the largest model that is nested in it as one layer."""
    outer: dict[str, Layers] = {}
    for layer in _names(group, "layer_names"):
        inner: Layers = {}
        for name in _names(group[layer], "weight_names"):
            parent = name.rpartition("/")[0].rpartition("/")[2] or layer
            inner.setdefault(parent, []).append(np.asarray(group[layer][name]))
        outer[layer] = inner
    nested = max(outer.values(), key=len, default={})
    if len(nested) > 1:
        return nested
    return {layer: arrays for layer, one in outer.items() for arrays in one.values()}


def _names(group: Any, attribute: str) -> list[str]:
    """Return a list of names, which Keras cuts into numbered attributes beyond HDF5's 64 KiB."""
    keys = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(keys)}" in group.attrs:
        keys.append(f"{attribute}{len(keys)}")
    return [
        name.decode() if isinstance(name, bytes) else str(name)
        for key in keys
        for name in group.attrs[key]
    ]


def _keras_3_layers(group: Any, path: str) -> Layers:
    """Return the layers of a file of Keras 3.

    It names a group by class and count; the layer's name is an attribute of its variables.
    """
    layers = {}
    nested: Layers = {}
    for entry in group.values():
        if "layers" in entry:  # a model that is one layer of this one
            inner = _keras_3_layers(entry["layers"], path)
            nested = max(nested, inner, key=len)
            continue
        variables = entry.get("vars", {})
        if len(variables):
            name = variables.attrs.get("name")
            if name is None:
                raise UserError(
                    f"config.weights.path: {path} lacks its layers' names; save it with a newer "
                    "Keras 3"
                )
            layers[str(name)] = [np.asarray(variables[key]) for key in sorted(variables, key=int)]
    return max(layers, nested, key=len)


def _resnet(layers: Layers) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for layer, arrays in layers.items():
        target = _resnet_name(layer)
        if target == "fc":
            tensors |= _dense(target, arrays)
        elif layer.endswith("_conv"):
            tensors[f"{target}.weight"] = _conv_kernel(layer, arrays[0])
        else:
            bias = layers[layer.removesuffix("_bn") + "_conv"][1:]
            gamma, beta, mean, variance = arrays
            tensors |= {
                f"{target}.weight": gamma,
                f"{target}.bias": beta,
                f"{target}.running_var": variance,
            }
            tensors[f"{target}.running_mean"] = mean - bias[0] if bias else mean
    tensors["conv1.weight"] = _to_rgb(tensors["conv1.weight"])
    return tensors


def _resnet_name(layer: str) -> str:
    if layer in _RESNET_LAYERS:
        return _RESNET_LAYERS[layer]
    if not (match := _BLOCK.fullmatch(layer)):
        raise ValueError(f"it has a layer {layer!r}")
    layer_number, block, position = int(match[1]) - 1, int(match[2]) - 1, int(match[3])
    if position == 0:
        return f"layer{layer_number}.{block}.downsample.{0 if match[4] == 'conv' else 1}"
    return f"layer{layer_number}.{block}.{match[4]}{position}"


def _vgg(layers: Layers) -> dict[str, np.ndarray]:
    convs = {(int(m[1]), int(m[2])): name for name in layers if (m := _VGG_CONV.fullmatch(name))}
    blocks = [block for block, _ in convs]
    depths = [blocks.count(block) for block in range(1, 1 + max(blocks))]
    indices = [i for block in vgg_convs(depths, batch_norm=False) for i in block]
    tensors: dict[str, np.ndarray] = {}
    for index, key in zip(indices, sorted(convs), strict=True):
        kernel, bias = layers[convs[key]]
        tensors |= {
            f"features.{index}.weight": _conv_kernel(convs[key], kernel),
            f"features.{index}.bias": bias,
        }
    for layer in set(layers) - set(convs.values()):
        if layer not in _VGG_DENSE:
            raise ValueError(f"it has a layer {layer!r}")
        tensors |= _dense(_VGG_DENSE[layer], layers[layer])
    if (first := tensors.get("classifier.0.weight")) is not None:
        tensors["classifier.0.weight"] = _channels_first(
            first, tensors[f"features.{index}.weight"].shape[0]
        )
    tensors["features.0.weight"] = _to_rgb(tensors["features.0.weight"])
    return tensors


def _conv_kernel(layer: str, kernel: np.ndarray) -> np.ndarray:
    if kernel.ndim != 4:
        raise ValueError(f"the kernel of {layer} has the shape {list(kernel.shape)}")
    return kernel.transpose(3, 2, 0, 1)


def _dense(name: str, arrays: list[np.ndarray]) -> Mapping[str, np.ndarray]:
    kernel, bias = arrays
    return {f"{name}.weight": kernel.T, f"{name}.bias": bias}


def _channels_first(weight: np.ndarray, channels: int) -> np.ndarray:
    """Reorder [out, H * W * C] to [out, C * H * W], as PyTorch flattens; H = W."""
    side = round((weight.shape[1] / channels) ** 0.5)
    return weight.reshape(-1, side, side, channels).transpose(0, 3, 1, 2).reshape(weight.shape)


def _to_rgb(kernel: np.ndarray) -> np.ndarray:
    """Reverse the input channels of an OIHW kernel; one of other than 3 channels was never BGR."""
    return kernel[:, ::-1] if kernel.shape[1] == 3 else kernel
