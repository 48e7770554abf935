"""Construction from a config: model, variables, objective, training step. It happens once a run."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from medtl import config as configs
from medtl import models, plugins, weights
from medtl.data.augment import Augmentation
from medtl.errors import UserError
from medtl.examples import Examples, Normalization, parse_normalization
from medtl.models import architectures
from medtl.models.encoders import DEFAULTS
from medtl.models.fusion import LateHead
from medtl.models.model import Head, Model
from medtl.models.ordinal import CumulativeLinkHead
from medtl.training import balance, conflicts, optimizers, own_head, rates, tracing, trainable
from medtl.training.log import Logger
from medtl.training.objective import Loss, Objective, Term
from medtl.training.parallel import Parallel
from medtl.training.step import Step


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """The plug-ins of a config, resolved.

    Attributes:
      losses: of the objective.
      terms: of the objective.
      lambda_: λ, a number or a schedule.
      samplers: training stage -> sampler.
      augmentation: of training images.
      mix: of pairs of training examples; None: they are not mixed.
      loggers: make a metric writer from (folder, config).
    """

    losses: tuple[Loss, ...]
    terms: tuple[Term, ...]
    lambda_: Any
    samplers: Mapping[str, Any]
    augmentation: Augmentation
    mix: plugins.Plugin | None
    loggers: tuple[plugins.Plugin, ...]

    @classmethod
    def create(cls, config: Any) -> Components:
        """Resolve the plug-ins; also makes each training stage's optimizer once, to refuse early.

        Raises:
          UserError: a plug-in string names nothing, or what it names cannot be made.
        """
        c = config.objective
        losses = tuple(
            Loss(name, _resolved(loss.loss, f"objective.losses.{name}.loss"), loss.weight)
            for name, loss in c.losses.items()
        )
        terms = tuple(_term(name, term) for name, term in c.terms.items())
        lambda_: Any = c.lambda_
        if c.lambda_schedule:
            lambda_ = optimizers.schedule_from(
                c.lambda_schedule, key="config.objective.lambda_schedule"
            )
        for name, stage in config.stages.items():
            optimizers.optimizer(stage, steps=1, key=f"config.stages.{name}")
            own_head.check(config, name)
        samplers = {
            name: _resolved(stage.sampler, f"stages.{name}.sampler")
            for name, stage in config.stages.items()
        }
        fields = config.augment.to_dict()
        extra = tuple(_resolved(text, "augment.extra") for text in fields.pop("extra"))
        mix = fields.pop("mix")
        mixing = _resolved(mix, "augment.mix") if mix else None
        augmentation = Augmentation(**fields, extra=extra)
        loggers = tuple(_resolved(text, "loggers") for text in config.loggers)
        return cls(losses, terms, lambda_, samplers, augmentation, mixing, loggers)

    @property
    def reads_class_counts(self) -> bool:
        """Whether a loss takes the class counts of the train split."""
        return any("class_counts" in loss.takes for loss in self.losses)

    def make_loggers(self, folder: Any, config: Any) -> list[Logger]:
        """Make the metric writers of a training stage."""
        return [_Writer(make, make(folder, config)) for make in self.loggers]


@dataclasses.dataclass(frozen=True)
class _Writer:
    """A metric writer of the user's, whose errors name its file and line."""

    plugin: plugins.Plugin
    writer: Any

    def __post_init__(self) -> None:
        for name in ("write", "close"):
            if not callable(getattr(self.writer, name, None)):
                raise UserError(f"config.loggers: {self.plugin.text!r} has no method {name}()")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        with self.plugin.blame():
            self.writer.write(step, scalars)

    def close(self) -> None:
        with self.plugin.blame():
            self.writer.close()


def _resolved(text: str, path: str) -> plugins.Plugin:
    return plugins.resolve(text, configs.default_module(path), key=f"config.{path}")


def _term(name: str, section: Any) -> Term:
    plugin = _resolved(section.term, f"objective.terms.{name}.term")
    is_module = isinstance(plugin.function, type) and issubclass(plugin.function, nn.Module)
    return Term(name, plugin() if is_module else plugin, section.weight)


def epsilon(config: Any, loaded: weights.Pretrained | None) -> float:
    """Return the epsilon of BatchNorm: that of the pretrained weights, else the architecture's."""
    if loaded:
        return loaded.epsilon
    architecture = architectures.parse(config.model.name)
    return architecture.epsilon if architecture else 1e-5


def model(
    config: Any,
    examples: Mapping[str, Examples],
    parallel: Parallel,
    loaded: weights.Pretrained | None,
) -> Model:
    """Return the model of `config.model`.

    Args:
      config: the experiment's.
      examples: domain -> examples: their classes, and with `prior_bias` the initial bias of the
        heads.
      parallel: the devices, over which BatchNorm takes its statistics.
      loaded: the pretrained weights; None: there are none.
    """
    classes = {domain: e.classes for domain, e in examples.items()}
    priors = {d: prior(e) for d, e in examples.items()} if config.model.prior_bias else {}
    return model_for(
        config,
        classes,
        priors=priors,
        axis_name=parallel.axis_name,
        epsilon=epsilon(config, loaded),
    )


def model_for(
    config: Any,
    classes: Mapping[str, tuple[str, ...]],
    *,
    priors: Mapping[str, tuple[float, ...]] | None = None,
    axis_name: str | None = None,
    epsilon: float = 1e-5,
) -> Model:
    """Return the model for given class names of each domain; otherwise as `model`."""
    c = config.model
    same = len(set(classes.values())) == 1
    if c.heads == "shared" and not same:
        raise UserError(
            f"config.model.heads is 'shared', but the classes differ: source {classes['source']}, "
            f"target {classes['target']}; use 'separate' or 'auto'"
        )
    shared = c.heads == "shared" or (c.heads == "auto" and same)
    head_of = {domain: "shared" if shared else domain for domain in classes}
    heads: dict[str, Any] = {}
    head = CumulativeLinkHead if config.data.task == "ordinal" else Head
    for domain, name in head_of.items():  # the target is last: a shared head starts at its prior
        heads[name] = functools.partial(
            head,
            len(classes[domain]),
            hidden=tuple(c.hidden),
            dropout=c.dropout,
            prior=(priors or {}).get(domain),
        )
    if classifier := own_head.of(config):
        heads[head_of["target"]] = functools.partial(classifier.head_module, len(classes["target"]))
    encoders = _encoders(config, axis_name, epsilon)
    if c.fusion == "late" and len(encoders) > 1:
        heads = {
            name: functools.partial(LateHead, make_head, tuple(encoders))
            for name, make_head in heads.items()
        }
    return Model(encoders, heads, head_of, c.fusion, c.modality_dropout)


def _encoders(config: Any, axis_name: str | None, epsilon: float) -> dict[str, Any]:
    c = config.model
    encoders: dict[str, Any] = {}
    for name in input_names(config):
        if name == "image":
            encoders[name] = models.backbone(
                c.name,
                last_layer=c.last_layer,
                dtype=c.dtype,
                axis_name=axis_name,
                epsilon=epsilon,
                remat=c.remat,
            )
            continue
        text = c.encoders.get(name, DEFAULTS.get(name))
        plugin = _resolved(text, f"model.encoders.{name}")
        if not (isinstance(plugin.function, type) and issubclass(plugin.function, nn.Module)):
            raise UserError(f"{plugin.key} is {text!r}, which is not a Linen module")
        encoders[name] = functools.partial(plugin.function, *plugin.args, **plugin.kwargs)
    return encoders


def input_names(config: Any) -> tuple[str, ...]:
    """Return the inputs of the model: `data.inputs`, or images and what `model.encoders` names."""
    inputs = tuple(config.data.inputs)
    return ("image", *config.model.encoders) if inputs == ("image",) else inputs


def groups(base: Model) -> Mapping[str, tuple[str, ...]]:
    """Return the image encoder's layers by name with their parameter prefixes; {} without any."""
    make = base.make_encoders.get("image")
    return getattr(make(), "groups", dict)() if make else {}


def input_specs(config: Any, examples: Mapping[str, Examples]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape and dtype of each encoder's input, for a batch of one example.

    Raises:
      UserError: an encoder's input is missing in a domain, or an input has no encoder.
    """
    names = input_names(config)
    specs = {}
    for domain, e in examples.items():
        for name in names:
            if name not in e.inputs:
                key = "config.model.name" if name == "image" else f"config.model.encoders.{name}"
                raise UserError(
                    f"{key} encodes {name!r}, but config.data.{domain} has only "
                    f"{', '.join(e.inputs)}"
                )
        for name in e.inputs:
            if name not in names:
                raise UserError(
                    f"config.data.{domain} has the input {name!r}, which nothing encodes; give "
                    f"config.model.encoders.{name}"
                )
    for name in names:
        if name == "image":
            specs["image"] = jax.ShapeDtypeStruct((1, *image_shape(config)), jnp.float32)
            continue
        rows = {domain: np.asarray(e.inputs[name][0]) for domain, e in examples.items()}
        shapes = {domain: f"{row.dtype}{list(row.shape)}" for domain, row in rows.items()}
        if len(set(shapes.values())) > 1:
            raise UserError(
                f"the input {name!r} differs between the domains: "
                f"{', '.join(f'{shape} in {domain}' for domain, shape in shapes.items())}"
            )
        first = next(iter(rows.values()))
        specs[name] = jax.ShapeDtypeStruct((1, *first.shape), first.dtype)
    return specs


def image_shape(config: Any) -> tuple[int, int, int]:
    """Return [H, W, C] of the images at the working size."""
    return config.data.image_size, config.data.image_size, config.data.channels


def pretrained(config: Any) -> weights.Pretrained | None:
    """Load the image encoder's variables from `config.weights`; None where no file is named."""
    if not config.weights.path or "image" not in input_names(config):
        return None
    make = _encoders(config, None, 1e-5)["image"]
    image = jax.ShapeDtypeStruct((1, *image_shape(config)), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: make().init(key, x, False), jax.random.key(0), image)
    return weights.load(
        config.weights.path,
        architectures.parse(config.model.name),
        {name: shapes.get(name, {}) for name in ("params", "batch_stats")},
        last_layer=config.model.last_layer,
        sha256=config.weights.sha256,
        normalization=config.weights.normalization,
        allow=tuple(config.weights.allow),
    )


def normalization(config: Any, loaded: weights.Pretrained | None) -> Normalization:
    """Return the input normalization: that of the weights; else the config's, or "centered"."""
    if loaded is not None:
        return loaded.normalization.for_channels(config.data.channels)
    name = config.weights.normalization
    text = "centered" if name == "auto" else name
    chosen = parse_normalization(text, key="config.weights.normalization")
    return chosen.for_channels(config.data.channels)


def prior(examples: Examples) -> tuple[float, ...]:
    """Return the log frequencies of the classes in train; log odds for several diagnoses.

    The mean of a standardized quantity is 0.
    """
    if examples.is_quantity:
        return (0.0,)
    label = examples.label[examples.indices("train")]
    if examples.multi_label:
        rate = np.clip(np.nanmean(label, axis=0), 1e-6, 1 - 1e-6)
        return tuple(np.log(rate / (1 - rate)).tolist())
    counts = np.bincount(label, minlength=len(examples.classes))
    return tuple(np.log(np.maximum(counts, 0.5) / len(label)).tolist())


def step(
    config: Any,
    stage: str,
    base: Model,
    components: Components,
    used: tracing.UsedTerms,
    *,
    params: Any,
    domains: Sequence[str],
    random_backbone: bool,
    steps: int,
    sizes: Mapping[str, int],
    classes: Mapping[str, tuple[str, ...]],
    normalization: Normalization,
    parallel: Parallel,
) -> Step:
    """Return the training step of a stage.

    Args:
      config: the experiment's.
      stage: "source" or "target".
      base: the model.
      components: the config's plug-ins.
      used: the terms that apply.
      params: the model's parameters, for their names.
      domains: whose batches the step takes.
      random_backbone: trains everything at one rate, with batch statistics.
      steps: the length of the stage.
      sizes: domain -> the size of its training set.
      classes: domain -> the names of its classes.
      normalization: of the images.
      parallel: the devices.
    """
    c, key = config.stages[stage], f"config.stages.{stage}"
    objective = Objective(
        components.losses, components.lambda_, config.objective.reduction, sizes, used.terms
    )
    trained, adapter, layers = _trained(
        config, stage, base, used, params, domains, random_backbone=random_backbone
    )
    remake = functools.partial(_optimizer, c, steps, key, layers)
    optimizer, rate = remake({})
    return Step(
        model=base,
        objective=objective,
        optimizer=optimizer,
        trained=trained,
        augmentation=components.augmentation,
        normalization=normalization,
        batch_norm=_batch_norm(c.batch_norm, random_backbone, domains),
        rate=rate,
        remake=remake,
        steps=steps,
        gradients=_gradients(config, trained, base, domains),
        balance=config.objective.balance if len(domains) > 1 else "fixed",
        classes=classes,
        reads=used.reads,
        accumulate=c.accumulate,
        ema=c.ema,
        swa=c.swa,
        sam=c.sam,
        adapter=adapter,
        mix=components.mix,
        axis_name=parallel.axis_name,
    )


def _trained(
    config: Any,
    stage: str,
    base: Model,
    used: tracing.UsedTerms,
    params: Any,
    domains: Sequence[str],
    *,
    random_backbone: bool,
) -> tuple[Any, Any, Any]:
    """Return the paths that train, their adapter and their layers; arguments are those of `step`.

    The adapter and the layers are None where everything trains at one rate.
    """
    c = config.stages[stage]
    trained = optimizers.trained_paths(
        params,
        freeze="none" if random_backbone else c.freeze,
        groups=groups(base),
        heads={base.head_of[d] for d in domains},
        terms={term.name for term in used.terms} | balance.names(config.objective.balance),
    )
    if random_backbone:
        return trained, None, None
    key = f"config.stages.{stage}.trainable"
    trained, adapter = trainable.select(c.trainable, params, trained, key=key)
    return trained, adapter, rates.layers(trained, groups(base))


def _batch_norm(mode: str, random_backbone: bool, domains: Sequence[str]) -> str:
    """Return the mode of BatchNorm: no frozen random statistics, and a domain alone has its own."""
    is_plain = (mode == "frozen" and random_backbone) or (mode == "domain" and len(domains) < 2)
    return "batch" if is_plain else mode


def _gradients(config: Any, trained: Any, base: Model, domains: Sequence[str]) -> str:
    """Return how the gradients of both domains are combined in the stage."""
    mode = config.objective.gradients
    if len(domains) < 2 or mode == "sum":
        return "sum"
    if not conflicts.shared_paths(trained, base.head_of):
        raise UserError(
            f"config.objective.gradients is {mode!r}, but source and target share no parameter "
            "that trains: the backbone is frozen and each has a head of its own; set 'sum'"
        )
    return mode


def _optimizer(
    section: Any, steps: int, key: str, layers: rates.Layers | None, fields: Mapping[str, Any]
) -> Any:
    """Return the optimizer and rate of a training stage, with these fields in place of its own."""
    changed = types.SimpleNamespace(**{**section.to_dict(), **fields})
    made, rate = optimizers.optimizer(changed, steps=steps, key=key)
    if layers is not None:
        made = rates.wrap(section.rates, made, layers, steps=steps, key=f"{key}.rates")
    return made, rate
