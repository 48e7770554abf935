"""One experiment under way: an arm's stages in a cell, each a function of the last one's checkpoint, and what the arm then says.

What is done is not done again: a stage resumes from its last checkpoint. A run folder is refused to other data or weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medtl import files, weights
from medtl.data import loading
from medtl.errors import UserError
from medtl.evaluation import metrics, predictions, to_json
from medtl.evaluation.predictions import Predictions
from medtl.examples import Examples, Normalization
from medtl.experiment import provenance
from medtl.experiment.splits import Cell
from medtl.models.model import Model
from medtl.profiling.trace import Profile
from medtl.training import factory
from medtl.training.checkpoint import Store
from medtl.training.evaluator import Forward
from medtl.training.loop import STAGES
from medtl.training.parallel import Parallel
from medtl.training.progress import Progress
from medtl.training.step import DOMAINS, Feed, Step, fit, make_loop

_DONE = "done.json"


def uses_source(config: Any, arm: str) -> bool:
    """Whether an arm learns from the source."""
    return config.arm[arm].source_stage or config.arm[arm].joint


def reported(examples: Examples) -> list[str]:
    """The splits on which the arms are evaluated."""
    return [s for s in examples.splits if s != "train"]


@dataclasses.dataclass
class _Shared:
    """What the cells, arms and seeds of an experiment share."""

    trained: bool = False
    steps: dict[Any, Any] = dataclasses.field(default_factory=dict)
    initial: dict[Any, Any] = dataclasses.field(default_factory=dict)
    source: dict[tuple[int, str], tuple[Any, bool]] = dataclasses.field(default_factory=dict)
    resident: dict[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one arm gave in one cell.

    Attributes:
      said: of each reported split.
      tuned: the fields that nested selection chose, by name; empty where nothing was tuned.
      variables: of the model, on the host; None where only its predictions were kept.
    """

    said: list[Predictions]
    tuned: dict[str, float]
    variables: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One experiment in one cell.

    Attributes:
      config: the experiment's, with what a trial of nested selection sets.
      folder: the work folder.
      examples: domain -> its examples, the target's with the cell's split.
      parallel: the devices.
      model: the model.
      normalization: of the input.
      loaded: the pretrained backbone.
      forward: what the model says, and the features of a frozen backbone.
      training: False where nothing may be trained.
      sizes: domain -> the number of train examples by which epochs become steps: the same in every cell.
      cell: of the target.
      whole: the experiment outside of cells, where its source stages are trained once for all of them.
      trial: the folder of a trial of nested selection; empty outside of one.
      tuned: what that trial sets, by name.
      profile: traces the first stage that trains; None: none is traced.
    """

    config: Any
    folder: Path
    examples: Mapping[str, Examples]
    parallel: Parallel
    model: Model
    normalization: Normalization
    loaded: weights.Pretrained | None
    forward: Forward
    training: bool
    sizes: Mapping[str, int]
    cell: Cell
    whole: Run | None = None
    trial: str = ""
    tuned: Mapping[str, float] = dataclasses.field(default_factory=dict)
    profile: Profile | None = None
    _shared: _Shared = dataclasses.field(default_factory=_Shared)

    @classmethod
    def create(
        cls,
        config: Any,
        folder: Path,
        examples: Mapping[str, Examples],
        *,
        training: bool,
        train_size: int,
    ) -> Run:
        """Loads the weights and builds the model; `train_size` is that of the target's largest cell."""
        loaded = factory.pretrained(config)
        parallel = Parallel.create(config.parallel)
        sizes = {domain: len(e.indices("train")) for domain, e in examples.items()} | {
            "target": train_size
        }
        model, normalization = (
            _model(config, examples, parallel, loaded),
            factory.normalization(config, loaded),
        )
        run = cls(
            config,
            folder,
            examples,
            parallel,
            model,
            normalization,
            loaded,
            Forward(config, parallel, model, normalization, loaded),
            training,
            sizes,
            Cell(examples["target"].split),
        )
        run._check()
        return run

    def at(self, cell: Cell) -> Run:
        """The same experiment in another cell; what was compiled and computed is shared."""
        if not cell.path:
            return self
        examples = {**self.examples, "target": cell.of(self.examples["target"])}
        if not self.config.model.prior_bias:
            return dataclasses.replace(self, examples=examples, cell=cell, whole=self)
        # The head starts at the frequencies of this cell's train part, and so does the source stage.
        model = _model(self.config, examples, self.parallel, self.loaded)
        return dataclasses.replace(self, examples=examples, cell=cell, model=model)

    def _check(self) -> None:
        """What can be known only with data, weights and devices, and must be known before training."""
        for arm in self.config.arms:
            for stage in self._stages(arm):
                c, key = self.config.stages[stage], f"config.stages.{stage}"
                self.parallel.check_batch(c.batch_size, f"{key}.batch_size")
                if stage == "target" and self.config.arm[arm].joint:
                    self.parallel.check_batch(
                        c.source_batch_size or c.batch_size, f"{key}.source_batch_size"
                    )
                    factory.objective(self.config, {}).check(self.steps(arm, stage))
                left = (
                    self.loaded.report.left_random
                    if self.loaded and self.config.arm[arm].init == "weights"
                    else ()
                )
                if left and (c.freeze != "none" or c.batch_norm == "frozen"):
                    raise UserError(
                        f"{key} freezes the backbone, but config.weights.allow leaves {len(left)} of its tensors random, "
                        f"such as {left[0][0]}; set freeze='none' and batch_norm='batch', or load them"
                    )
        for domain in self.examples:
            factory.check_losses(self.config, self.examples[domain])
            if self.config.checkpoint.select == "best" and not self._chooses(domain):
                print(f"{domain} has no val split: the last checkpoint is taken, not the best")

    def _chooses(self, domain: str) -> bool:
        if domain == "target" and self.config.evaluation.folds:
            return self.config.data.target.split[1] > 0
        return "val" in self.examples[domain].splits

    @property
    def trained(self) -> bool:
        """Whether anything was trained, in any cell."""
        return self._shared.trained

    def _stages(self, arm: str) -> tuple[str, ...]:
        return STAGES if self.config.arm[arm].source_stage else STAGES[1:]

    def steps(self, arm: str, stage: str) -> int:
        """The length of a stage: every arm takes as many optimizer steps in all as the longest, in every cell."""
        own = {
            s: loading.steps_per_epoch(self.sizes[s], self.config.stages[s].batch_size)
            * self.config.stages[s].epochs
            for s in STAGES
            if s in self.examples
        }
        skips = stage == "target" and not self.config.arm[arm].source_stage
        if skips and any(self.config.arm[other].source_stage for other in self.config.arms):
            return sum(own.values())
        return own[stage]

    def arm_folder(self, seed: int, arm: str) -> Path:
        """Where an arm keeps what it does in this cell."""
        return self.folder / f"seed_{seed}" / arm / self.cell.path

    def outcome(self, seed: int, arm: str) -> Outcome:
        """What an arm says of the cell's reported splits; trains what is not trained yet."""
        folder = self.arm_folder(seed, arm)
        done = folder / _DONE
        target = self.examples["target"]
        if self.cell.path and done.exists():
            kept = json.loads(done.read_text())
            provenance.check_same(kept["record"], self._record(seed, arm, "target"), folder)
            read, _ = predictions.read(folder / "predictions.csv", multi_label=target.multi_label)
            row_of = {name: row for row, name in enumerate(target.id)}
            said = []
            for p in read:
                rows = np.array([row_of[name] for name in p.id])
                said.append(dataclasses.replace(p, seed=seed, **_about(target, rows)))
            return Outcome(said, kept["tuned"], None)
        if self.cell.path and not self.training:
            raise UserError(f"{folder} holds no finished cell; train first")
        variables, cached, tuned = self._arm(seed, arm)
        said = [self._say(seed, arm, split, variables, cached=cached) for split in reported(target)]
        return Outcome(said, tuned, variables)

    def keep(self, seed: int, arm: str, outcome: Outcome) -> None:
        """In a cell, writes what an arm said and deletes the checkpoints that said it; elsewhere the checkpoints stay."""
        if not self.cell.path or outcome.variables is None:
            return
        folder = self.arm_folder(seed, arm)
        predictions.write(folder / "predictions.csv", outcome.said, self.examples["target"].classes)
        record = {"record": self._record(seed, arm, "target"), "tuned": outcome.tuned}
        files.write_text(folder / _DONE, to_json(record))
        for checkpoints in folder.glob("**/target/checkpoints"):
            shutil.rmtree(checkpoints)

    def _say(self, seed: int, arm: str, split: str, variables: Any, *, cached: bool) -> Predictions:
        target = self.examples["target"]
        chosen, probability = self.probabilities(
            self.parallel.replicate(variables), "target", split, cached=cached
        )
        return Predictions(
            arm,
            split,
            target.id[chosen],
            target.label[chosen],
            probability,
            seed,
            repeat=self.cell.repeat,
            fold=self.cell.fold,
            size=len(target.indices("train")) if self._sized else self.cell.size,
            **_about(target, chosen),
        )

    @property
    def _sized(self) -> bool:
        """Whether predictions tell the number of target labels; the folds of a cross-validation differ a little in theirs."""
        return bool(self.config.evaluation.target_sizes) and self.cell.fold is None

    def _arm(self, seed: int, name: str) -> tuple[Any, bool, dict[str, float]]:
        """Runs an arm's stages; its variables on the host, whether its backbone is still the loaded one, and what was tuned."""
        variables, fresh, intact = self.start(seed, name)
        best: tuple[Any, bool, dict[str, float]] | None = None
        best_score = -np.inf
        for run, tuned in self._trials(name):
            found, kept = run.stage(seed, name, "target", variables, fresh=fresh, intact=intact)
            score = (
                run._score(run._validate(run.parallel.replicate(found), "target", cached=kept))
                if tuned
                else 0.0
            )
            if best is None or score > best_score or (np.isnan(best_score) and not np.isnan(score)):
                best, best_score = (found, kept, tuned), score
        assert best is not None
        return best

    def start(self, seed: int, arm: str) -> tuple[Any, bool, bool]:
        """What an arm's target stage starts from; its source stage is trained if it is not yet.

        Returns:
          The variables on the host, whether the backbone is random, and whether it is the loaded one, unchanged.
        """
        loaded = self.loaded if self.config.arm[arm].init == "weights" else None
        variables = self._initial(seed, loaded)
        fresh = loaded is None
        intact = (
            loaded is not None and not loaded.report.left_random
        )  # what is random differs between seeds
        if self.config.arm[arm].source_stage:
            variables, intact = self._source(seed, arm, variables, fresh=fresh, intact=intact)
            fresh = fresh and self.steps(arm, "source") == 0
        return variables, fresh, intact

    def _source(
        self, seed: int, arm: str, variables: Any, *, fresh: bool, intact: bool
    ) -> tuple[Any, bool]:
        """What the source stage gives; where all cells share it, it is read once for a seed."""
        if self.whole is None:
            return self.stage(seed, arm, "source", variables, fresh=fresh, intact=intact)
        known = self._shared.source
        if (seed, arm) not in known:
            for other in [key for key in known if key[0] != seed]:
                del known[other]
            known[seed, arm] = self.whole.stage(
                seed, arm, "source", variables, fresh=fresh, intact=intact
            )
        return known[seed, arm]

    def _trials(self, arm: str) -> Iterator[tuple[Run, dict[str, float]]]:
        """Every combination of the fields to be tuned; those that an arm does not use make no trials of their own."""
        tune = self.config.evaluation.tune
        joint = self.config.arm[arm].joint
        grid = {name: tune[name] for name in tune if tune[name] and (joint or name != "lambda_")}
        if not grid:
            yield self, {}
            return
        for i, values in enumerate(itertools.product(*grid.values())):
            tuned = dict(zip(grid, map(float, values), strict=True))
            config = self.config.copy_and_resolve_references()
            for name, value in tuned.items():
                (config.objective if name == "lambda_" else config.stages.target)[name] = value
            yield dataclasses.replace(self, config=config, trial=f"trial_{i}", tuned=tuned), tuned

    def _initial(self, seed: int, loaded: weights.Pretrained | None) -> Any:
        """Variables before the first stage; the last seed's are kept, since drawing them takes seconds."""
        key = (seed, loaded is None, "" if self.whole else self.cell.path)
        if key not in self._shared.initial:
            if any((seed, path) != (key[0], key[2]) for seed, _, path in self._shared.initial):
                self._shared.initial.clear()
            self._shared.initial[key] = factory.variables(self.model, self.config, seed, loaded)
        return self._shared.initial[key]

    def stage(
        self, seed: int, arm: str, stage: str, variables: Any, *, fresh: bool, intact: bool
    ) -> tuple[Any, bool]:
        """Trains one stage, or goes on with it, or takes what it left when it was done.

        Args:
          seed: the seed.
          arm: the arm's name.
          stage: "source" or "target".
          variables: what the stage starts from.
          fresh: the backbone is random.
          intact: the backbone is the loaded one, unchanged.

        Returns:
          The variables of the chosen checkpoint, and whether their backbone is the loaded one, unchanged.
        """
        c = self.config.stages[stage]
        joint = stage == "target" and self.config.arm[arm].joint
        domains = DOMAINS if joint else (stage,)
        steps = self.steps(arm, stage)
        step, compiled = self._compiled(stage, domains, fresh, steps, variables["params"])
        intact = intact and c.freeze == "backbone" and c.batch_norm == "frozen"
        cached = intact and step.augmentation.is_identity
        key = jax.random.fold_in(jax.random.key(seed), 1 + STAGES.index(stage))
        state = step.init(key, variables, self._given(stage))
        with Store(self.arm_folder(seed, arm) / self.trial / stage) as store:
            start = store.last_step
            if not self.training and start != steps:
                raise UserError(
                    f"{store.folder} holds no finished stage ({start or 0} of {steps} steps); train first"
                )
            record = self._record(seed, arm, stage)
            if start is not None:
                provenance.check_same(store.record(start), record, store.folder)
                state = store.restore(start, state)
            if start != steps:
                self._shared.trained = True
                for domain in domains if cached else ():
                    self.frozen_features(domain)
                title = self._title(seed, arm, stage)
                progress = Progress(title, steps, start=start or 0, brief=bool(self.cell.path))
                batches = self._feed(
                    seed,
                    stage,
                    domains,
                    start or 0,
                    compiled,
                    cached=cached,
                    waited=progress.waited,
                )
                if self.profile is not None:
                    batches = self.profile.around(batches, title, left=steps - (start or 0))
                fit(
                    self.parallel.replicate(state),
                    batches,
                    steps=steps,
                    every=-(-steps // self.config.evaluation.times),
                    save_every=self.config.checkpoint.every_steps,
                    evaluate=lambda s: self._evaluate(step.variables(s), stage, cached=cached),
                    record=record,
                    store=store,
                    progress=progress,
                )
            chosen = store.restore(store.chosen_step(), state)
        return jax.device_get(step.variables(chosen)), intact

    def _title(self, seed: int, arm: str, stage: str) -> str:
        where = [
            part.replace("_", " ") for part in (*self.cell.path.split("/"), self.trial) if part
        ]
        return "  ".join([f"seed {seed}", *where, arm, f"{stage} stage"])

    def _compiled(
        self, stage: str, domains: tuple[str, ...], fresh: bool, steps: int, params: Any
    ) -> tuple[Step, Any]:
        """The step, compiled once for all seeds, arms, cells and trials that share it."""
        key = (stage, domains, fresh, steps)
        if key not in self._shared.steps:
            step = factory.step(
                self.config,
                stage,
                self.model,
                params=params,
                domains=domains,
                fresh=fresh,
                steps=steps,
                sizes=self.sizes,
                norm=self.normalization,
                parallel=self.parallel,
            )
            self._shared.steps[key] = (
                step,
                (self.parallel.train(step), self.parallel.loop(make_loop(step))),
            )
        return self._shared.steps[key]

    def _given(self, stage: str) -> dict[str, Any]:
        """What differs between cells and trials, whose step is compiled once."""
        given: dict[str, Any] = {}
        if stage == "target":
            given |= {name: np.float32(value) for name, value in self.tuned.items()}
        if self.config.objective.reduction == "sum":
            given["sizes"] = {
                d: np.float32(len(e.indices("train"))) for d, e in self.examples.items()
            }
        return given

    def _feed(
        self,
        seed: int,
        stage: str,
        domains: tuple[str, ...],
        start: int,
        compiled: Any,
        *,
        cached: bool,
        waited: Callable[[float], None],
    ) -> Feed:
        """What takes the steps of a stage from `start` on."""
        examples = {d: self.examples[d] for d in domains}
        place: Any = {"seed": seed, "stage": stage, "start": start}
        step, loop = compiled
        if loop.lies_on_device(self.config, self.parallel, examples, cached=cached):
            data = {d: self._on_device(d, cached=cached) for d in domains}
            return loop.resident(self.config, self.parallel, loop, examples, **place, data=data)
        features = {d: self.frozen_features(d) for d in domains if cached}
        return loop.streamed(
            self.config, self.parallel, step, examples, **place, features=features, waited=waited
        )

    def _on_device(self, domain: str, *, cached: bool) -> dict[str, jax.Array]:
        key = (domain, cached)
        if key not in self._shared.resident:
            e = self.examples[domain]
            inputs = (
                {"features": self.frozen_features(domain)}
                if cached
                else {"image": np.asarray(e.image)}
            )
            self._shared.resident[key] = self.parallel.replicate(
                {**inputs, "label": e.label, "weight": e.weight}
            )
        return self._shared.resident[key]

    def frozen_features(self, domain: str) -> np.ndarray:
        """f32[N, D], the features of a domain's examples under the loaded backbone."""
        return self.forward.features(domain, self.examples[domain])

    def probabilities(
        self, variables: Any, domain: str, split: str, *, cached: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a split, int[n], and their class probabilities, float64[n, K]; the variables lie on the devices."""
        examples = self.examples[domain]
        chosen = examples.indices(split)
        features = self.frozen_features(domain) if cached else None
        logits = self.forward.logits(variables, domain, examples, chosen, features=features)
        return chosen, predictions.probabilities(logits, multi_label=examples.multi_label)

    def _evaluate(
        self, variables: Any, domain: str, *, cached: bool
    ) -> tuple[dict[str, float], float | None]:
        if "val" not in self.examples[domain].splits:
            return {}, None
        values = self._validate(variables, domain, cached=cached)
        return values, None if self.config.checkpoint.select == "last" else self._score(values)

    def _validate(self, variables: Any, domain: str, *, cached: bool) -> dict[str, float]:
        """The metrics on val."""
        chosen, probability = self.probabilities(variables, domain, "val", cached=cached)
        examples = self.examples[domain]
        found = metrics.compute(
            examples.label[chosen], probability, classes=examples.classes
        ).as_dict()
        return {name: float(value) for name, value in found.items() if isinstance(value, float)}

    def _score(self, values: Mapping[str, float]) -> float:
        """By which checkpoints and trials are ranked: the higher the better."""
        return metrics.rank(self.config.checkpoint.metric, values[self.config.checkpoint.metric])

    def _record(self, seed: int, arm: str, stage: str) -> dict[str, Any]:
        of = {"seed": seed, "arm": arm, "stage": stage}
        return of | provenance.record(self.config, self.examples, self.loaded, self.normalization)


def _about(examples: Examples, rows: np.ndarray) -> dict[str, Any]:
    """What predictions say of their examples beside the label."""
    return {
        "patient": None if examples.patient is None else examples.patient[rows],
        "groups": {name: values[rows] for name, values in examples.groups.items()},
    }


def _model(
    config: Any,
    examples: Mapping[str, Examples],
    parallel: Parallel,
    loaded: weights.Pretrained | None,
) -> Model:
    return factory.model(
        config,
        {domain: e.classes for domain, e in examples.items()},
        priors={d: factory.prior(e) for d, e in examples.items()}
        if config.model.prior_bias
        else None,
        axis_name=parallel.axis_name,
        epsilon=loaded.epsilon if loaded else 1e-5,
    )
