"""One arm with one seed on one split: source stage -> target stage -> predictions.

Finished work is not repeated: a training stage resumes from its last checkpoint, and a split of a
cross-validation is read back. A run folder refuses other data, weights, settings or plug-in files.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medtl import files
from medtl.errors import UserError, damaged
from medtl.evaluation import plain, predictions, to_json
from medtl.evaluation.predictions import Predictions
from medtl.examples import Examples
from medtl.experiment import baselines, provenance, source_weights
from medtl.experiment.setup import Experiment, reported_splits, uses_source
from medtl.experiment.splits import Split
from medtl.experiment.stage import Stage, Weights
from medtl.experiment.trials import Trial, trials
from medtl.models.model import Model
from medtl.training import factory, hosts

_DONE = "done.json"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An arm's result on one split.

    Attributes:
      predictions: for each reported split of the examples.
      tuned: config path -> the value that nested selection chose.
      variables: the model's, on the host; None where only the predictions were kept, {} for a
        classifier of scikit-learn.
    """

    predictions: list[Predictions]
    tuned: Mapping[str, Any]
    variables: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """One arm with one seed on one split of the target.

    Attributes:
      experiment: the opened experiment; a trial's has the trial's config.
      split: of the target.
      seed: the seed.
      name: the arm's name in the config.
      trial: of nested selection.
    """

    experiment: Experiment
    split: Split
    seed: int
    name: str
    trial: Trial = dataclasses.field(default_factory=Trial)

    def __post_init__(self) -> None:
        # An arm may read some of the inputs alone.
        inputs = self.experiment.config.arm[self.name].inputs
        object.__setattr__(self, "experiment", self.experiment.with_inputs(inputs))

    @property
    def config(self) -> Any:
        return self.experiment.config

    @property
    def section(self) -> Any:
        """The arm's section of the config."""
        return self.config.arm[self.name]

    @functools.cached_property
    def examples(self) -> dict[str, Examples]:
        """Domain -> examples, the target's with the arm's split, the source's with its weights."""
        examples = self.experiment.examples_of(self.split)
        if self.is_weighted:
            examples["source"] = source_weights.weighted(self.experiment, examples, self.split)
        return examples

    @property
    def is_weighted(self) -> bool:
        """Whether importance weights, which depend on the split, weigh the source."""
        return bool(self.config.objective.source_weights) and uses_source(self.config, self.name)

    @functools.cached_property
    def model(self) -> Model:
        """The experiment's model; with `prior_bias` the heads start at this split's frequencies."""
        e = self.experiment
        if not self._prior:
            return e.model
        return factory.model(self.config, self.examples, e.parallel, e.loaded)

    @property
    def _prior(self) -> str:
        """The split whose class frequencies the heads start at; empty: the data's own."""
        return self.split.path if self.config.model.prior_bias else ""

    @property
    def folder(self) -> Path:
        return self.experiment.folder / f"seed_{self.seed}" / self.name / self.split.path

    def outcome(self) -> Outcome:
        """Return the arm's predictions; train what is not trained yet."""
        if self.split.path and hosts.agreed((self.folder / _DONE).exists()):
            return self._finished()
        if self.split.path and not self.experiment.training:
            raise UserError(f"{self.folder} holds no finished split; train first")
        if self.section.estimator:
            return Outcome(self._reported(baselines.fit(self)), {}, {})
        weights, trial = self._train()
        made = self._reported(lambda rows: self._probabilities(weights, rows))
        if self.config.evaluation.test_time and "image" in self.experiment.inputs:
            of_views = self._reported(lambda rows: self._over_views(weights, rows))
            made += [dataclasses.replace(p, arm=f"{p.arm}+tta") for p in of_views]
        return Outcome(made, dict(trial.values), weights.variables)

    def _reported(self, probabilities: Callable[[np.ndarray], np.ndarray]) -> list[Predictions]:
        """Return the predictions of each reported split, from a function of its rows."""
        target, made = self.examples["target"], []
        for split in reported_splits(target):
            rows = target.indices(split)
            made.append(self._predictions(split, rows, probabilities(rows)))
        return made

    def keep(self, outcome: Outcome) -> None:
        """Keep the predictions of a fold or subset, and delete the checkpoints behind them.

        The checkpoints of the data's own split stay.
        """
        if not self.split.path or not hosts.is_first():
            return
        if outcome.variables is not None:
            classes = self.examples["target"].classes
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "predictions.csv"
            predictions.write(path, outcome.predictions, classes)
            done = plain({"record": self.record("target"), "tuned": outcome.tuned})
            digest = files.digest(done, path.read_bytes())
            files.write_text(self.folder / _DONE, to_json({**done, "digest": digest}))
        if self.config.checkpoint.keep_folds and self.split.size is None:
            return
        # Also after a command that was killed while it deleted them. Those of a fold's subsets, in
        # folders below, stay until the subset is done.
        for stage in ("target", "trial_*/target"):
            for kept in ("checkpoints", "handed_on"):
                for folder in self.folder.glob(f"{stage}/{kept}"):
                    shutil.rmtree(folder)

    def initial(self) -> Weights:
        """Return what the arm's first training stage starts from."""
        e = self.experiment
        pretrained = self.section.init == "weights" and e.loaded is not None
        is_complete = e.loaded is not None and not e.loaded.report.left_random
        return Weights(
            variables=e.initial(self.seed, self.model, self._prior, pretrained=pretrained),
            is_random=not pretrained,
            is_loaded=pretrained and is_complete,  # random tensors differ between seeds
        )

    def start(self) -> Weights:
        """Return what the target stage starts from; train the source stage if it is not yet."""
        weights = self.initial()
        return self._source(weights) if self.section.source_stage else weights

    def _source(self, weights: Weights) -> Weights:
        """Train the source stage: once a seed for all splits, unless it depends on the split."""
        undivided = dataclasses.replace(self, split=self.experiment.split)
        if not self.split.path or self._prior or self._source_sees_target:
            return Stage(self, "source", weights).train()
        cache, key = self.experiment.cache.source, (self.seed, self.name, self.trial.name)
        if key not in cache:
            for other in [k for k in cache if k[0] != self.seed]:
                del cache[other]
            cache[key] = Stage(undivided, "source", weights).train()
        return cache[key]

    @property
    def _source_sees_target(self) -> bool:
        """Whether the source stage depends on the target's split."""
        is_adapted = self.config.stages.source.adapt_batch_norm
        return self.experiment.is_pooled or self.is_weighted or is_adapted

    def _train(self) -> tuple[Weights, Trial]:
        """Train the arm; with nested selection every setting, of which the best on val is taken."""
        start = None
        best: tuple[Weights, Trial] | None = None
        best_rank = (False, -np.inf)
        for arm in self._trials():
            if start is None or not arm.trial.shares_source:
                start = arm.start()
            weights = Stage(arm, "target", start).train()
            rank = arm._rank(weights) if arm.trial.name else best_rank
            if best is None or rank > best_rank:
                best, best_rank = (weights, arm.trial), rank
        assert best is not None
        return best

    def _trials(self) -> Iterator[Arm]:
        """Yield the arm with each setting to try, or as it is."""
        settings = trials(self.config.evaluation.tune, joint=self.section.joint)
        yield from map(self.with_trial, settings) if settings else [self]

    def with_trial(self, trial: Trial) -> Arm:
        """Return the arm with the trial's values in its config."""
        return dataclasses.replace(self, experiment=self.experiment.with_trial(trial), trial=trial)

    def validation_probabilities(self) -> np.ndarray:
        """Train the arm and return the class probabilities float64[n, K] of its val rows."""
        weights, target = Stage(self, "target", self.start()).train(), self.examples["target"]
        return self._probabilities(weights, target.indices("val"))

    def _probabilities(self, weights: Weights, rows: np.ndarray) -> np.ndarray:
        e = self.experiment
        variables = e.parallel.place(weights.variables)
        target = self.examples["target"]
        replaced = e.replaced("target", encoded=weights.is_loaded)
        return e.evaluator.probabilities(variables, "target", target, rows, replaced)

    def _over_views(self, weights: Weights, rows: np.ndarray) -> np.ndarray:
        """Return the mean probabilities over views, of the images also where they are encoded."""
        e = self.experiment
        variables, target = e.parallel.replicate(weights.variables), self.examples["target"]
        return e.evaluator.mean_over_views(
            variables, "target", target, rows, multi_label=target.multi_label
        )

    def _rank(self, weights: Weights) -> tuple[bool, float]:
        """Return whether the score is defined, and the score; else minus the loss."""
        target, evaluator = self.examples["target"], self.experiment.evaluator
        rows = target.indices("val")
        probability = self._probabilities(weights, rows)
        score = evaluator.score(target, rows, probability)
        if not np.isnan(score):
            return True, score
        metrics = evaluator.metrics_of(target, rows, probability)
        return False, -metrics["mae" if target.is_quantity else "loss"]

    def _finished(self) -> Outcome:
        """Read back a split that is done."""
        target, path = self.examples["target"], self.folder / "predictions.csv"
        advice = f"delete {_DONE} there, and the same command trains it again"
        with damaged(f"the finished split in {self.folder} is damaged; {advice}"):
            done = json.loads((self.folder / _DONE).read_text())
            if "sha256" in done:  # of an older version
                is_same = done["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            elif set(done) == {"record", "tuned"}:  # of one that wrote no digest
                is_same = True
            else:
                is_same = done.pop("digest", None) == files.digest(done, path.read_bytes())
            if not is_same:
                raise ValueError(f"{path.name} or {_DONE} has changed since it was written")
            provenance.check_same(done["record"], self.record("target"), self.folder)
            read, _ = predictions.read(path, multi_label=target.multi_label)
            row_of = {name: row for row, name in enumerate(target.id)}
            kept = []
            for p in read:
                rows = np.array([row_of[name] for name in p.id])
                kept.append(dataclasses.replace(p, seed=self.seed, **_about(target, rows)))
            return Outcome(kept, dict(done["tuned"]), None)

    def _predictions(self, split: str, rows: np.ndarray, probability: np.ndarray) -> Predictions:
        target = self.examples["target"]
        # The folds of a cross-validation differ a little in the number of their labels.
        is_sized = bool(self.config.evaluation.target_sizes) and self.split.fold is None
        return Predictions(
            self.name,
            split,
            target.id[rows],
            target.label[rows],
            probability,
            self.seed,
            repeat=self.split.repeat,
            fold=self.split.fold,
            size=len(target.indices("train")) if is_sized else self.split.size,
            **_about(target, rows),
        )

    def record(self, stage: str) -> dict[str, Any]:
        """Return what a checkpoint of a training stage records of its origin."""
        e = self.experiment
        identity = {"seed": self.seed, "arm": self.name, "stage": stage}
        made = {}
        if e.tables is not None:
            made = {"preprocessing": e.tables.record(e.preprocessing(self.examples))}
        return {
            **identity,
            **provenance.record(
                self.config, self.examples, e.loaded, e.normalization, e.plugin_files
            ),
            **made,
        }


def _about(examples: Examples, rows: np.ndarray) -> dict[str, Any]:
    """Return the patients and groups of some examples."""
    return {
        "patient": None if examples.patient is None else examples.patient[rows],
        "groups": {name: values[rows] for name, values in examples.groups.items()},
    }
