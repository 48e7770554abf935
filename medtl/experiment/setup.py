"""An experiment that was opened: data and weights are loaded, the model and its plug-ins are made.

Arms, seeds and splits share it, and with it all that was compiled and computed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medtl import config as configs
from medtl import plugins, weights
from medtl.data import loading
from medtl.data.prepared import OF_CELLS, Tables
from medtl.data.preprocessing import Fitted
from medtl.evaluation import metrics
from medtl.examples import Examples, Normalization
from medtl.experiment.splits import Split
from medtl.experiment.trials import Trial, with_values
from medtl.models.model import Model, feature_width, init_variables
from medtl.profiling.trace import Profile
from medtl.training import factory, initial
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
      trials: experiments with the values of a trial, by its paths and values; and those with
        fewer inputs.
      prepared: examples whose preprocessing was fitted on the last split.
      weights: importance weights of the source's examples.
    """

    trained: set[Path] = dataclasses.field(default_factory=set)
    steps: dict[Any, Any] = dataclasses.field(default_factory=dict)
    initial: dict[Any, Any] = dataclasses.field(default_factory=dict)
    source: dict[Any, Any] = dataclasses.field(default_factory=dict)
    resident: dict[Any, Any] = dataclasses.field(default_factory=dict)
    trials: dict[Any, Any] = dataclasses.field(default_factory=dict)
    prepared: dict[Any, Any] = dataclasses.field(default_factory=dict)
    weights: dict[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """An opened experiment.

    Attributes:
      config: the experiment's, or with the values of a trial.
      folder: the run folder.
      examples: domain -> examples; the target's with the data's own split.
      tables: the clinical columns, of which each split's inputs are made; None: there are none.
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
    tables: Tables | None = None
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
        tables: Tables | None = None,
    ) -> Experiment:
        """Load the weights and make the model.

        Args:
          config: the experiment's.
          folder: the run folder.
          components: the config's plug-ins.
          examples: domain -> examples; their columns become inputs.
          training: False where nothing may be trained.
          train_size: the number of train examples of the target's largest split.
          tables: the clinical columns.

        Raises:
          UserError: data, weights and config do not fit each other.
        """
        if tables is not None:
            examples = tables.prepared(examples, tables.fitted(examples))
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
            tables=tables,
        )

    def with_inputs(self, inputs: Sequence[str]) -> Experiment:
        """Return the experiment of a model that reads some of the inputs alone; () is all."""
        if not inputs or tuple(inputs) == factory.input_names(self.config):
            return self
        key = ("inputs", *inputs)
        if key not in self.cache.trials:
            config = self.config.copy_and_resolve_references()
            with config.unlocked():
                config.data.inputs = tuple(inputs)
                for name in [n for n in config.model.encoders if n not in inputs]:
                    del config.model.encoders[name]
            examples = {d: _restricted(e, inputs) for d, e in self.examples.items()}
            loaded = self.loaded if "image" in inputs else None
            model = factory.model(config, examples, self.parallel, loaded)
            extra = self.evaluator.extra
            self.cache.trials[key] = dataclasses.replace(
                self,
                config=config,
                examples=examples,
                model=model,
                inputs=factory.input_specs(config, examples),
                loaded=loaded,
                evaluator=Evaluator(
                    config, self.parallel, model, self.normalization, loaded, extra
                ),
                cache=Cache(
                    trained=self.cache.trained,
                    prepared=self.cache.prepared,
                    weights=self.cache.weights,
                ),
            )
        return self.cache.trials[key]

    def examples_of(self, split: Split) -> dict[str, Examples]:
        """Return domain -> examples with a split of the target; preprocessing is fitted on it."""
        if not split.path:
            return dict(self.examples)
        examples = {**self.examples, "target": split.of(self.examples["target"])}
        if self.tables is None:
            return examples
        cache, key = self.cache.prepared, ("examples", split.part.tobytes())
        if key not in cache:
            fitted = self.preprocessing(examples)
            for other in [k for k in cache if k[0] != "fitted"]:
                del cache[other]
            cache[key] = self.tables.prepared(examples, fitted)
        inputs = factory.input_names(self.config)
        # Another arm may have made them, with other inputs that are no cells.
        return {
            d: dataclasses.replace(
                e,
                inputs={
                    n: cache[key][d].inputs[n] if n in OF_CELLS else e.inputs[n] for n in inputs
                },
            )
            for d, e in examples.items()
        }

    def preprocessing(self, examples: Mapping[str, Examples]) -> dict[str, Fitted]:
        """Return domain -> preprocessing, fitted on train of the examples' splits."""
        assert self.tables is not None
        cache, key = self.cache.prepared, ("fitted", examples["target"].split.tobytes())
        if key not in cache:
            for other in [k for k in cache if k[0] == "fitted"]:
                del cache[other]
            cache[key] = self.tables.fitted(examples)
        return cache[key]

    @property
    def is_pooled(self) -> bool:
        """Whether the source's inputs depend on the split of the target."""
        return self.tables is not None and self.tables.scope == "pooled"

    @property
    def word_for_examples(self) -> str:
        """Return "images", or "examples" where the model reads none."""
        return "images" if "image" in self.inputs else "examples"

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
            lambda: init_variables(self.model, jax.random.key(0), self.inputs)
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
            with self.parallel.on_host():
                cache[key] = initial.variables(
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

    def flat_features(self, domain: str, examples: Examples) -> np.ndarray:
        """Return a domain's inputs side by side, f32[N, D].

        An image gives the features of the loaded backbone, which must be there.

        Args:
          domain: the domain.
          examples: the domain's, with a split's inputs.
        """
        n = len(examples)
        blocks = [
            self.frozen_features(domain) if name == "image" else np.asarray(examples.inputs[name])
            for name in self.inputs
        ]
        present = [values.astype(np.float32)[:, None] for values in examples.present.values()]
        return np.concatenate([*(block.reshape(n, -1) for block in blocks), *present], axis=1)

    def replaced(self, domain: str, *, encoded: bool) -> dict[str, np.ndarray]:
        """Return the features that replace a domain's images where they are `encoded`."""
        return {"encoded_image": self.frozen_features(domain)} if encoded else {}

    def columns(self, domain: str, *, encoded: bool) -> dict[str, Any]:
        """Return the columns of a domain's batches, on the host."""
        return loading.columns(self.examples[domain], self.replaced(domain, encoded=encoded))

    def on_device(self, domain: str, examples: Examples, *, encoded: bool) -> dict[str, jax.Array]:
        """Return the columns of a domain's batches, on every device.

        Args:
          domain: the domain.
          examples: the domain's, with a split's inputs.
          encoded: whether features replace the images.
        """
        columns = loading.columns(examples, self.replaced(domain, encoded=encoded))
        resident = self.cache.resident
        for name, values in columns.items():
            key = (domain, name)
            # An input that is made for each split replaces that of the last one.
            if key not in resident or resident[key][0] is not values:
                resident[key] = values, self.parallel.replicate({name: np.asarray(values)})[name]
        return {name: resident[domain, name][1] for name in columns}

    def fits_on_device(self, domains: tuple[str, ...], *, encoded: bool) -> bool:
        """Return whether a training stage's data is kept on the devices.

        Features and tables always are; decoded images where there is room.
        """
        resident = self.config.data.resident
        arrays: list[Any] = []
        for domain in domains:
            arrays += self.columns(domain, encoded=encoded).values()
        if resident == "never" or not all(isinstance(a, np.ndarray) for a in arrays):
            return False
        if encoded or resident == "always" or "image" not in self.inputs:
            return True
        return self.parallel.has_room(sum(a.nbytes for a in arrays))


def _restricted(examples: Examples, inputs: Sequence[str]) -> Examples:
    """Return the examples with some of the inputs."""
    kept = {name: examples.inputs[name] for name in inputs}
    present = {n: v for n, v in examples.present.items() if n in inputs and len(inputs) > 1}
    return dataclasses.replace(examples, inputs=kept, present=present)


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
