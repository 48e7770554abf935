"""Which parameters of the encoders train, beside the layers that `freeze` names.

A function `(params) -> paths` gets the encoders' parameters that freezing leaves, flat: path, such
as ("encoders", "image", "layer1_0", "bn1", "scale"), -> array. It returns the paths that train, or
an `Adapter`. Heads and terms always train.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from medtl import plugins
from medtl.errors import UserError
from medtl.training.optimizers import Path

Flat = Mapping[Path, Any]
ADAPTERS = "adapters"


def norms(params: Flat) -> frozenset[Path]:
    """Return the scales and shifts of normalization layers: those with a parameter `scale`.

    Frankle et al. 2021, https://arxiv.org/abs/2003.00152, train BatchNorm alone.

    >>> sorted(norms({("bn", "scale"): 0, ("bn", "bias"): 0, ("fc", "bias"): 0}))
    [('bn', 'bias'), ('bn', 'scale')]
    """
    layers = {path[:-1] for path in params if path[-1] == "scale"}
    return frozenset(path for path in params if path[:-1] in layers)


def biases(params: Flat) -> frozenset[Path]:
    """Return every bias, those of normalization layers included.

    BitFit: Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199.

    >>> sorted(biases({("bn", "scale"): 0, ("bn", "bias"): 0, ("fc", "bias"): 0}))
    [('bn', 'bias'), ('fc', 'bias')]
    """
    return frozenset(path for path in params if path[-1] == "bias")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank changes of kernels: `W + scale · A B`, where A and B train and W does not.

    A kernel of more dimensions is a matrix [M, N]: a convolution's [h, w, C, D] is [h w C, D], an
    attention's projection [D, heads, d] is [D, heads d]. A is [M, rank], B is [rank, N].

    Attributes:
      shapes: path of a kernel -> (its shape, the number of axes that make M).
      rank: of A and B.
      scale: alpha / rank.
    """

    shapes: Mapping[Path, tuple[tuple[int, ...], int]]
    rank: int
    scale: float

    @property
    def paths(self) -> frozenset[Path]:
        """The paths of A and B in the parameters."""
        return frozenset((ADAPTERS, *path, part) for path in self.shapes for part in "ab")

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Return A, Gaussian with variance 1 / M, and B = 0, nested: the model starts unchanged."""
        drawn = {}
        for i, (path, (shape, axes)) in enumerate(sorted(self.shapes.items())):
            m, n = math.prod(shape[:axes]), math.prod(shape[axes:])
            normal = jax.random.normal(jax.random.fold_in(key, i), (m, self.rank))
            drawn[(*path, "a")] = normal / math.sqrt(m)
            drawn[(*path, "b")] = jnp.zeros((self.rank, n))
        return traverse_util.unflatten_dict(drawn)

    def merged(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters without adapters, whose change is added to the kernels."""
        flat = traverse_util.flatten_dict({k: v for k, v in params.items() if k != ADAPTERS})
        pairs = traverse_util.flatten_dict(params[ADAPTERS])
        for path, (shape, _) in self.shapes.items():
            product = jnp.dot(pairs[(*path, "a")], pairs[(*path, "b")], precision="highest")
            flat[path] = flat[path] + self.scale * product.reshape(shape)
        return traverse_util.unflatten_dict(flat)


def lora(params: Flat, *, rank: int = 4, alpha: float = 0.0) -> Adapter:
    """Return low-rank adapters of all kernels: dense layers, attention and convolutions.

    `W' = W + alpha / rank · A B`; the merged kernels are handed on, so that a checkpoint, an export
    and a prediction see an ordinary model.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3.

    Args:
      params: as in the module's docstring.
      rank: of the change, at least 1.
      alpha: the factor times the rank; 0: the rank, so that the factor is 1.

    Raises:
      UserError: the rank is below 1, or there is no kernel.

    >>> adapter = lora({("conv", "kernel"): jnp.zeros((3, 3, 8, 16))}, rank=2)
    >>> made = adapter.init(jax.random.key(0))["conv"]["kernel"]
    >>> made["a"].shape, made["b"].shape
    ((72, 2), (2, 16))
    """
    if rank < 1:
        raise UserError(f"lora: rank is {rank}; it must be at least 1")
    kernels = {p: tuple(jnp.shape(x)) for p, x in params.items() if p[-1] == "kernel"}
    if not kernels:
        raise UserError("lora: the encoders have no kernel that freeze leaves")
    shapes = {path: (shape, _rows(shape)) for path, shape in kernels.items()}
    return Adapter(shapes, rank, (alpha or rank) / rank)


def _rows(shape: tuple[int, ...]) -> int:
    """Return how many axes make the rows: of three, those that divide the kernel evenly."""
    if len(shape) != 3:
        return len(shape) - 1
    return min((1, 2), key=lambda i: abs(math.prod(shape[:i]) - math.prod(shape[i:])))


def select(
    text: str, params: Mapping[str, Any], trained: Collection[Path], *, key: str
) -> tuple[frozenset[Path], Adapter | None]:
    """Return the paths that train of those that freezing leaves, and the adapter.

    Args:
      text: the config's plug-in string; "all": all of them.
      params: nested.
      trained: from `optimizers.trained_paths`.
      key: the config's key.

    Raises:
      UserError: the function returns a path that is not there, or there is nothing to choose from.
    """
    trained = frozenset(trained)
    if text == "all":
        return trained, None
    flat = traverse_util.flatten_dict(params)
    open_ = {path: flat[path] for path in sorted(trained) if path[0] == "encoders"}
    if not open_:
        raise UserError(f"{key} is {text!r}, but freeze leaves no parameter of an encoder")
    chosen = plugins.resolve(text, "medtl.training.trainable", key=key)(open_)
    others = trained - open_.keys()
    if isinstance(chosen, Adapter):
        return others | chosen.paths, chosen
    unknown = sorted(set(chosen) - open_.keys())
    if unknown or not chosen:
        what = f"{'/'.join(map(str, unknown[0]))}, which is none" if unknown else "none"
        raise UserError(f"{key}: {text!r} returns {what} of the {len(open_)} parameters")
    return others | frozenset(chosen), None
