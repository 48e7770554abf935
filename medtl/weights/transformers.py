"""The tensors of transformers and ConvNeXts in the form of ours, whatever library wrote them.

Libraries keep the same numbers in other tensors: query, key and value apart or as one, a token with
or without leading axes of one, a scale per channel as a 1x1 map. Nothing here changes a number; a
tensor that is made, as a bias of zeros, is named in the notes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from medtl.weights.naming import Leaf, is_float

Tensors = dict[str, np.ndarray]
_QUERY = re.compile(r"(.*\.)(query|q_proj)(\.weight|\.bias)$")
_OF_QUERY = {"query": ("query", "key", "value"), "q_proj": ("q_proj", "k_proj", "v_proj")}


def join(tensors: Tensors, *, key_bias: bool = True) -> None:
    """Join query, key and value in place as `qkv`, so that no second copy stays in memory.

    Without `key_bias` a key's bias that is missing is zero (DINOv3). The joined tensor of
    `nn.MultiheadAttention` in SigLIP's head is split into `q` and `kv`. DINOv3's `bias_mask`, which
    switches the key's bias off, is applied.
    """
    for name in list(tensors):
        if match := _QUERY.fullmatch(name):
            start, query, leaf = match.groups()
            _join(tensors, start, _OF_QUERY[query], leaf, key_bias)
        elif name.endswith("head.attention.in_proj_weight"):
            _split(tensors, name, ".weight")
        elif name.endswith("head.attention.in_proj_bias"):
            _split(tensors, name, ".bias")
        elif ".mlp.up_proj." in name and name.replace("up_proj", "gate_proj") not in tensors:
            tensors[name.replace("up_proj", "fc1")] = tensors.pop(name)  # DINOv3 without a gate
        elif name.endswith(".qkv.bias_mask"):
            bias, mask = name.removesuffix("_mask"), tensors.pop(name)
            old = tensors.get(bias)
            if old is not None and is_float(old) and mask.shape == old.shape:
                tensors[bias] = np.where(mask == 1, old, 0).astype(np.float32)


def _join(
    tensors: Tensors, start: str, names: tuple[str, str, str], leaf: str, key_bias: bool
) -> None:
    parts = [tensors.get(f"{start}{name}{leaf}") for name in names]
    if leaf == ".bias" and not key_bias and parts[0] is not None and parts[1] is None:
        parts[1] = np.zeros_like(parts[0])
    arrays = [part for part in parts if part is not None and is_float(part)]
    if len(arrays) == 3 and len({part.shape for part in arrays}) == 1:
        for name in names:
            tensors.pop(f"{start}{name}{leaf}", None)
        tensors[f"{start}qkv{leaf}"] = np.concatenate(arrays)


def _split(tensors: Tensors, name: str, leaf: str) -> None:
    if len(tensors[name]) % 3:
        return
    tensor, start = tensors.pop(name), name.removesuffix(f"in_proj_{leaf[1:]}")
    third = len(tensor) // 3
    tensors[f"{start}q{leaf}"], tensors[f"{start}kv{leaf}"] = tensor[:third], tensor[third:]


def completed(
    tensors: Mapping[str, np.ndarray], leaves: Mapping[str, Leaf]
) -> tuple[Tensors, tuple[str, ...]]:
    """Return tensors that have the shapes of ours, where that needs no other number.

    - Axes of one are added or left out: a token [D] becomes [1, 1, D], a dense layer may be a 1x1
      convolution.
    - Position embeddings without a row for the class token get one of zeros (timm adds it to the
      token).
    - A network whose attention has no bias at all gets biases of zero (timm's DINOv3).

    Args:
      tensors: torchvision's or timm's names.
      leaves: our variables under the same names.

    Returns:
      The tensors, and a note on each kind of change that adds numbers.
    """
    result, notes = dict(tensors), []
    positions, wanted = result.get("pos_embed"), leaves.get("pos_embed")
    if positions is not None and wanted and positions.ndim == 3 and "cls_token" in leaves:
        rows = wanted.torch_shape[1]
        if positions.shape == (1, rows - 1, wanted.torch_shape[2]):
            result["pos_embed"] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
            notes.append("pos_embed: a row of zeros for the class token, as the file has none")
    biases = [name for name in leaves if name.endswith(".attn.qkv.bias")]
    if biases and not any(name in result for name in biases) and _has_weights(result, biases):
        for name in biases:
            result[name] = np.zeros(leaves[name].torch_shape, np.float32)
        notes.append(f"{biases[0]}, ...: {len(biases)} biases of zeros, as the file has none")
    for name, tensor in result.items():
        shape = leaves[name].torch_shape if name in leaves else tensor.shape
        if tensor.shape != shape and _without_ones(tensor.shape) == _without_ones(shape):
            result[name] = tensor.reshape(shape)
    return result, tuple(notes)


def _has_weights(tensors: Mapping[str, np.ndarray], biases: list[str]) -> bool:
    return all(f"{name.removesuffix('bias')}weight" in tensors for name in biases)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)
