"""Checks of an opened experiment: what only data, weights, plug-ins and devices together show.

They run before anything is trained, also for each setting that nested selection or a sweep tries.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from medtl import config as configs
from medtl import data, plugins
from medtl.data.order import order_of
from medtl.errors import UserError
from medtl.experiment import baselines, head_start, source_weights
from medtl.experiment.arm import Arm
from medtl.experiment.setup import Experiment
from medtl.experiment.splits import Split
from medtl.experiment.stage import Stage, counts_of
from medtl.experiment.trials import Trial
from medtl.training import adabn, batch_norm, factory, own_head, probe, tracing
from medtl.training.objective import DOMAINS, Objective

_MOST_REPEATS = 16  # of an example in one batch


def check(
    experiment: Experiment,
    arms: Sequence[str],
    settings: Sequence[Trial],
    splits: Sequence[Split],
) -> None:
    """Refuse an experiment that would fail, or train something other than what was meant.

    Args:
      experiment: the opened experiment.
      arms: the arms that will run.
      settings: that nested selection or a sweep will try.
      splits: of the target, on which the arms will run.

    Raises:
      UserError: names the config's key.
    """
    config = experiment.config
    for domain in experiment.examples:
        if config.checkpoint.select == "best" and not _has_val(experiment, domain):
            print(f"{domain} has no val split: the last checkpoint is used, not the best")
    if configs.paths(config.evaluation.tune) and not _has_val(experiment, "target"):
        raise UserError("config.evaluation.tune selects on val, and the target has no val part")
    _check_one(experiment, arms, splits, shows_terms=True)
    for trial in settings:
        if not trial.is_traced:
            _check_one(experiment.with_trial(trial), arms, splits, shows_terms=False)


def _check_one(
    experiment: Experiment, arms: Sequence[str], splits: Sequence[Split], *, shows_terms: bool
) -> None:
    _check_encoders(experiment)
    if experiment.config.evaluation.test_time and "image" not in experiment.inputs:
        raise UserError("config.evaluation.test_time shows views of an image, but no input is one")
    _check_class_counts(experiment, splits)
    _check_probes(experiment, splits)
    for examples in experiment.examples.values():
        losses = experiment.components.losses
        tracing.check_losses(losses, examples, experiment.feature_width)
        n, k = min(len(examples), 50), len(examples.classes)
        uniform = np.full((n, k), 1 / k)
        experiment.evaluator.metrics_of(examples, np.arange(n), uniform)
    left_out: list[Mapping[str, str]] = []
    for name in arms:
        arm = Arm(experiment, experiment.split, experiment.config.seeds[0], name)
        if arm.is_weighted:
            source_weights.check(arm.experiment)
        if arm.section.estimator:
            baselines.make(arm)
            continue
        if arm.experiment is not experiment:
            _check_encoders(arm.experiment)
        _check_own_head(arm)
        for stage in experiment.stages(name):
            _check_stage(arm.experiment, name, stage)
            _check_own_batch_norm(arm, stage, splits)
        if experiment.components.terms or _selects_parameters(arm):
            left_out += _trace(arm, shows_terms=shows_terms)
    for term in experiment.components.terms:
        if all(term.name in of_stage for of_stage in left_out):
            reason = left_out[-1][term.name]
            raise UserError(
                f"config.objective.terms.{term.name} applies to no training stage of "
                f"{', '.join(arms)}: {reason}"
            )


def _check_class_counts(experiment: Experiment, splits: Sequence[Split]) -> None:
    """Refuse a split whose train part lacks a class that a loss of medtl's counts."""
    for loss in experiment.components.losses:
        plugin: Any = loss.loss
        is_ours = plugin.function.__module__.startswith("medtl.")
        if not (is_ours and "class_counts" in loss.takes):
            continue
        parts = [(domain, domain, e) for domain, e in experiment.examples.items()]
        target = experiment.examples["target"]
        parts += [("target", f"target, {s.path}", s.of(target)) for s in splits if s.path]
        for domain, where, examples in parts:
            for name, count in zip(examples.classes, counts_of(examples), strict=True):
                if not count:
                    raise UserError(
                        f"{plugin.key} is {plugin.text!r}, which counts the train examples of each "
                        f"class, but {where} has none of {name!r}; take another loss or split, or "
                        f"give the option class_counts, one number a class of the {domain}"
                    )


def _check_probes(experiment: Experiment, splits: Sequence[Split]) -> None:
    """Refuse a split in which a probe's own folds would lack a class."""
    config = experiment.config
    texts = {f"arm.{name}.estimator": config.arm[name].estimator for name in config.arms}
    texts["stages.target.head_start"] = config.stages.target.head_start
    for path, text in texts.items():
        key = f"config.{path}"
        made = plugins.resolve(text, configs.default_module(path), key=key)() if text else None
        if not isinstance(made, probe.LinearProbe):
            continue
        for split in splits:
            target = split.of(experiment.examples["target"])
            rows = target.indices("train")
            patient = None if target.patient is None else target.patient[rows]
            try:
                made.number_of_folds(target.label[rows], patient)
            except UserError as error:
                where = f" in {split.path}" if split.path else ""
                raise UserError(f"{key}{where}: {error}") from None


def _selects_parameters(arm: Arm) -> bool:
    stages = [arm.config.stages[name] for name in arm.experiment.stages(arm.name)]
    return any(
        stage.freeze not in ("none", "backbone") or stage.trainable != "all" or stage.rates
        for stage in stages
    )


def _trace(arm: Arm, *, shows_terms: bool) -> list[Mapping[str, str]]:
    """Make the step of each training stage, which traces the terms and finds the frozen layers.

    Returns:
      For each training stage: term -> why it is left out.
    """
    weights, left_out = arm.initial(), []
    for name in arm.experiment.stages(arm.name):
        stage = Stage(arm, name, weights)
        stage.make_step()
        left_out.append(stage.used_terms.left_out)
        if shows_terms:
            for term, reason in stage.used_terms.left_out.items():
                print(f"{arm.name}, {name} stage: term {term!r} is left out: {reason}")
        is_random = weights.is_random and stage.steps == 0
        weights = dataclasses.replace(weights, is_random=is_random, is_loaded=False)
    return left_out


def _check_encoders(experiment: Experiment) -> None:
    """Call each encoder once on zeros; refuse BatchNorm that would be per device under pmap."""
    e = experiment
    names = {"image": "config.model.name"}
    for name, make in e.model.make_encoders.items():
        key = names.get(name, f"config.model.encoders.{name}")
        module: Any = make.func  # type: ignore[attr-defined]  # a partial of a Linen class
        with plugins.blame(inspect.getsourcefile(module) or "", key=key):
            shapes = jax.eval_shape(
                lambda make=make, name=name: make().init(
                    jax.random.key(0), jnp.zeros(e.inputs[name].shape, e.inputs[name].dtype), False
                )
            )
        fields = {field.name for field in dataclasses.fields(module)}
        is_split = e.parallel.axis_name is not None and len(e.parallel.devices) > 1
        if is_split and "batch_stats" in shapes and "axis_name" not in fields:
            raise UserError(
                f"{key}: {module.__name__} has batch statistics but no field axis_name, so under "
                "pmap each device would have its own; add the field and give it to nn.BatchNorm, "
                "or set config.parallel='mesh'"
            )


def _check_own_head(arm: Arm) -> None:
    """Refuse a head of its own on random features, on which it would not be fitted."""
    if own_head.of(arm.config) and head_start.is_left_out(arm.initial()):
        raise UserError(
            f"config.stages.target.head_start is {arm.config.stages.target.head_start!r}, but the "
            f"encoders of the arm {arm.name!r} have random weights; name weights in "
            "config.weights.path, or take another arm"
        )


def _check_stage(experiment: Experiment, arm: str, stage: str) -> None:
    e, config = experiment, experiment.config
    c, key = config.stages[stage], f"config.stages.{stage}"
    e.parallel.check_batch(c.batch_size, f"{key}.batch_size")
    if c.batch_size > _MOST_REPEATS * e.sizes[stage]:
        raise UserError(
            f"{key}.batch_size is {c.batch_size:,}, but {stage} has {e.sizes[stage]:,} train "
            f"examples; use at most {e.sizes[stage]:,}"
        )
    is_joint = stage == "target" and config.arm[arm].joint
    for domain in DOMAINS if is_joint else (stage,):  # a sampler that fails does so at once
        order_of(e.examples[domain], "train", 0, e.components.samplers[stage], domain).epoch(0)
    if is_joint:
        e.parallel.check_batch(c.source_batch_size or c.batch_size, f"{key}.source_batch_size")
        Objective((), e.components.lambda_).check(e.steps(arm, stage))
    _check_tuning(e, stage, key)
    groups = factory.groups(e.model)
    if c.freeze not in ("none", "backbone", *groups):
        layers = f"; it has {', '.join(groups)}" if groups else ", which has no groups()"
        raise UserError(f"{key}.freeze is {c.freeze!r}, no layer of {config.model.name}{layers}")
    is_pretrained = e.loaded is not None and config.arm[arm].init == "weights"
    is_trained = is_pretrained or (stage == "target" and config.arm[arm].source_stage)
    if not (is_trained and (c.batch_norm == "frozen" or c.freeze == "backbone")):
        _check_batch_norm(e, key, c.batch_size, c.accumulate)
        if stage == "target" and config.arm[arm].joint and c.source_batch_size:
            _check_batch_norm(e, key, c.source_batch_size, c.accumulate, "source_batch_size")
    left = e.loaded.report.left_random if e.loaded and is_pretrained else ()
    if left and (c.freeze != "none" or c.batch_norm == "frozen"):
        raise UserError(
            f"{key} freezes the backbone, but config.weights.allow leaves {len(left)} of its "
            f"tensors random, such as {left[0][0]}; set freeze='none' and batch_norm='batch', "
            "or load them"
        )


def _check_tuning(e: Experiment, stage: str, key: str) -> None:
    """Check what fine-tuning asks of the data."""
    if e.config.stages[stage].wise and not _has_val(e, stage):
        raise UserError(f"{key}.wise chooses on val, but {stage} has no val part; set it to ()")
    if e.components.mix is not None and len(e.inputs) > 1:
        raise UserError(f"config.augment.mix mixes one input; the model has {', '.join(e.inputs)}")


def _check_own_batch_norm(arm: Arm, stage: str, splits: Sequence[Split]) -> None:
    """Refuse BatchNorm of each domain, or of the target, without BatchNorm or without examples."""
    c, key = arm.config.stages[stage], f"config.stages.{stage}"
    if stage == "target" and c.batch_norm == "domain" and arm.section.joint:
        batch_norm.with_source(arm.initial().variables, key=f"{key}.batch_norm")
    if not c.adapt_batch_norm:
        return
    if not batch_norm.has_statistics(arm.initial().variables):
        raise UserError(f"{key}.adapt_batch_norm is True, but no encoder has BatchNorm")
    for split in splits:
        n = int(np.sum(split.part == "train"))
        if n < adabn.FEWEST:
            where = f" in {split.path}" if split.path else ""
            raise UserError(
                f"{key}.adapt_batch_norm is True, but the target has {n} train images{where}; the "
                f"statistics of fewer than {adabn.FEWEST} are too noisy, set it to False"
            )


def _check_batch_norm(
    experiment: Experiment, key: str, size: int, accumulate: int, field: str = "batch_size"
) -> None:
    """Refuse batch statistics of a single value a channel, whose output would be constant."""
    if size // accumulate > 1:
        return
    single: list[str] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        is_norm = "BatchNorm" in type(context.module).__name__ and context.method_name == "__call__"
        if is_norm and math.prod(args[0].shape[:-1]) == 1:
            single.append("/".join(context.module.path))
        return call(*args, **kwargs)

    for name, make in experiment.model.make_encoders.items():
        spec = experiment.inputs[name]
        one = jax.ShapeDtypeStruct((1, *spec.shape[1:]), spec.dtype)
        with nn.intercept_methods(record):
            jax.eval_shape(lambda x, make=make: make().init(jax.random.key(0), x, False), one)
        if single:
            parts = f" in {accumulate} micro-batches" if accumulate > 1 else ""
            raise UserError(
                f"{key}.{field} is {size}{parts}: BatchNorm in {single[0]} would have one value a "
                f"channel with inputs of {list(one.shape[1:])}, so that its output is constant; "
                "take 2 or more examples, larger images, or a model without BatchNorm"
            )


def _has_val(experiment: Experiment, domain: str) -> bool:
    config = experiment.config
    if domain == "target" and configs.is_cross_validated(config):
        return data.fractions(config.data.target)[1] > 0
    return "val" in experiment.examples[domain].splits
