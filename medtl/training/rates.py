"""The learning rate by layer: wrappers around an optimizer.

A function `(optimizer, layers) -> optax.GradientTransformation` gets the optimizer over flat
parameters, and the layers from the input to the head: sets of paths. The last holds the heads, the
terms and the fusion. With an argument `steps` it also gets the length of the training stage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from medtl import plugins
from medtl.errors import UserError
from medtl.training.optimizers import Path
from medtl.training.trainable import ADAPTERS

Layers = Sequence[Collection[Path]]


def layers(paths: Collection[Path], groups: Mapping[str, tuple[str, ...]]) -> tuple[frozenset, ...]:
    """Divide trained parameters into layers, from the input to the head; empty ones are left out.

    Args:
      paths: of the trained parameters.
      groups: layer of the image encoder -> prefixes of its parameters, in order of depth. What no
        group holds, and other encoders, make the layer below the heads.
    """
    order = {f"image/{prefix}": i for i, group in enumerate(groups.values()) for prefix in group}
    found: dict[int, set[Path]] = {}
    for path in paths:
        own = path[1:] if path[0] == ADAPTERS else path
        depth = len(groups) + (own[0] != "encoders")
        if own[0] == "encoders":
            name = "/".join(own[1:])
            depth = next((i for p, i in order.items() if f"{name}/".startswith(f"{p}/")), depth)
        found.setdefault(depth, set()).add(path)
    return tuple(frozenset(found[depth]) for depth in sorted(found))


def layerwise(
    optimizer: optax.GradientTransformation, layers: Layers, *, decay: float = 0.7
) -> optax.GradientTransformation:
    """Multiply the step of the layer that is k layers below the head by `decay ** k`.

    Howard and Ruder 2018 (ULMFiT), https://arxiv.org/abs/1801.06146, section 3.2; as layer-wise
    decay in BEiT, Bao et al. 2021, https://arxiv.org/abs/2106.08254. The decoupled weight decay is
    multiplied, too, as with AdamW and a rate for each group of parameters.

    Args:
      optimizer: over flat parameters.
      layers: from the input to the head.
      decay: above 0, at most 1.

    Raises:
      UserError: the decay is outside its range.

    >>> made = layerwise(optax.sgd(1.0), [{"a"}, {"b"}], decay=0.5)
    >>> g = {"a": jnp.ones(()), "b": jnp.ones(())}
    >>> {name: float(u) for name, u in made.update(g, made.init(g))[0].items()}
    {'a': -0.5, 'b': -1.0}
    """
    if not 0 < decay <= 1:
        raise UserError(f"layerwise: decay is {decay}; it must be above 0 and at most 1")
    factors = [decay ** (len(layers) - 1 - i) for i in range(len(layers))]
    return optax.chain(optimizer, _scaled(lambda step: factors, layers))


def gradual(
    optimizer: optax.GradientTransformation, layers: Layers, *, steps: int, share: float = 0.1
) -> optax.GradientTransformation:
    """Unfreeze gradually: the layer that is k layers below the head moves after k shares.

    Howard and Ruder 2018 (ULMFiT), https://arxiv.org/abs/1801.06146, section 3.3. The optimizer
    follows the gradients of all layers from the first step on, so that Adam's moments are those of
    a layer that rests, not zeros. BatchNorm's running statistics move with the data unless
    `batch_norm` is "frozen".

    Args:
      optimizer: over flat parameters.
      layers: from the input to the head.
      steps: the length of the training stage.
      share: of the stage, from one layer to the next.

    Raises:
      UserError: a layer would never move.
    """
    last = (len(layers) - 1) * share
    if not (share > 0 and last < 1):
        raise UserError(
            f"gradual: share is {share}; with {len(layers)} layers it must be above 0 and below "
            f"{1 / max(len(layers) - 1, 1):.3g}, or some layers would never train"
        )
    starts = [share * steps * (len(layers) - 1 - i) for i in range(len(layers))]

    def factors(step: jax.Array) -> list[jax.Array]:
        return [(step >= start).astype(jnp.float32) for start in starts]

    return optax.chain(optimizer, _scaled(factors, layers))


class _Averaged(NamedTuple):
    """The state of `auto_rgn`."""

    inner: Any
    ratio: jax.Array  # f32[layers]


def auto_rgn(
    optimizer: optax.GradientTransformation, layers: Layers, *, average: float = 0.9
) -> optax.GradientTransformation:
    """Multiply each layer's step by its relative gradient norm, divided by the largest.

    `r_l = ‖g_l‖ / ‖w_l‖`, a moving average over the steps; the factor is `r_l / max_m r_m`.

    Auto-RGN: Lee et al. 2023, https://arxiv.org/abs/2210.11466, section 4.2. There the average is
    over an epoch; with fewer than a hundred steps an epoch a moving average adapts sooner.

    Args:
      optimizer: over flat parameters.
      layers: from the input to the head.
      average: decay of the moving average, in [0, 1).

    Raises:
      UserError: the decay is outside its range.
    """
    if not 0 <= average < 1:
        raise UserError(f"auto_rgn: average is {average}; it must be at least 0 and below 1")

    def init(params: Any) -> _Averaged:
        zeros = jnp.zeros(len(layers), jnp.float32)
        return _Averaged(optimizer.init(params), zeros)

    def update(gradients: Any, state: _Averaged, params: Any = None) -> tuple[Any, _Averaged]:
        norms = [
            [optax.tree.norm({p: tree[p] for p in sorted(layer)}) for layer in layers]
            for tree in (gradients, params)
        ]
        ratio = jnp.stack([g / jnp.maximum(w, 1e-12) for g, w in zip(*norms, strict=True)])
        ratio = average * state.ratio + (1 - average) * ratio  # a common factor cancels
        updates, inner = optimizer.update(gradients, state.inner, params)
        factors = ratio / jnp.maximum(jnp.max(ratio), 1e-12)
        return _by_layer(updates, factors, layers), _Averaged(inner, ratio)

    return optax.GradientTransformation(init, update)


def wrap(
    text: str,
    optimizer: optax.GradientTransformation,
    layers: Layers,
    *,
    steps: int,
    key: str,
) -> optax.GradientTransformation:
    """Wrap an optimizer in the function that a plug-in string names; "" leaves it as it is."""
    if not text:
        return optimizer
    plugin = plugins.resolve(text, "medtl.training.rates", key=key)
    given = {"steps": steps} if plugins.accepted(plugin, ("steps",)) else {}
    made = plugin(optimizer, layers, **given)
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(f"{key}: {text!r} returns {made!r}, no optax.GradientTransformation")
    return made


def _scaled(
    factors: Callable[[jax.Array], Sequence[Any]], layers: Layers
) -> optax.GradientTransformation:
    """Multiply the updates of each layer by its factor at the step."""

    def update(updates: Any, step: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        return _by_layer(updates, factors(step), layers), step + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _by_layer(updates: Mapping[Path, Any], factors: Any, layers: Layers) -> dict:
    of_path = {p: factor for factor, layer in zip(factors, layers, strict=True) for p in layer}
    return {path: of_path[path] * update for path, update in updates.items()}
