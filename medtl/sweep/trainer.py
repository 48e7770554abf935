"""Validation predictions for every run (seed and split) x setting of a sweep.

Heads on the features of a frozen backbone are trained by one program, or minimized to convergence.
Other settings, and models whose backbone trains, are trained one after the other like an arm.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from medtl import files, plugins
from medtl.config import check
from medtl.data import loading
from medtl.errors import damaged
from medtl.evaluation import predictions, to_json
from medtl.examples import Examples
from medtl.experiment import frozen, provenance
from medtl.experiment.arm import Arm
from medtl.experiment.stage import Stage
from medtl.experiment.trials import TRACED_PATHS, Trial
from medtl.sweep.program import Program
from medtl.training import logistic
from medtl.training.checkpoint import checksum
from medtl.training.log import DivergedError
from medtl.training.loop import CHUNK, STAGES, batch_sizes, order_seed
from medtl.training.objective import DOMAINS
from medtl.training.parallel import Parallel
from medtl.training.progress import Progress


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of a sweep.

    Attributes:
      probabilities: for each run float64[H, n, K], of its val rows by the checkpoint that the run
        would choose; NaN where training diverged.
      seconds: of training, without source stages and features.
    """

    probabilities: list[np.ndarray]
    seconds: float


def trains_heads_alone(arm: Arm) -> bool:
    """Return whether the arm trains nothing but heads, on features that never change."""
    loaded = arm.experiment.loaded
    is_complete = loaded is not None and not loaded.report.left_random
    return is_complete and not check.moving_parts(arm.config, arm.name)


def train(arms: Sequence[Arm], trials: Sequence[Trial]) -> Trained:
    """Train every setting for every run, as an arm with these values would be trained."""
    config = arms[0].config
    has_program = trains_heads_alone(arms[0]) and not config.objective.terms
    if has_program and all(trial.is_traced for trial in trials):
        return train_heads(arms, trials)
    began = time.monotonic()
    probabilities = [[_trained(arm.with_trial(trial)) for trial in trials] for arm in arms]
    return Trained([np.stack(of_run) for of_run in probabilities], time.monotonic() - began)


def _trained(arm: Arm) -> np.ndarray:
    """Train one setting, or read what it gave; return the val probabilities f64[n, K].

    They are NaN where it diverged. A sweep keeps no models, but the probabilities of each setting,
    after which a sweep that was stopped goes on.
    """
    point = arm.folder / f"{arm.trial.name}.npz"
    record = arm.record("target")
    if point.exists():
        with (
            damaged(f"{point} is damaged; delete it"),
            files.open_npz(io.BytesIO(point.read_bytes())) as stored,
        ):
            there, probability = json.loads(str(stored["record"])), stored["probability"]
            if int(stored["checksum"]) != checksum(probability):
                raise ValueError("its content has changed since it was written")
        provenance.check_same(there, record, point)
    else:
        try:
            probability = arm.validation_probabilities()
        except DivergedError as error:
            print(f"{arm.trial.name} diverged: {error}")
            target = arm.examples["target"]
            probability = np.full((len(target.indices("val")), len(target.classes)), np.nan)
        point.parent.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {"record": to_json(record), "checksum": checksum(probability)}
        with files.atomic(point) as file:
            np.savez(file, probability=probability, **values)
    # Also after a command that was killed before it deleted them. A source stage that all splits
    # share is beside the splits.
    shared = dataclasses.replace(arm, split=arm.experiment.split)
    for folder in {arm.folder, shared.folder}:
        shutil.rmtree(folder / arm.trial.name, ignore_errors=True)
    (arm.experiment.folder / frozen.FILE).unlink(missing_ok=True)
    return probability


def train_heads(arms: Sequence[Arm], trials: Sequence[Trial]) -> Trained:
    """Train a head for each run and setting, all by one compiled program."""
    experiment, name = arms[0].experiment, arms[0].name
    config, steps = experiment.config, experiment.steps(name, "target")
    program, variables = _program(arms, trials)
    began = time.monotonic()
    keys = [
        jax.random.fold_in(jax.random.key(arm.seed), 1 + STAGES.index("target")) for arm in arms
    ]
    interval = max(1, -(-steps // config.evaluation.times))
    best = _Best(arms, len(trials))
    images = sum(batch_sizes(config, "target", tuple(program.data)).values())
    title = f"{len(arms)} x {len(trials)} heads"
    progress = Progress(title, steps, examples=experiment.word_for_examples)
    val = [arm.examples["target"].indices("val") for arm in arms]
    batch_size = config.evaluation.batch_size
    orders = _orders(arms, tuple(program.data), interval)
    state = program.start(variables, keys)
    for begin in range(0, steps, interval):
        end = min(begin + interval, steps)
        order = program.order(next(orders))
        for step in range(begin, end, CHUNK):
            until = min(step + CHUNK, end)
            span = (step - begin, until - begin)
            state = jax.block_until_ready(program.advance(state, order, span))
            progress.count(until, (until - step) * images * len(arms) * len(trials))
            progress.show(until, {})
        if end == steps or config.checkpoint.select == "best":
            with progress.apart():
                best.update(program.logits(state, val, batch_size))
    if steps == 0:
        best.update(program.logits(state, val, batch_size))
    return Trained(best.probabilities, time.monotonic() - began)


def _program(arms: Sequence[Arm], trials: Sequence[Trial]) -> tuple[Program, list[Any]]:
    """Return the program, and the variables that each run starts from, on the host."""
    experiment = arms[0].experiment
    # Every head is trained on one device.
    alone = dataclasses.replace(
        experiment,
        parallel=Parallel("none", experiment.parallel.devices[:1]),
        cache=dataclasses.replace(experiment.cache, steps={}),
    )
    stages = [Stage(dataclasses.replace(a, experiment=alone), "target", a.start()) for a in arms]
    # Micro-batches add up to the same gradient; heads need no memory to be saved.
    step = dataclasses.replace(stages[0].make_step(), accumulate=1)
    program = Program.create(
        step,
        {
            TRACED_PATHS[path]: np.array([t.values[path] for t in trials])
            for path in trials[0].values
        },
        {d: experiment.columns(d, encoded=True) for d in stages[0].domains},
        of_run=[stage.values for stage in stages],
        devices=experiment.parallel.devices,
    )
    return program, [_without_backbone(s.with_own(s.begun)) for s in stages]


def _without_backbone(variables: Any) -> dict[str, Any]:
    """Return the variables without the frozen image encoder, whose output is in the columns."""
    params = dict(variables["params"])
    kept = {name: x for name, x in params.pop("encoders").items() if name != "image"}
    return {"params": {**params, **({"encoders": kept} if kept else {})}, "batch_stats": {}}


def _orders(
    arms: Sequence[Arm], domains: tuple[str, ...], steps: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield domain -> i32[R, steps, B], the rows of the trainer's next batches."""
    sizes = batch_sizes(arms[0].config, "target", domains)
    streams = {
        d: [
            # Batches of many steps at once: the endless sequence of rows is the same.
            loading.train_rows(
                arm.examples[d],
                "train",
                sizes[d] * steps,
                seed=order_seed(arm.seed, "target", d),
                sampler=arm.experiment.components.samplers["target"],
                domain=d,
            )
            for arm in arms
        ]
        for d in domains
    }
    while True:
        yield {
            d: np.stack([next(s)["index"].reshape(steps, sizes[d]) for s in of_domain])
            for d, of_domain in streams.items()
        }


class _Best:
    """The val probabilities of each run's and setting's best checkpoint, the earliest of equals."""

    def __init__(self, arms: Sequence[Arm], settings: int):
        self._evaluator = arms[0].experiment.evaluator
        self._scores = np.full((len(arms), settings), -np.inf)
        self._targets = [arm.examples["target"] for arm in arms]
        self._val = [e.indices("val") for e in self._targets]
        self._criteria = [
            self._evaluator.criterion(e, v) for e, v in zip(self._targets, self._val, strict=True)
        ]
        self.probabilities = [
            np.full((settings, len(v), len(e.classes)), np.nan)
            for v, e in zip(self._val, self._targets, strict=True)
        ]

    def update(self, logits: Sequence[np.ndarray]) -> None:
        """Take the next evaluation: for each run f32[H, n, K]."""
        for r, of_run in enumerate(logits):
            for h, values in enumerate(of_run[: self._scores.shape[1]]):
                if not np.all(np.isfinite(values)):  # the trainer would have stopped here
                    self._scores[r, h], self.probabilities[r][h] = np.inf, np.nan
                    continue
                multi_label = self._targets[r].multi_label
                probability = predictions.probabilities(values, multi_label=multi_label)
                score = self._evaluator.score(
                    self._targets[r], self._val[r], probability, self._criteria[r]
                )
                if score > self._scores[r, h]:
                    self._scores[r, h], self.probabilities[r][h] = score, probability
                elif math.isnan(score) and self._scores[r, h] == -np.inf:
                    self.probabilities[r][h] = probability  # the last, where none is defined


def minimize(arms: Sequence[Arm], trials: Sequence[Trial]) -> Trained:
    """Minimize objective + weight_decay / 2 |W|² over linear heads, for each run and setting."""
    experiment = arms[0].experiment
    problem = _problem(arms, trials)
    began = time.monotonic()
    solution = logistic.solve(problem, devices=experiment.parallel.devices)
    late = int(np.sum(solution.gradient > 1e-3))
    if late:
        n = solution.gradient.size
        print(f"{late} of {n} heads did not converge; a larger weight_decay would help")
    features, probabilities = experiment.frozen_features("target"), []
    for r, arm in enumerate(arms):
        e = arm.examples["target"]
        x = features[e.indices("val")]
        heads = zip(solution.kernel[:, r], solution.bias[:, r], strict=True)
        logits = [x @ kernel + bias for kernel, bias in heads]
        probabilities.append(
            np.stack([predictions.probabilities(z, multi_label=e.multi_label) for z in logits])
        )
    return Trained(probabilities, time.monotonic() - began)


def _problem(arms: Sequence[Arm], trials: Sequence[Trial]) -> logistic.Problem:
    arm, experiment = arms[0], arms[0].experiment
    config, joint, head_of = experiment.config, arms[0].section.joint, experiment.model.head_of
    # A head of its own for the source has no part in the target head's minimum.
    shares = joint and head_of["source"] == head_of["target"]
    domains = DOMAINS if shares else DOMAINS[1:]
    examples = {d: experiment.examples[d] for d in domains}
    trains = [np.concatenate([a.examples[d].split == "train" for d in domains]) for a in arms]
    weight = np.concatenate([e.weight for e in examples.values()])
    [loss] = config.objective.losses.values()

    def values(path: str, default: float) -> np.ndarray:
        return np.array([trial.values.get(path, default) for trial in trials], np.float64)

    scale = np.full((len(trials), len(arms), len(domains)), loss.weight)
    for i, d in enumerate(domains):
        if config.objective.reduction == "mean":
            scale[..., i] /= [len(a.examples[d].indices("train")) for a in arms]
        if d == "target" and joint:
            scale[..., i] *= values("objective.lambda_", config.objective.lambda_)[:, None]
    decay = values("stages.target.weight_decay", config.stages.target.weight_decay)
    return logistic.Problem(
        features=np.concatenate([experiment.frozen_features(d) for d in domains]),
        target=np.concatenate([_target(e, loss.loss) for e in examples.values()]),
        kind="sigmoid" if arm.examples["target"].multi_label else "softmax",
        part=np.repeat(np.arange(len(domains)), [len(e) for e in examples.values()]),
        rows=np.stack(trains) * weight,
        scale=scale.astype(np.float32),
        penalty=decay.astype(np.float32),
    )


def _target(e: Examples, loss: str) -> np.ndarray:
    """Return f32[N, K]: one-hot and smoothed, or several diagnoses as they are."""
    if e.multi_label:
        return e.label
    options = plugins.parse(loss, key="config.objective.losses").kwargs
    smoothing, k = options.get("label_smoothing", 0.0), len(e.classes)
    return ((1 - smoothing) * np.eye(k)[e.label] + smoothing / k).astype(np.float32)
