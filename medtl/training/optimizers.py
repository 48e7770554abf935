"""Which parameters move, and how fast: freezing, the optimizer, its schedule and its weight decay."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from medtl import plugins
from medtl.errors import UserError
from medtl.models import architectures

Path = tuple[str, ...]
Schedule = Callable[[Any], Any]


def moving(
    params: Mapping[str, Any], *, freeze: str, architecture: str, heads: Collection[str]
) -> frozenset[Path]:
    """The paths of the parameters that train.

    Args:
      params: `{"backbone": ..., "heads": {HEAD: ...}}`.
      freeze: "none", "backbone", or "n": the stem and the first n stages.
      architecture: the backbone's name, which says where its stages end.
      heads: the heads in use; others rest, so that weight decay does not shrink them.
    """
    frozen = frozenset(params["backbone"]) if freeze == "backbone" else frozenset()
    if freeze not in ("none", "backbone"):
        frozen = frozenset(architectures.freeze_prefixes(architecture, int(freeze))) & frozenset(
            params["backbone"]
        )
    return frozenset(
        path
        for path in traverse_util.flatten_dict(params)
        if (path[0] == "backbone" and path[1] not in frozen)
        or (path[0] == "heads" and path[1] in heads)
    )


def split(
    params: Mapping[str, Any], paths: Collection[Path]
) -> tuple[dict[Path, Any], dict[Path, Any]]:
    """Nested parameters -> the moving and the resting ones, flat."""
    flat = traverse_util.flatten_dict(params)
    return {p: v for p, v in flat.items() if p in paths}, {
        p: v for p, v in flat.items() if p not in paths
    }


def merge(moving: Mapping[Path, Any], resting: Mapping[Path, Any]) -> dict[str, Any]:
    """What `split` took apart."""
    return traverse_util.unflatten_dict({**moving, **resting})


def learning_rate(value: float, schedule: str, *, warmup: float, steps: int, key: str) -> Schedule:
    """The learning rate over steps.

    Args:
      value: the learning rate, or the schedule's highest.
      schedule: "constant"; "cosine" or "linear", down to 0 at the last step; or the name of an Optax schedule with the
        rest of its options, e.g. "exponential_decay(transition_steps=100, decay_rate=0.9)".
      warmup: the fraction of `steps` in which it rises linearly from 0.
      steps: the length of the stage.
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
        function, args, kwargs = plugins.resolve(schedule, "optax", key=f"{key}.schedule")
        main = _schedule(
            function,
            (value, *args) if "init_value" not in kwargs else args,
            kwargs,
            schedule,
            f"{key}.schedule",
        )
    return (
        optax.join_schedules([optax.linear_schedule(0.0, value, rising), main], [rising])
        if rising
        else main
    )


def schedule_from(text: str, *, key: str) -> Schedule:
    """An Optax schedule from its call, e.g. "linear_schedule(0.0, 1.0, 1000)"."""
    function, args, kwargs = plugins.resolve(text, "optax", key=key)
    return _schedule(function, args, kwargs, text, key)


def _schedule(function: Callable, args: tuple, kwargs: dict, text: str, key: str) -> Schedule:
    try:
        made = function(*args, **kwargs)
        jnp.asarray(made(0), jnp.float32)
    except Exception as error:
        raise UserError(f"{key}: {text!r} does not make an Optax schedule: {error}") from None
    return made


def optimizer(stage: Any, *, steps: int, key: str) -> tuple[optax.GradientTransformation, Schedule]:
    """The stage's optimizer over flat parameters, and its learning rate.

    Gradient clipping by global norm, then the Optax optimizer, then weight decay, decoupled as in AdamW (Loshchilov and
    Hutter 2019), which leaves out norms and biases (parameters of less than two dimensions).

    Args:
      stage: `config.stages.NAME`.
      steps: the length of the stage.
      key: the config's key, e.g. "config.stages.target", for errors.
    """
    rate = learning_rate(
        stage.learning_rate, stage.schedule, warmup=stage.warmup, steps=steps, key=key
    )
    function, args, kwargs = plugins.resolve(stage.optimizer, "optax", key=f"{key}.optimizer")
    if args:
        raise UserError(
            f"{key}.optimizer: {stage.optimizer!r}: give its options by name; the rate is {key}.learning_rate"
        )
    # A sweep traces the rate and the decay: of those that are no numbers yet, the decay is taken for positive.
    decaying = not isinstance(stage.weight_decay, int | float) or stage.weight_decay > 0
    if decaying and "weight_decay" in kwargs:
        raise UserError(
            f"{key}: weight decay is given twice, in optimizer {stage.optimizer!r} and as weight_decay"
        )
    own_decay = {"weight_decay", "mask"} <= set(inspect.signature(function).parameters)
    if own_decay:
        kwargs = {"weight_decay": stage.weight_decay, "mask": decays, **kwargs}
    try:
        made = function(rate, **kwargs)
        toy = {("x",): jnp.ones((2, 2))}
        made.update(toy, made.init(toy), toy)
    except Exception as error:
        raise UserError(
            f"{key}.optimizer: {stage.optimizer!r} does not make an Optax optimizer: {error}"
        ) from None
    chain = [optax.clip_by_global_norm(stage.clip_norm)] if stage.clip_norm > 0 else []
    chain.append(made)
    if decaying and not own_decay:
        chain.append(decoupled_weight_decay(rate, stage.weight_decay))
    return optax.chain(*chain), rate


def decays(params: Any) -> Any:
    """True for parameters that weight decay shrinks: not norms and biases."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def decoupled_weight_decay(rate: Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Adds `-rate(step) * weight_decay * parameter` to an optimizer's updates (Loshchilov and Hutter 2019, algorithm 2)."""

    def update(updates, state, params):
        factor = rate(state.count) * weight_decay
        decayed = jax.tree.map(
            lambda u, p, d: u - factor * p if d else u, updates, params, decays(params)
        )
        return decayed, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32)), update
    )
