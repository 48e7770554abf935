"""Which parameters train, and how fast: freezing, the optimizer, its schedule and weight decay."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from medtl import plugins
from medtl.errors import UserError, nearest

Path = tuple[str, ...]
Schedule = Callable[[Any], Any]


def trained_paths(
    params: Mapping[str, Any],
    *,
    freeze: str,
    groups: Mapping[str, tuple[str, ...]],
    heads: Collection[str],
    terms: Collection[str] = (),
) -> frozenset[Path]:
    """Return the paths of the parameters that train: all that nothing freezes by name.

    Unused heads and terms rest, so that weight decay does not shrink them.

    Args:
      params: `{"encoders": ..., "heads": {HEAD: ...}, "terms": {TERM: ...}}`.
      freeze: "none", "backbone", or a layer of the image encoder: the stem and the layers up to it.
      groups: layer -> prefixes of parameter paths within the image encoder, in order of depth.
      heads: the heads in use.
      terms: the terms in use.

    Raises:
      UserError: the image encoder has no such layer, or a prefix names no parameter.
    """
    frozen: tuple[str, ...] = ()
    if freeze == "backbone":
        frozen = ("encoders/image",)
    elif freeze != "none":
        if freeze not in groups:
            raise UserError(f"config.stages.*.freeze is {freeze!r}{nearest(freeze, groups)}")
        upto = list(groups)[: list(groups).index(freeze) + 1]
        frozen = tuple(f"encoders/image/{prefix}" for name in upto for prefix in groups[name])
    paths = frozenset(traverse_util.flatten_dict(params))
    # The source's BatchNorm rests where the target's does.
    twin = {path: ("encoders", *path[1:]) if path[0] == "norms" else path for path in paths}
    resting = {path for path in paths if any(_is_under(twin[path], prefix) for prefix in frozen)}
    for prefix in frozen:
        if not any(_is_under(path, prefix) for path in paths):
            raise UserError(f"config.stages.*.freeze: {prefix} names no parameter of the model")
    for part, used in (("heads", heads), ("terms", terms)):
        resting |= {path for path in paths if path[0] == part and path[1] not in used}
    return paths - resting


def _is_under(path: Path, prefix: str) -> bool:
    parts = tuple(prefix.split("/"))
    return path[: len(parts)] == parts


def split(
    params: Mapping[str, Any], paths: Collection[Path]
) -> tuple[dict[Path, Any], dict[Path, Any]]:
    """Split nested parameters into those at `paths` and the others, both flat."""
    flat = traverse_util.flatten_dict(params, keep_empty_nodes=True)
    trained = {path: value for path, value in flat.items() if path in paths}
    return trained, {path: value for path, value in flat.items() if path not in paths}


def merge(trained: Mapping[Path, Any], frozen: Mapping[Path, Any]) -> dict[str, Any]:
    """Undo `split`."""
    return traverse_util.unflatten_dict({**trained, **frozen})


def learning_rate(value: float, schedule: str, *, warmup: float, steps: int, key: str) -> Schedule:
    """Return the learning rate over steps.

    Args:
      value: the learning rate, or the schedule's highest.
      schedule: "constant"; "cosine" or "linear", down to 0 at the last step; or an Optax schedule
        with its other options, e.g. "exponential_decay(transition_steps=100, decay_rate=0.9)".
      warmup: the fraction of `steps` in which the rate rises linearly from 0.
      steps: the length of the training stage.
      key: the config's key, for errors.
    """
    rising = round(warmup * steps)
    rest = max(steps - rising, 1)
    if schedule == "constant":
        main: Schedule = optax.constant_schedule(value)
    elif schedule == "cosine":
        main = optax.cosine_decay_schedule(value, rest)
    elif schedule == "linear":
        main = optax.linear_schedule(value, 0.0, rest)
    else:
        plugin = plugins.resolve(schedule, "optax", key=f"{key}.schedule")
        first = () if "init_value" in plugin.kwargs else (value,)
        main = _made_schedule(plugin, *first)
    if not rising:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, value, rising), main], [rising])


def schedule_from(text: str, *, key: str) -> Schedule:
    """Return an Optax schedule from a plug-in string, e.g. "linear_schedule(0.0, 1.0, 1000)"."""
    return _made_schedule(plugins.resolve(text, "optax", key=key))


def _made_schedule(plugin: plugins.Plugin, *first: Any) -> Schedule:
    try:
        made = plugin.function(*first, *plugin.args, **plugin.kwargs)
        jnp.asarray(made(0), jnp.float32)
    except Exception as error:
        raise UserError(
            f"{plugin.key}: {plugin.text!r} does not make an Optax schedule: {error}"
        ) from None
    return made


def optimizer(stage: Any, *, steps: int, key: str) -> tuple[optax.GradientTransformation, Schedule]:
    """Return the training stage's optimizer over flat parameters, and its learning rate.

    The chain is gradient clipping by global norm, the Optax optimizer, then weight decay, decoupled
    as in AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), which leaves out norms
    and biases (parameters with less than two dimensions). The optimizer's `init` sees the
    pretrained values, so that a user's transformation can keep them.

    Args:
      stage: `config.stages.NAME`.
      steps: the length of the training stage.
      key: the config's key, e.g. "config.stages.target", for errors.

    Raises:
      UserError: the strings name no optimizer or schedule, or weight decay is given twice.
    """
    rate = learning_rate(
        stage.learning_rate, stage.schedule, warmup=stage.warmup, steps=steps, key=key
    )
    plugin = plugins.resolve(stage.optimizer, "optax", key=f"{key}.optimizer")
    text, kwargs = stage.optimizer, plugin.kwargs
    if plugin.args:
        raise UserError(
            f"{key}.optimizer: {text!r}: give its options by name; the rate is {key}.learning_rate"
        )
    # A sweep traces the rate and the decay; a traced decay counts as positive.
    decaying = not isinstance(stage.weight_decay, int | float) or stage.weight_decay > 0
    if decaying and "weight_decay" in kwargs:
        raise UserError(
            f"{key}: weight decay is given twice, in optimizer {text!r} and as weight_decay"
        )
    decays_itself = {"weight_decay", "mask"} <= set(inspect.signature(plugin.function).parameters)
    if decays_itself:
        kwargs = {"weight_decay": stage.weight_decay, "mask": decays, **kwargs}
    try:
        made = plugin.function(rate, **kwargs)
        toy = {("x",): jnp.ones((2, 2))}
        made.update(toy, made.init(toy), toy)
    except Exception as error:
        raise UserError(
            f"{key}.optimizer: {text!r} does not make an Optax optimizer: {error}"
        ) from None
    chain = [optax.clip_by_global_norm(stage.clip_norm)] if stage.clip_norm > 0 else []
    chain.append(made)
    if decaying and not decays_itself:
        factor = functools.partial(_decay_factor, rate, stage.weight_decay)
        chain.append(optax.add_decayed_weights(factor, mask=decays))
    return optax.chain(*chain), rate


def decays(params: Any) -> Any:
    """Return True for the parameters that weight decay shrinks: not norms and biases."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def _decay_factor(rate: Schedule, weight_decay: Any, step: Any) -> Any:
    return -(rate(step) * weight_decay)
