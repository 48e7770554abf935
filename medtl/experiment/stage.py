"""One training stage of an arm: its step, batches and validation, trained from given weights."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from medtl import data
from medtl.data import loading
from medtl.errors import UserError
from medtl.examples import Examples
from medtl.experiment import frozen, head_start, provenance
from medtl.training import (
    adabn,
    averages,
    balance,
    batch_norm,
    factory,
    hosts,
    loop,
    memory,
    mixing,
    tracing,
)
from medtl.training.checkpoint import Store
from medtl.training.evaluator import Replaced, Validation
from medtl.training.loop import STAGES
from medtl.training.objective import DOMAINS
from medtl.training.progress import Progress
from medtl.training.step import Step, TrainState

if TYPE_CHECKING:
    from medtl.experiment.arm import Arm


@dataclasses.dataclass(frozen=True)
class Weights:
    """The variables that one training stage hands to the next.

    Attributes:
      variables: on the host.
      is_random: the backbone is random: nothing of it is frozen.
      is_loaded: the backbone is the loaded one, unchanged.
    """

    variables: Any
    is_random: bool
    is_loaded: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """A step, compiled for one step a dispatch and for many, and for BatchNorm statistics alone."""

    step: Step
    one: Any
    loop: Any
    statistics: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One training stage of an arm.

    Attributes:
      arm: the arm, with its seed and split.
      name: "source" or "target".
      start: what the stage starts from.
    """

    arm: Arm
    name: str
    start: Weights

    def train(self) -> Weights:
        """Train the stage, resume it, or read what it left when it was done.

        Returns:
          The weights of the chosen checkpoint.

        Raises:
          UserError: the stage is not finished and nothing may be trained, its checkpoints are of
            another run, or a loss became NaN.
        """
        e = self.arm.experiment
        with Store(self.folder, self.shared) as store:
            first = hosts.agreed(store.last_step)
            state = self.state(begins=first is None)
            if not e.training and first != self.steps:
                done = f"{first or 0} of {self.steps} steps"
                raise UserError(f"{store.folder} holds no finished stage ({done}); train first")
            if first is not None:
                record = self.arm.record(self.name)
                tried = self.arm.trial.values
                provenance.check_same(store.record(first), record, store.folder, tried)
                state = store.restore(first, state)
                if e.training:
                    store.prune()
            if first != self.steps:
                try:
                    self._fit(state, store, first or 0)
                except Exception as error:
                    if not memory.is_exhausted(error):
                        raise
                    from medtl.experiment import batch_fit  # which imports this module

                    raise batch_fit.out_of_memory(self, error) from error
            if self._validation.ranks and self._has_val and not store.is_ranked:
                metric = self.arm.config.checkpoint.metric
                print(f"{self.title}: {metric} on val was never defined; the last is taken")
            chosen = store.restore(store.chosen_step(), state)
        return self.hand_on(self._adapted(self._finished(chosen)))

    def _adapted(self, variables: Any) -> Any:
        """Return the variables, with BatchNorm statistics of the target's train if asked for."""
        e, target = self.arm.experiment, self.arm.examples["target"]
        if not self.arm.config.stages[self.name].adapt_batch_norm:
            return variables
        rows, most = target.indices("train"), self.arm.config.evaluation.batch_size
        size = -(-len(rows) // -(-len(rows) // most))  # batches of equal size
        made = adabn.adapted(
            e.model,
            variables,
            loading.eval_batches(target, rows, size, workers=self.arm.config.data.workers),
            normalization=e.normalization,
            parallel=e.parallel,
        )
        if e.training and hosts.is_first():
            adabn.write(self.folder, made["batch_stats"])
        return made

    def hand_on(self, variables: Any) -> Weights:
        """Return the weights that the next stage starts from, with these variables."""
        is_random = self.start.is_random and self.steps == 0
        return Weights(variables, is_random, is_loaded=self._stays_loaded)

    def _finished(self, chosen: TrainState) -> Any:
        """Return the variables to hand on: merged, averaged, and mixed with those at the start.

        What differs from the state's parameters is kept in a checkpoint of its own.
        """
        step, section = self.compiled.step, self.section
        variables = jax.device_get(step.variables(chosen, final=True))
        wise = () if self.start.is_random else section.wise
        if not (step.swa or step.adapter or wise):
            return variables
        with Store(self.folder / "handed_on") as store:
            if store.last_step is not None:
                return store.restore(store.last_step, variables)
            if step.swa and step.batch_norm == "batch" and not self.is_encoded:
                variables["batch_stats"] = self._statistics(chosen)
            record = self.arm.record(self.name)
            if wise:
                begun = jax.device_get(self.begun)
                share, variables = averages.best_between(begun, variables, wise, self._rank)
                record["wise"] = share
                print(f"{self.title}: {share:g} of the tuned weights is best on val")
            store.save(int(chosen.step), variables, record)
            store.wait()
        return variables

    def _statistics(self, chosen: TrainState) -> Any:
        """Return the BatchNorm statistics of the averaged weights over an epoch of train."""
        e, size = self.arm.experiment, self.section.batch_size
        batches = -(-len(self.arm.examples[self.name].indices("train")) // size)
        take = self.compiled.statistics
        if not chosen.batch_stats:
            return chosen.batch_stats

        def update(statistics: Any, batch: Any) -> Any:
            state = dataclasses.replace(chosen, batch_stats=statistics, step=batch[0])
            return jax.device_get(take(e.parallel.replicate(state), batch[1])[0].batch_stats)

        stream = self.source(0).batches(self.replaced)
        numbered = ((np.int32(i), e.parallel.put(next(stream)[0])) for i in range(batches))
        return jax.device_get(averages.batch_statistics(chosen.batch_stats, update, numbered))

    def _rank(self, variables: Any) -> tuple[bool, float]:
        """Return whether the score on val is defined, and the score; else minus the loss."""
        e = self.arm.experiment
        validation = dataclasses.replace(self._validation, variables_of=lambda v: v, ranks=True)
        values, score = validation(e.parallel.replicate(variables))
        if score is None or np.isnan(score):
            return False, -values["loss"]
        return True, score

    def _fit(self, state: TrainState, store: Store, first: int) -> None:
        e, c = self.arm.experiment, self.arm.config
        e.cache.trained.add(store.folder)
        if (
            self.shared and not self.arm.split.path and hosts.is_first()
        ):  # the models of folds are not kept
            frozen.keep(e.folder, self.shared)
        is_brief = bool(self.arm.split.path)
        progress = Progress(
            self.title, self.steps, start=first, brief=is_brief, examples=e.word_for_examples
        )
        loggers = e.components.make_loggers(store.folder, c) if hosts.is_first() else []
        feed = self.feed(first, progress)
        if e.profile is not None:
            feed = e.profile.around(feed, self.title, left=self.steps - first)
        loop.fit(
            e.parallel.place(state),
            feed,
            loop.Schedule(
                self.steps, -(-self.steps // c.evaluation.times), c.checkpoint.every_steps
            ),
            evaluate=self._validation,
            record=self.arm.record(self.name),
            store=store,
            progress=progress,
            loggers=loggers,
        )

    @property
    def _has_val(self) -> bool:
        return "val" in self.arm.examples[self.name].splits

    @property
    def section(self) -> Any:
        """The stage's section of the config."""
        return self.arm.config.stages[self.name]

    @property
    def steps(self) -> int:
        """The length of the stage."""
        return self.arm.experiment.steps(self.arm.name, self.name)

    @property
    def folder(self) -> Path:
        """The stage's folder; trials share a source stage that does not depend on their values."""
        trial = self.arm.trial
        is_shared = self.name == "source" and trial.shares_source
        return self.arm.folder / ("" if is_shared else trial.name) / self.name

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains whose examples the stage reads."""
        joint = self.name == "target" and self.arm.section.joint
        return DOMAINS if joint else (self.name,)

    @property
    def examples(self) -> dict[str, Examples]:
        """Examples by domain, for the domains that the stage reads."""
        return {d: self.arm.examples[d] for d in self.domains}

    @property
    def is_encoded(self) -> bool:
        """Whether the stage trains on the features of a frozen backbone."""
        # Mixed features are mixup's of the last layer; another mix may need images.
        step = self.compiled.step
        takes_features = step.mix is None or getattr(step.mix, "function", None) is mixing.mixup
        return self._stays_loaded and step.augmentation.is_identity and takes_features

    @property
    def _stays_loaded(self) -> bool:
        """Whether the backbone is the loaded one, unchanged, also after the stage."""
        c = self.arm.config.stages[self.name]
        is_frozen = c.freeze == "backbone" and c.batch_norm == "frozen"
        return self.start.is_loaded and is_frozen and not c.adapt_batch_norm

    @functools.cached_property
    def shared(self) -> dict[str, np.ndarray]:
        """The arrays of an image encoder that stays as loaded, which no checkpoint holds."""
        return frozen.arrays(self.start.variables) if self._stays_loaded else {}

    @property
    def title(self) -> str:
        parts = [*self.arm.split.path.split("/"), self.arm.trial.name]
        where = [part.replace("_", " ") for part in parts if part]
        return "  ".join([f"seed {self.arm.seed}", *where, self.arm.name, f"{self.name} stage"])

    @functools.cached_property
    def compiled(self) -> Compiled:
        """The step, compiled once for all seeds, arms, splits and trials that share it."""
        e = self.arm.experiment
        key = (self.name, self.domains, self.start.is_random, self.steps)
        if key not in e.cache.steps:
            step = self.make_step()
            e.cache.steps[key] = Compiled(
                step,
                e.parallel.train(step),
                e.parallel.loop(loop.make_loop(step)),
                e.parallel.train(step.statistics),
            )
        return e.cache.steps[key]

    def make_step(self) -> Step:
        """Make the training step; it is not compiled yet."""
        e, config = self.arm.experiment, self.arm.config
        return factory.step(
            config,
            self.name,
            e.model,
            e.components,
            self.used_terms,
            params=self.variables["params"],
            domains=self.domains,
            random_backbone=self.start.is_random,
            steps=self.steps,
            sizes=e.sizes,
            classes={domain: x.classes for domain, x in e.examples.items()},
            normalization=e.normalization,
            parallel=e.parallel,
        )

    @functools.cached_property
    def begun(self) -> Any:
        """The variables before the first step: with `head_start`, a classifier's minimum."""
        return head_start.variables(self)

    @functools.cached_property
    def variables(self) -> Any:
        """The variables of the shape before the first step; `begun` may have another head."""
        return self.with_own(self.start.variables)

    def with_own(self, variables: Any) -> Any:
        """Add the parameters that a joint stage has of its own."""
        config = self.arm.config
        if len(self.domains) < 2:
            return variables
        if config.stages[self.name].batch_norm == "domain":
            key = f"config.stages.{self.name}.batch_norm"
            variables = batch_norm.with_source(variables, key=key)
        if balancing := balance.initial(config.objective.balance, config.objective.lambda_):
            terms = {**variables["params"].get("terms", {}), balance.NAME: balancing}
            variables = {**variables, "params": {**variables["params"], "terms": terms}}
        return variables

    def state(self, *, begins: bool = False) -> TrainState:
        """Return the state before the first step, on the host.

        Args:
          begins: with the head of `head_start`; else a state of the same shape may do.
        """
        variables = self.with_own(self.begun) if begins else self.variables
        key = jax.random.fold_in(jax.random.key(self.arm.seed), 1 + STAGES.index(self.name))
        with self.arm.experiment.parallel.on_host():
            step = self.compiled.step
            return step.init(key, variables, self.values, pretrained=self._pretrained)

    @property
    def _pretrained(self) -> dict[str, Any]:
        """The transferred encoders: all after a source stage, else the image's, or none."""
        encoders = self.start.variables["params"]["encoders"]
        if self.start.is_random:
            return {}
        if self.name == "target" and self.arm.section.source_stage:
            return encoders
        return {name: values for name, values in encoders.items() if name == "image"}

    @functools.cached_property
    def used_terms(self) -> tracing.UsedTerms:
        """The terms that apply to the stage, and what they read."""
        e = self.arm.experiment
        context = tracing.toy_context(
            e.model, self.start.variables, e.inputs, e.examples, self.domains, self._pretrained
        )
        if e.components.mix is not None:
            parts = {**context.parts, "batch": mixing.without_labels(context.parts["batch"])}
            context = dataclasses.replace(context, parts=parts)
        key = f"config.stages.{self.name}"
        accumulate = self.arm.config.stages[self.name].accumulate
        return tracing.used_terms(e.components.terms, context, accumulate=accumulate, key=key)

    @property
    def values(self) -> dict[str, Any]:
        """The numbers that differ between splits and trials, whose step is compiled once."""
        config, examples = self.arm.config, self.arm.examples
        values: dict[str, Any] = dict(self.arm.trial.traced) if self.name == "target" else {}
        if config.objective.reduction == "sum":
            values["sizes"] = {d: np.float32(len(e.indices("train"))) for d, e in examples.items()}
        components = self.arm.experiment.components
        if components.terms or components.reads_class_counts:
            values["class_counts"] = {d: counts_of(e) for d, e in examples.items()}
        if config.objective.balance in balance.HELD_OUT and len(self.domains) > 1:
            seed = data.split_seed(config.data.target)
            values["held_out"] = balance.held_out(examples["target"], seed)
        return values

    def feed(self, first: int, progress: Progress) -> loop.Feed:
        """Return the feed from the step `first` on."""
        e, source, encoded = self.arm.experiment, self.source(first), self.is_encoded
        if e.fits_on_device(self.domains, encoded=encoded):
            data = {d: e.on_device(d, x, encoded=encoded) for d, x in self.examples.items()}
            return source.resident(self.compiled.loop, data)
        return source.streamed(self.compiled.one, self.replaced, progress.waited)

    def source(self, first: int) -> loop.Source:
        """Return the batches from the step `first` on."""
        e = self.arm.experiment
        return loop.Source(
            self.arm.config,
            e.parallel,
            self.examples,
            e.components.samplers[self.name],
            self.arm.seed,
            self.name,
            first,
        )

    @property
    def replaced(self) -> dict[str, Replaced]:
        """The features that replace the images in the stage's batches, by domain."""
        e = self.arm.experiment
        return {d: e.replaced(d, encoded=True) for d in self.domains if self.is_encoded}

    @property
    def _validation(self) -> Validation:
        return Validation(
            evaluator=self.arm.experiment.evaluator,
            variables_of=self.compiled.step.variables,
            domain=self.name,
            examples=self.arm.examples[self.name],
            replaced=self.replaced.get(self.name),
            # The average of SWA is that of the last step.
            ranks=self.arm.config.checkpoint.select == "best" and not self.compiled.step.swa,
        )


def counts_of(examples: Examples) -> np.ndarray:
    """Return f32[K], the number of train examples of each class."""
    label = examples.label[examples.indices("train")]
    if examples.is_quantity:
        return np.full(1, len(label), np.float32)
    if examples.multi_label:
        return np.nansum(label, axis=0).astype(np.float32)
    return np.bincount(label[label >= 0], minlength=len(examples.classes)).astype(np.float32)
