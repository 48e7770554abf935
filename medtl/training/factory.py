"""Config -> model, pretrained variables, objective, training step. Construction only; the story is in experiment.py."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from medtl import models, plugins, weights
from medtl.data.augment import Augmentation
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS, Examples, Normalization
from medtl.models.model import Head, Model, Outputs
from medtl.training import optimizers
from medtl.training.objective import Objective, Term
from medtl.training.parallel import Parallel
from medtl.training.step import Step


def check(config: Any) -> None:
    """Refuses losses, optimizers and schedules that cannot be made, before anything is read or trained."""
    objective(config, {})
    for name, stage in config.stages.items():
        optimizers.optimizer(stage, steps=1, key=f"config.stages.{name}")


def check_losses(config: Any, examples: Examples) -> None:
    """Traces the losses on arrays of the data's shapes, so that one that raises, or reduces, is found before training."""
    n, k = 4, len(examples.classes)
    c = config.model
    width = models.features(c.name, c.stages, classifier=c.classifier)
    number, whole = np.zeros(n, np.float32), np.zeros(n, np.int32)
    label = np.zeros((n, k) if examples.multi_label else n, examples.label.dtype)
    batch = {"label": label, "mask": number, "weight": number, "index": whole, "position": whole}
    logits, features = np.zeros((n, k), np.float32), np.zeros((n, width), np.float32)
    outputs = Outputs(logits=logits, features=features)  # type: ignore[arg-type]
    made = objective(config, {"target": 1})
    jax.eval_shape(
        lambda o, b: made({"target": o}, {"target": b}, step=0, counts=made.counts({"target": b})),
        outputs,
        batch,
    )


def model(
    config: Any,
    classes: Mapping[str, tuple[str, ...]],
    *,
    priors: Mapping[str, tuple[float, ...]] | None = None,
    axis_name: str | None = None,
    epsilon: float = 1e-5,
) -> Model:
    """The model of `config.model`.

    Args:
      config: the experiment's config.
      classes: domain -> class names.
      priors: domain -> the initial bias of its head; None: zeros.
      axis_name: of pmap, for BatchNorm.
      epsilon: BatchNorm's, as the pretrained weights were trained with.
    """
    c = config.model
    same = len(set(classes.values())) == 1
    if c.heads == "shared" and not same:
        raise UserError(
            f"config.model.heads is 'shared', but the classes differ: source {classes['source']}, target {classes['target']}; "
            "use 'separate' or 'auto'"
        )
    shared = c.heads == "shared" or (c.heads == "auto" and same)
    head_of = {domain: "shared" if shared else domain for domain in classes}
    heads = {}
    for (
        domain,
        name,
    ) in (
        head_of.items()
    ):  # the target comes last, so that a shared head starts at the target's prior
        prior = priors[domain] if priors else None
        heads[name] = Head(
            len(classes[domain]), hidden=tuple(c.hidden), dropout=c.dropout, prior=prior
        )
    backbone = models.backbone(
        c.name,
        stages=c.stages,
        stride_in=c.stride_in,
        classifier=c.classifier,
        remat=c.remat,
        dtype=c.dtype,
        axis_name=axis_name,
        epsilon=epsilon,
    )
    return Model(backbone, heads, head_of)


def image_shape(config: Any) -> tuple[int, int, int]:
    """[H, W, C] of the images at the working size."""
    return config.data.image_size, config.data.image_size, config.data.channels


def pretrained(config: Any) -> weights.Pretrained | None:
    """The backbone's variables out of `config.weights`, or None where no file is named."""
    if not config.weights.path:
        return None
    plain = model(config, {"target": ("", "")})
    shapes = jax.eval_shape(lambda key: plain.init(key, image_shape(config)), jax.random.key(0))
    return weights.load(
        config.weights.path,
        config.model.name,
        {name: shapes[name]["backbone"] for name in ("params", "batch_stats")},
        stages=config.model.stages,
        stride_in=config.model.stride_in,
        sha256=config.weights.sha256,
        normalization=config.weights.normalization,
        allow=tuple(config.weights.allow),
    )


def normalization(config: Any, loaded: weights.Pretrained | None) -> Normalization:
    """The input normalisation: the weights' own; without weights the config's, by default "centered"."""
    if loaded is not None:
        return loaded.normalization.for_channels(config.data.channels)
    name = config.weights.normalization
    return NORMALIZATIONS["centered" if name == "auto" else name].for_channels(config.data.channels)


def prior(examples: Examples) -> tuple[float, ...]:
    """The log frequencies of the classes in train; of several diagnoses an example, their log odds."""
    label = examples.label[examples.indices("train")]
    if examples.multi_label:
        rate = np.clip(np.nanmean(label, axis=0), 1e-6, 1 - 1e-6)
        return tuple(np.log(rate / (1 - rate)).tolist())
    counts = np.bincount(label, minlength=len(examples.classes))
    return tuple(np.log(np.maximum(counts, 0.5) / len(label)).tolist())


def variables(
    base: Model, config: Any, seed: int, loaded: weights.Pretrained | None
) -> dict[str, Any]:
    """Variables before the first stage: random from the seed, the backbone's replaced by the loaded ones."""
    made = jax.device_get(base.init(jax.random.key(seed), image_shape(config)))
    if loaded is None:
        return made
    for collection in ("params", "batch_stats"):
        made[collection]["backbone"] = overlaid(
            made[collection]["backbone"], loaded.variables[collection]
        )
    return made


def overlaid(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts: `tree` with the leaves of `other` in their places."""
    return traverse_util.unflatten_dict(
        {**traverse_util.flatten_dict(tree), **traverse_util.flatten_dict(other)}
    )


def objective(config: Any, sizes: Mapping[str, int]) -> Objective:
    """The objective of `config.objective`; `sizes`: domain -> the size of its training set."""
    terms = []
    for name, term in config.objective.losses.items():
        function, args, kwargs = plugins.resolve(
            term.loss, "medtl.losses", key=f"config.objective.losses.{name}.loss"
        )
        loss = functools.partial(
            _call_loss, f"config.objective.losses.{name}.loss {term.loss!r}", function, args, kwargs
        )
        terms.append(Term(name, loss, term.weight))
    lambda_: Any = config.objective.lambda_
    if config.objective.lambda_schedule:
        lambda_ = optimizers.schedule_from(
            config.objective.lambda_schedule, key="config.objective.lambda_schedule"
        )
    return Objective(tuple(terms), lambda_, config.objective.reduction, sizes)


def _call_loss(
    key: str, function: Any, args: tuple, kwargs: dict, outputs: Any, batch: Mapping[str, Any]
) -> Any:
    with plugins.blame(inspect.getsourcefile(inspect.unwrap(function)) or "", key=key):
        return function(outputs, batch, *args, **kwargs)


def step(
    config: Any,
    stage: str,
    base: Model,
    *,
    params: Any,
    domains: tuple[str, ...],
    fresh: bool,
    steps: int,
    sizes: Mapping[str, int],
    norm: Normalization,
    parallel: Parallel,
) -> Step:
    """The training step of a stage.

    Args:
      config: the experiment's config.
      stage: "source" or "target".
      base: the model.
      params: its parameters, for their names.
      domains: whose batches the step takes.
      fresh: the backbone is random, so nothing of it is frozen.
      steps: the length of the stage.
      sizes: domain -> the size of its training set.
      norm: the input normalisation.
      parallel: the devices.
    """
    c = config.stages[stage]

    def remake(fields: Mapping[str, Any]) -> Any:
        own = types.SimpleNamespace(**{**c.to_dict(), **fields})
        return optimizers.optimizer(own, steps=steps, key=f"config.stages.{stage}")

    optimizer, rate = remake({})
    return Step(
        model=base,
        objective=objective(config, sizes),
        optimizer=optimizer,
        moving=optimizers.moving(
            params,
            freeze="none" if fresh else c.freeze,
            architecture=config.model.name,
            heads={base.head_of[d] for d in domains},
        ),
        augmentation=Augmentation(**config.augment.to_dict()),
        normalization=norm,
        batch_norm="batch" if fresh else c.batch_norm,
        rate=rate,
        remake=remake,
        accumulate=c.accumulate,
        ema=c.ema,
        axis_name=parallel.axis_name,
    )
