"""Flat Flax checkpoints, `a/b/kernel` -> array, with the names and layout of a PyTorch state_dict.

big_vision, the first ViTs and BiT keep their weights like this in `.npz` files. The names of the
modules remain; `name_tables` translates them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from medtl.weights.naming import torch_module

_LEAVES = {"kernel": "weight", "scale": "weight", "beta": "bias"}
_LEAVES |= {"mean": "running_mean", "var": "running_var"}
_STACKED = "encoderblock"  # of big_vision's scan: all blocks of a transformer as one


def to_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors with names joined by dots, and kernels as [out, in, ...].

    The kernels of attention lose the axis of heads, and those of a pooling head (MAPHead) are `q`
    and `kv`. Names without "/" are of another format: nothing changes then.

    >>> flat = {"params/Dense_0/kernel": np.zeros((2, 3)), "params/Dense_0/bias": np.zeros(3)}
    >>> {name: tensor.shape for name, tensor in to_torch(flat).items()}
    {'params.Dense.0.weight': (3, 2), 'params.Dense.0.bias': (3,)}
    """
    if not any("/" in name for name in tensors):
        return dict(tensors)
    has_statistics = any(name.startswith("batch_stats/") for name in tensors)
    result = {}
    for name, tensor in _unstacked(tensors):
        *modules, leaf = name.split("/")
        if has_statistics and modules[:1] in (["params"], ["batch_stats"]):
            modules = modules[1:]
        parent = modules[-1] if modules else ""
        if leaf == "kernel":
            tensor = _kernel(tensor, parent)
        elif leaf == "bias" and parent in ("query", "key", "value"):
            tensor = tensor.reshape(-1)
        elif leaf == "gamma" and parent.endswith("norm"):  # else it is a LayerScale
            leaf = "weight"
        result[".".join([*map(torch_module, modules), _LEAVES.get(leaf, leaf)])] = tensor
    for name in [name for name in result if "MAPHead" in name and ".key." in name]:
        start, _, end = name.rpartition(".key.")
        query, value = f"{start}.query.{end}", f"{start}.value.{end}"
        if query in result and value in result:
            result[f"{start}.q.{end}"] = result.pop(query)
            result[f"{start}.kv.{end}"] = np.concatenate([result.pop(name), result.pop(value)])
    return result


def _unstacked(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in tensors.items():
        if f"/{_STACKED}/" in name and tensor.ndim:
            for i, part in enumerate(tensor):
                yield name.replace(f"/{_STACKED}/", f"/{_STACKED}_{i}/"), part
        else:
            yield name, tensor


def _kernel(tensor: np.ndarray, parent: str) -> np.ndarray:
    """Return [h, w, in, out] as [out, in, h, w], and dense kernels with or without heads."""
    if tensor.ndim == 4:
        return tensor.transpose(3, 2, 0, 1)
    if tensor.ndim == 3:
        width = len(tensor) if parent != "out" else tensor.shape[-1]
        tensor = tensor.reshape((width, -1) if parent != "out" else (-1, width))
    return tensor.T
