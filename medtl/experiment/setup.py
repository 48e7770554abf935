"""An experiment that was opened: data and weights are loaded, the model and its plug-ins are made.

Arms, seeds and splits share it, and with it all that was compiled and computed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medtl import config as configs
from medtl import plugins, weights
from medtl.data import loading
from medtl.evaluation import metrics
from medtl.examples import Examples, Normalization
from medtl.experiment.splits import Split
from medtl.experiment.trials import Trial, with_values
from medtl.models.model import Model, feature_width
from medtl.profiling.trace import Profile
from medtl.training import factory
from medtl.training.evaluator import Evaluator
from medtl.training.factory import Components
from medtl.training.loop import STAGES
from medtl.training.parallel import Parallel


@dataclasses.dataclass
class Cache:
    """What arms, seeds and splits share while a command runs.

    Attributes:
      trained: the folders of the training stages that were trained.
      steps: compiled steps.
      initial: variables before the first training stage.
      source: results of source stages that all splits share.
      resident: data on the devices.
      trials: experiments with the values of a trial, by its paths and values.
    """

    trained: set[Path] = dataclasses.field(default_factory=set)
    steps: dict[Any, Any] = dataclasses.field(default_factory=dict)
    initial: dict[Any, Any] = dataclasses.field(default_factory=dict)
    source: dict[Any, Any] = dataclasses.field(default_factory=dict)
    resident: dict[Any, Any] = dataclasses.field(default_factory=dict)
    trials: dict[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """An opened experiment.

    Attributes:
      config: the experiment's, or with the values of a trial.
      folder: the run folder.
      examples: domain -> examples; the target's with the data's own split.
      split: the data's own split of the target.
      parallel: the devices.
      components: the config's plug-ins.
      model: the model.
      inputs: shape and dtype of each encoder's input.
      normalization: of the images.
      loaded: the pretrained backbone; None: there is none.
      evaluator: the forward passes, and the features of a frozen backbone.
      training: False where nothing may be trained.
      sizes: domain -> the number of train examples by which epochs become steps: the same in every
        split.
      plugin_files: file or module of a plug-in string -> sha256, as it was when it was resolved.
      profile: traces the first training stage; None: none is traced.
      cache: what was compiled and computed.
    """

    config: Any
    folder: Path
    examples: Mapping[str, Examples]
    split: Split
    parallel: Parallel
    components: Components
    model: Model
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    normalization: Normalization
    loaded: weights.Pretrained | None
    evaluator: Evaluator
    training: bool
    sizes: Mapping[str, int]
    plugin_files: Mapping[str, str]
    profile: Profile | None = None
    cache: Cache = dataclasses.field(default_factory=Cache)

    @classmethod
    def create(
        cls,
        config: Any,
        folder: Path,
        components: Components,
        examples: Mapping[str, Examples],
        *,
        training: bool,
        train_size: int,
    ) -> Experiment:
        """Load the weights and make the model.

        Args:
          config: the experiment's.
          folder: the run folder.
          components: the config's plug-ins.
          examples: domain -> examples.
          training: False where nothing may be trained.
          train_size: the number of train examples of the target's largest split.

        Raises:
          UserError: data, weights and config do not fit each other.
        """
        loaded = factory.pretrained(config)
        parallel = Parallel.create(config.parallel)
        normalization = factory.normalization(config, loaded)
        model = factory.model(config, examples, parallel, loaded)
        sizes = {domain: len(e.indices("train")) for domain, e in examples.items()}
        return cls(
            config=config,
            folder=folder,
            examples=examples,
            split=Split(examples["target"].split),
            parallel=parallel,
            components=components,
            model=model,
            inputs=factory.input_specs(config, examples),
            normalization=normalization,
            loaded=loaded,
            evaluator=Evaluator(
                config,
                parallel,
                model,
                normalization,
                loaded,
                metrics.from_config(config.evaluation),
            ),
            training=training,
            sizes=sizes | {"target": train_size},
            plugin_files=identity_files(config),
        )

    def with_trial(self, trial: Trial) -> Experiment:
        """Return the experiment with a trial's values; data and weights are shared.

        Where the state carries the values, the compiled programs are shared, too.
        """
        config = with_values(self.config, trial.values)
        if trial.is_traced:
            return dataclasses.replace(self, config=config)
        # Not by name: arms without λ number their trials differently.
        key = tuple(trial.values.items())
        if key not in self.cache.trials:
            model = factory.model(config, self.examples, self.parallel, self.loaded)
            self.cache.trials[key] = dataclasses.replace(
                self,
                config=config,
                components=Components.create(config),
                model=model,
                evaluator=self.evaluator.with_model(config, model),
                plugin_files=identity_files(config),
                cache=dataclasses.replace(self.cache, steps={}, initial={}, trials={}),
            )
        return self.cache.trials[key]

    @functools.cached_property
    def feature_width(self) -> int:
        """D, the number of fused features."""
        variables = jax.eval_shape(
            lambda: factory.init_variables(self.model, jax.random.key(0), self.inputs)
        )
        return feature_width(self.model, variables, self.inputs)

    def stages(self, arm: str) -> tuple[str, ...]:
        """Return the training stages of an arm."""
        return STAGES if self.config.arm[arm].source_stage else STAGES[1:]

    def steps(self, arm: str, stage: str) -> int:
        """Return the length of a training stage.

        Every arm takes as many optimizer steps in all as the longest one, in every split.
        """
        lengths = {}
        for name in STAGES:
            if name in self.examples:
                c = self.config.stages[name]
                per_epoch = loading.steps_per_epoch(self.sizes[name], c.batch_size)
                lengths[name] = per_epoch * c.epochs
        skips = stage == "target" and not self.config.arm[arm].source_stage
        if skips and any(self.config.arm[other].source_stage for other in self.config.arms):
            return sum(lengths.values())
        return lengths[stage]

    def initial(self, seed: int, model: Model, prior: str, *, pretrained: bool) -> Any:
        """Return the variables before the first training stage, on the host.

        Args:
          seed: random values are drawn from it.
          model: the model, with the heads' initial bias of a split.
          prior: names that split.
          pretrained: whether the image encoder takes the loaded values.
        """
        cache, key = self.cache.initial, (seed, prior, pretrained)
        if key not in cache:
            # The last seed's are kept, since drawing them takes seconds.
            for other in [k for k in cache if k[:2] != key[:2]]:
                del cache[other]
            loaded = self.loaded if pretrained else None
            cache[key] = factory.variables(
                model, self.inputs, self.components, self.examples, seed, loaded
            )
        return cache[key]

    def frozen_features(self, domain: str) -> np.ndarray:
        """Return the features f32[N, D] of a domain's examples under the loaded backbone."""
        return self.evaluator.frozen_features(
            domain,
            self.examples[domain],
            lambda: self.initial(self.config.seeds[0], self.model, "", pretrained=True),
        )

    def replaced(self, domain: str, *, encoded: bool) -> dict[str, np.ndarray]:
        """Return the features that replace a domain's images where they are `encoded`."""
        return {"encoded_image": self.frozen_features(domain)} if encoded else {}

    def columns(self, domain: str, *, encoded: bool) -> dict[str, Any]:
        """Return the columns of a domain's batches, on the host."""
        return loading.columns(self.examples[domain], self.replaced(domain, encoded=encoded))

    def on_device(self, domain: str, *, encoded: bool) -> dict[str, jax.Array]:
        """Return the columns of a domain's batches, on every device."""
        key = (domain, encoded)
        if key not in self.cache.resident:
            columns = self.columns(domain, encoded=encoded)
            arrays = {name: np.asarray(values) for name, values in columns.items()}
            self.cache.resident[key] = self.parallel.replicate(arrays)
        return self.cache.resident[key]

    def fits_on_device(self, domains: tuple[str, ...], *, encoded: bool) -> bool:
        """Return whether a training stage's data is kept on the devices.

        Features always are; decoded images where there is room.
        """
        resident = self.config.data.resident
        arrays: list[Any] = []
        for domain in domains:
            arrays += self.columns(domain, encoded=encoded).values()
        if resident == "never" or not all(isinstance(a, np.ndarray) for a in arrays):
            return False
        if encoded or resident == "always":
            return True
        return self.parallel.has_room(sum(a.nbytes for a in arrays))


def uses_source(config: Any, arm: str) -> bool:
    """Return whether an arm learns from the source."""
    return config.arm[arm].source_stage or config.arm[arm].joint


def reported_splits(examples: Examples) -> list[str]:
    """Return the splits on which the arms are evaluated."""
    return [s for s in examples.splits if s != "train"]


def identity_files(config: Any) -> dict[str, str]:
    """Return the sha256 of the plug-in files that belong to a run's identity.

    Metric writers do not change a run, and a metric only if it chooses the checkpoint.
    """
    texts = {
        key: text
        for key, text in configs.plugin_strings(config).items()
        if not key.startswith(("config.loggers", "config.evaluation.metrics."))
        or key == f"config.evaluation.metrics.{config.checkpoint.metric}"
    }
    return plugins.source_files(texts)
