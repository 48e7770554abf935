"""What the places and points of a sweep say of val: by the trainer's own steps, or at the minimum of the objective.

Of a frozen backbone the heads alone are trained, on its features; of one that moves the whole model, on images that lie on the
devices. Refuses images that are read as a stream; `check.check_sweep` has refused the rest.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from medtl import plugins
from medtl.config import check
from medtl.data import loading
from medtl.errors import UserError
from medtl.evaluation import metrics, predictions
from medtl.examples import Examples
from medtl.experiment.arm import Run
from medtl.sweep import logistic
from medtl.sweep.program import Block, Grid, Program
from medtl.training import factory
from medtl.training.loop import STAGES, batch_sizes, order_seed
from medtl.training.parallel import Parallel
from medtl.training.progress import Progress
from medtl.training.step import CHUNK, DOMAINS

Place = tuple[int, Run]  # a seed, and the experiment in a cell
_SMALL = 1_000_000  # parameters of a backbone


def frozen(run: Run, arm: str) -> bool:
    """Whether an arm trains nothing but heads, on features that never change: as `Run.stage` decides."""
    intact = run.loaded is not None and not run.loaded.report.left_random
    return intact and not check.moving_parts(run.config, arm)


def check_images(run: Run, arm: str) -> None:
    """Refuses images that cannot lie on the devices."""
    for domain in _domains(run.config, arm):
        if not isinstance(run.examples[domain].image, np.ndarray):
            raise UserError(
                f"--mode=sweep keeps the images of {domain} on the device while the backbone moves, but config.data.cache is "
                f"{run.config.data.cache!r}, which streams them; use 'memory' or 'disk', or a smaller config.data.image_size"
            )


def together(places: int, points: int, *, parameters: int, backend: str) -> tuple[int, int]:
    """How many places and points one device trains at once.

    All of them where heads alone train; of a small backbone the places of a point; of others one place and point after the
    other, and so on CPUs, where a convolution mapped over kernels is slower than one after the other: what was measured is in
    docs/decisions/0006-sweep.md.

    Args:
      places: of the sweep.
      points: of the sweep.
      parameters: of the backbone; 0 where heads alone train.
      backend: "cpu", "gpu" or "tpu".
    """
    if not parameters:
        return places, points
    return (places, 1) if backend != "cpu" and parameters < _SMALL else (1, 1)


def trained(places: Sequence[Place], arm: str, grid: Grid) -> tuple[list[np.ndarray], float]:
    """Trains a head, or a model where the backbone moves, for each place and point, as `Run.outcome` would with the point's values.

    One program is compiled for all of them. Several devices share the places or the points; one model is never spread.

    Returns:
      For each place float64[H, n, K], the probabilities of its val rows, by the checkpoint that the run would choose; and the
      seconds that this took, without source stages and features.
    """
    run = places[0][1]
    config = run.config
    steps, batch_size = run.steps(arm, "target"), config.evaluation.batch_size
    program, variables = _program(places, arm, grid)
    began = time.monotonic()
    keys = [
        jax.random.fold_in(jax.random.key(seed), 1 + STAGES.index("target")) for seed, _ in places
    ]
    every = max(1, -(-steps // config.evaluation.times))
    best = _Best(config, places, len(next(iter(grid.values()))))
    images = sum(batch_sizes(config, "target", tuple(program.data)).values())
    kind = "heads" if frozen(run, arm) else "models"
    progress = Progress(f"{len(places)} x {best.points} {kind}", steps * len(program.blocks))
    for n, block in enumerate(program.blocks):
        own = [places[r] for r in block.places]
        val = [at.examples["target"].indices("val") for _, at in own]
        orders = _orders(own, tuple(program.data), every)
        state = program.start(
            block, [variables[r] for r in block.places], [keys[r] for r in block.places]
        )
        for begin in range(0, steps, every):
            end = min(begin + every, steps)
            order = program.order(next(orders))
            for at in range(begin, end, CHUNK):
                until = min(at + CHUNK, end)
                state = jax.block_until_ready(
                    program.advance(state, order, (at - begin, until - begin))
                )
                progress.count(
                    n * steps + until, (until - at) * images * len(block.places) * len(block.points)
                )
                progress.show(n * steps + until, {})
            if end == steps or config.checkpoint.select == "best":
                with progress.apart():
                    best.take(block, program.logits(state, val, batch_size))
        if steps == 0:
            best.take(block, program.logits(state, val, batch_size))
    return best.probability, time.monotonic() - began


def _domains(config: Any, arm: str) -> tuple[str, ...]:
    return DOMAINS if config.arm[arm].joint else DOMAINS[1:]


def _program(places: Sequence[Place], arm: str, grid: Grid) -> tuple[Program, list[Any]]:
    """The program, and the variables that each place starts from, on the host; trains source stages that are not trained yet."""
    run = places[0][1]
    config, domains, steps = run.config, _domains(run.config, arm), run.steps(arm, "target")
    heads_alone = frozen(run, arm)
    started, fresh = _started(places, arm)
    params = started[0]["params"]
    alone = Parallel("none", run.parallel.devices[:1])
    step = factory.step(
        config,
        "target",
        # Every model stays on one device, where BatchNorm has no axis to sum over.
        dataclasses.replace(run.model, backbone=run.model.backbone.clone(axis_name=None)),
        params=params,
        domains=domains,
        fresh=fresh,
        steps=steps,
        sizes=run.sizes,
        norm=run.normalization,
        parallel=alone,
    )
    if heads_alone:
        # Parts of a batch add up to the same gradient; here there is no memory to be saved.
        step = dataclasses.replace(step, accumulate=1)
        started = [
            {"params": {"heads": found["params"]["heads"]}, "batch_stats": {}} for found in started
        ]
    inputs = {
        d: {"features": run.frozen_features(d)} if heads_alone else {"image": run.examples[d].image}
        for d in domains
    }
    parameters = 0 if heads_alone else sum(x.size for x in jax.tree.leaves(params["backbone"]))
    points, backend = len(next(iter(grid.values()))), alone.devices[0].platform
    program = Program.create(
        step,
        grid,
        {
            d: {**inputs[d], "label": run.examples[d].label, "weight": run.examples[d].weight}
            for d in domains
        },
        sizes={d: [len(at.examples[d].indices("train")) for _, at in places] for d in domains},
        together=together(len(places), points, parameters=parameters, backend=backend),
        # In a loop, XLA's CPU backend takes 10 to 30 times as long for the gradients of convolutions.
        loop=heads_alone or backend != "cpu",
        devices=run.parallel.devices,
    )
    return program, started


def _started(places: Sequence[Place], arm: str) -> tuple[list[Any], bool]:
    """The variables that each place starts from, and whether their backbone is random."""
    found = {}
    for seed, at in places:
        # A source stage that cells share is restored once.
        key = seed, id(at.whole or at)
        if key not in found:
            found[key] = at.start(seed, arm)[:2]
    started = [found[seed, id(at.whole or at)] for seed, at in places]
    return [variables for variables, _ in started], started[0][1]


def _orders(
    places: Sequence[Place], domains: tuple[str, ...], every: int
) -> Iterator[dict[str, np.ndarray]]:
    """domain -> i32[R, every, B], the rows of the next `every` steps: those of the trainer's batches."""
    sizes = batch_sizes(places[0][1].config, "target", domains)
    streams = {
        d: [
            # Batches of many steps at once: the places of an endless sequence are the same.
            loading.train_rows(
                at.examples[d], "train", sizes[d] * every, seed=order_seed(seed, "target", d)
            )
            for seed, at in places
        ]
        for d in domains
    }
    while True:
        yield {
            d: np.stack([next(stream)["index"].reshape(every, sizes[d]) for stream in of_domain])
            for d, of_domain in streams.items()
        }


class _Best:
    """The probabilities of each place's and point's chosen checkpoint: the best on val, the earliest of equals."""

    def __init__(self, config: Any, places: Sequence[Place], points: int):
        self._metric = config.checkpoint.metric
        self._targets = [at.examples["target"] for _, at in places]
        self._val = [e.indices("val") for e in self._targets]
        self._score = np.full((len(places), points), -np.inf)
        self.points = points
        self.probability = [
            np.full((points, len(v), len(e.classes)), np.nan)
            for v, e in zip(self._val, self._targets, strict=True)
        ]

    def take(self, block: Block, logits: Sequence[np.ndarray]) -> None:
        """The next evaluation's, for each place of the block f32[h, n, K]."""
        for r, of_place in zip(block.places, logits, strict=True):
            for h, found in zip(
                block.points, of_place, strict=False
            ):  # what fills the block up is left out
                if not np.all(np.isfinite(found)):  # the trainer would have stopped here
                    self._score[r, h], self.probability[r][h] = np.inf, np.nan
                    continue
                probability = predictions.probabilities(
                    found, multi_label=self._targets[r].multi_label
                )
                score = self._rank(r, probability)
                if score > self._score[r, h]:
                    self._score[r, h], self.probability[r][h] = score, probability

    def _rank(self, r: int, probability: np.ndarray) -> float:
        e = self._targets[r]
        found = metrics.compute(e.label[self._val[r]], probability, classes=e.classes)
        value = metrics.rank(self._metric, getattr(found, self._metric))
        return value if math.isfinite(value) else -np.finfo(np.float64).max


def minimised(places: Sequence[Place], arm: str, grid: Grid) -> tuple[list[np.ndarray], float]:
    """The linear heads that minimise the objective + weight_decay / 2 |W|², for each place and point; returns as `trained`."""
    run = places[0][1]
    problem = _problem(places, arm, grid)
    began = time.monotonic()
    found = logistic.solve(problem, devices=run.parallel.devices)
    late = int(np.sum(found.gradient > 1e-3))
    if late:
        print(
            f"{late} of {found.gradient.size} heads did not converge; a larger weight_decay would help"
        )
    features, said = run.frozen_features("target"), []
    for r, (_, at) in enumerate(places):
        e = at.examples["target"]
        x = features[e.indices("val")]
        logits = [
            x @ kernel + bias
            for kernel, bias in zip(found.kernel[:, r], found.bias[:, r], strict=True)
        ]
        said.append(
            np.stack([predictions.probabilities(z, multi_label=e.multi_label) for z in logits])
        )
    return said, time.monotonic() - began


def _problem(places: Sequence[Place], arm: str, grid: Grid) -> logistic.Problem:
    run = places[0][1]
    config = run.config
    joint = config.arm[arm].joint
    # A head of its own for the source has no part in what the target's head minimises.
    domains = (
        DOMAINS
        if joint and run.model.head_of["source"] == run.model.head_of["target"]
        else DOMAINS[1:]
    )
    examples = {d: run.examples[d] for d in domains}
    trains = [
        np.concatenate([at.examples[d].split == "train" for d in domains]) for _, at in places
    ]
    weight = np.concatenate([e.weight for e in examples.values()])
    [term] = config.objective.losses.values()
    points = len(next(iter(grid.values())))
    strength = (
        grid.get("lambda_", np.full(points, config.objective.lambda_)) if joint else np.ones(points)
    )
    scale = np.full((points, len(places), len(domains)), term.weight)
    for i, d in enumerate(domains):
        if config.objective.reduction == "mean":
            scale[..., i] /= [len(at.examples[d].indices("train")) for _, at in places]
        if d == "target":
            scale[..., i] *= strength[:, None]
    multi_label = examples["target"].multi_label
    return logistic.Problem(
        features=np.concatenate([run.frozen_features(d) for d in domains]),
        target=np.concatenate([_target(e, term.loss) for e in examples.values()]),
        kind="sigmoid" if multi_label else "softmax",
        part=np.repeat(np.arange(len(domains)), [len(e) for e in examples.values()]),
        rows=np.stack(trains) * weight,
        scale=scale.astype(np.float32),
        penalty=grid.get("weight_decay", np.full(points, config.stages.target.weight_decay)).astype(
            np.float32
        ),
    )


def _target(e: Examples, loss: str) -> np.ndarray:
    """f32[N, K]: one-hot and smoothed, or several diagnoses as they are."""
    if e.multi_label:
        return e.label
    smoothing = plugins.parse(loss, key="config.objective.losses").kwargs.get(
        "label_smoothing", 0.0
    )
    return ((1 - smoothing) * np.eye(len(e.classes))[e.label] + smoothing / len(e.classes)).astype(
        np.float32
    )
