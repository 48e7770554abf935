"""Random variables for equivalence tests, and the rule between their names and PyTorch's.

Deep nets with careless random weights blow up, and then amplify rounding until no comparison means
anything. Here kernels are He-scaled, scales are near 1 but near 0.2 at the end of a residual
branch, running means near 0 and running variances near 1: the activations keep their size through
152 layers, and float32 is within 1e-6 of float64 in eval mode and 1e-5 in train mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

DRAWS = 999_983  # a prime: VGG's largest kernels repeat them, but no two rows agree
LAST_NORMS = ("bn2", "bn3")  # bn2 of a bottleneck is not its last; a small scale there does no harm


def random_variables(module: Any, image_shape: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """`params` and `batch_stats` of `module` as float32 arrays, drawn from `seed`."""
    image = jnp.zeros((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda key: module.init(key, image, False), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        *_, layer, leaf = path
        if leaf == "kernel":
            fan_in = float(np.prod(shape[:-1]))
            values = rng.standard_normal(min(np.prod(shape), DRAWS), np.float32) * np.float32(
                np.sqrt(2 / fan_in)
            )
            return np.resize(values, shape)
        if leaf == "scale":
            return (rng.uniform(0.8, 1.2, shape) * (0.2 if layer in LAST_NORMS else 1.0)).astype(
                np.float32
            )
        if leaf == "var":
            return rng.uniform(0.8, 1.2, shape).astype(np.float32)
        assert leaf in ("bias", "mean"), path
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    flat = {
        path: jnp.asarray(draw(path, leaf.shape))
        for path, leaf in traverse_util.flatten_dict(shapes).items()
    }
    return traverse_util.unflatten_dict(flat)


def torch_name(path: tuple[str, ...]) -> str:
    """("params", "layer1_0", "downsample_0", "kernel") -> "layer1.0.downsample.0.weight"."""
    _, *layers, leaf = path
    leaf = {
        "kernel": "weight",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
    }.get(leaf, leaf)
    return ".".join([*(layer.replace("_", ".") for layer in layers), leaf])


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our variables as a PyTorch state_dict of NumPy arrays: OIHW, [out, in]."""
    return {
        torch_name(path): _transpose(np.array(x), -1)
        for path, x in traverse_util.flatten_dict(variables).items()
    }


def from_torch(like: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `to_torch`, for the variables that are in `like`."""
    flat = traverse_util.flatten_dict(like)
    return traverse_util.unflatten_dict(
        {path: _transpose(state[torch_name(path)], 1) for path in flat}
    )


def _transpose(x: np.ndarray, direction: int) -> np.ndarray:
    if x.ndim == 4:
        return np.transpose(x, (3, 2, 0, 1) if direction < 0 else (2, 3, 1, 0))
    return x.T


def relative_error(found: Any, expected: Any) -> float:
    """||found - expected|| / ||expected||, computed in float64."""
    expected = np.asarray(expected, np.float64)
    return float(
        np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)
    )
