"""The heads of a frozen backbone for every point of a grid at once: by the trainer's own steps, or at the minimum of the objective.

Refuses nothing: `check.check_sweep` has done so.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medtl import build, finetune, linear, spec
from medtl.base import Examples
from medtl.data import loading
from medtl.evaluation import metrics, predictions
from medtl.parallel import Parallel
from medtl.progress import Progress
from medtl.run import STAGES, Run, batch_sizes, order_seed
from medtl.train import DOMAINS, Step, TrainState

Grid = Mapping[str, np.ndarray]  # field of config.sweep -> f64[H], its value at each point
Place = tuple[int, Run]  # a seed, and the experiment in a cell


def trained(places: Sequence[Place], arm: str, grid: Grid) -> list[np.ndarray]:
    """Trains a head for each place and point, as `Run.outcome` would with the point's values.

    Returns:
      For each place float64[H, n, K], the probabilities of its val rows, by the checkpoint that the run would choose.
    """
    run = places[0][1]
    config = run.config
    domains = DOMAINS if config.arm[arm].joint else DOMAINS[1:]
    steps = run.steps(arm, "target")
    every = max(1, -(-steps // config.evaluation.times))
    params, heads = _started(places, arm)
    template = build.step(
        config,
        "target",
        run.model,
        params=params,
        domains=domains,
        fresh=False,
        steps=steps,
        sizes=run.sizes,
        norm=run.normalization,
        parallel=Parallel("none", run.parallel.devices[:1]),
    )
    data = {
        d: {"features": run.frozen_features(d), "label": run.examples[d].label, "weight": run.examples[d].weight}
        for d in domains
    }
    program = Program.create(
        template, config.stages.target.to_dict(), steps, grid, data, places=len(places), devices=run.parallel.devices
    )
    state, sizes = program.start(
        heads,
        [jax.random.fold_in(jax.random.key(seed), 1 + STAGES.index("target")) for seed, _ in places],
        {d: [len(at.examples[d].indices("train")) for _, at in places] for d in domains},
    )
    orders = _orders(places, domains, every)
    val = [at.examples["target"].indices("val") for _, at in places]
    best = _Best(config, places, val, len(next(iter(grid.values()))))
    progress = Progress(f"{len(places)} x {best.points} heads", steps)
    batch = sum(batch_sizes(config, "target", domains).values())
    for begin in range(0, steps, every):
        end = min(begin + every, steps)
        state = program.advance(state, next(orders), sizes, begin, end)
        progress.count(end, (end - begin) * batch * len(places) * best.points)
        if end == steps or config.checkpoint.select == "best":
            best.take(program.logits(state, val))
        progress.show(end, {})
    if steps == 0:
        best.take(program.logits(state, val))
    return best.probability


def _started(places: Sequence[Place], arm: str) -> tuple[Any, list[Any]]:
    """The parameters that the first place starts from, and those of each place's heads."""
    first, found = None, {}
    for seed, at in places:
        # A source stage that cells share is restored once.
        key = seed, id(at.whole or at)
        if key not in found:
            params = at.start(seed, arm)[0]["params"]
            first, found[key] = first or params, params["heads"]
    return first, [found[seed, id(at.whole or at)] for seed, at in places]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The compiled loop over steps, over R places x H points, of which one axis is spread over the devices.

    Attributes:
      template: the trainer's step; a point's values take the place of its own.
      stage: the fields of `config.stages.target`.
      steps: the length of the stage, for schedules.
      grid: field of config.sweep -> f32[H].
      data: domain -> `features` f32[N, D], `label`, `weight` of all its examples.
      take: int[R'] and int[H'], the places and points, of which the last are repeated up to what the devices divide.
      shape: (R, H).
      sharding: of what is "whole" on each device, and of what has an axis of "places", of "points", or both ("heads").
    """

    template: Step
    stage: Mapping[str, Any]
    steps: int
    grid: Any
    data: Any
    take: tuple[np.ndarray, np.ndarray]
    shape: tuple[int, int]
    sharding: Mapping[str, NamedSharding]

    @classmethod
    def create(
        cls,
        template: Step,
        stage: Mapping[str, Any],
        steps: int,
        grid: Grid,
        data: Any,
        *,
        places: int,
        devices: tuple[jax.Device, ...],
    ) -> Program:
        """Puts the data on the devices; nothing is compiled yet."""
        shape = places, len(next(iter(grid.values())))
        padded = [-(-n // len(devices)) * len(devices) for n in shape]
        axis = int(padded[1] / shape[1] < padded[0] / shape[0])
        take = [np.arange(n) for n in shape]
        take[axis] = np.minimum(np.arange(padded[axis]), shape[axis] - 1)
        mesh = jax.make_mesh((len(devices),), ("grid",), axis_types=(AxisType.Auto,), devices=devices)
        cut: dict[str, tuple[str | None, ...]] = {"whole": (), "places": (), "points": (), "heads": (None, "grid")}
        cut |= {"points": ("grid",)} if axis else {"places": ("grid",), "heads": ("grid",)}
        sharding = {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in cut.items()}
        values = {name: column[take[1]].astype(np.float32) for name, column in grid.items()}
        return cls(
            # Parts of a batch add up to the same gradient; here there is no memory to be saved.
            dataclasses.replace(template, accumulate=1),
            stage,
            steps,
            jax.device_put(values, sharding["points"]),
            jax.device_put(data, sharding["whole"]),
            (take[0], take[1]),
            shape,
            sharding,
        )

    def start(
        self, heads: Sequence[Any], keys: Sequence[jax.Array], sizes: Mapping[str, Sequence[int]]
    ) -> tuple[TrainState, Any]:
        """The state before the first step, leaves [R, H, ...], and the sizes, f32[R], on the devices.

        Args:
          heads: of each place, the parameters of the model's heads.
          keys: of each place, the stage's random key.
          sizes: domain -> of each place, the number of train examples.
        """
        padded = [heads[i] for i in self.take[0]]
        params = {"heads": jax.tree.map(lambda *leaves: np.stack(leaves), *padded)}
        counts = {d: np.asarray(n, np.float32)[self.take[0]] for d, n in sizes.items()}
        params, counts, stacked = jax.device_put(
            (params, counts, jnp.stack(keys)[self.take[0]]), self.sharding["places"]
        )

        def one(params, key, sizes, point):
            return self._step(sizes, point).init(key, {"params": params, "batch_stats": {}})

        over = jax.vmap(jax.vmap(one, (None, None, None, 0)), (0, 0, 0, None))
        return jax.jit(over, out_shardings=self.sharding["heads"])(params, stacked, counts, self.grid), counts

    def advance(self, state: TrainState, order: Any, sizes: Any, begin: int, end: int) -> TrainState:
        """Steps `begin` to `end`; order: domain -> i32[R, at least end - begin, B], the rows of each step. Donates the state."""
        order = jax.device_put({d: rows[self.take[0]] for d, rows in order.items()}, self.sharding["places"])
        return self._compiled[0](state, order, sizes, self.grid, self.data, (begin, end))

    def logits(self, state: TrainState, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each place f32[H, n, K], of these rows of the target."""
        longest = max(map(len, rows))
        filled = np.stack([np.resize(rows[i], longest) for i in self.take[0]]).astype(np.int32)
        filled = jax.device_put(filled, self.sharding["places"])
        out = np.asarray(self._compiled[1](state, filled, self.grid, self.data["target"]["features"]))
        return [out[r, : self.shape[1], : len(rows[r])] for r in range(self.shape[0])]

    def _step(self, sizes: Any, point: Mapping[str, jax.Array]) -> Step:
        """The trainer's step with a point's values, traced, in the place of the config's."""
        values = {name: value for name, value in point.items() if name != "lambda_"}
        stage = types.SimpleNamespace(**{**self.stage, **values})
        optimizer, rate = finetune.optimizer(stage, steps=self.steps, key="config.stages.target")
        objective = dataclasses.replace(self.template.objective, sizes=sizes)
        if "lambda_" in point:
            objective = dataclasses.replace(objective, lambda_=lambda _: point["lambda_"])
        return dataclasses.replace(self.template, optimizer=optimizer, rate=rate, objective=objective)

    @functools.cached_property
    def _compiled(self) -> tuple[Any, Any]:
        def advance(state, order, sizes, point, data, span):
            step = self._step(sizes, point)

            def body(t, state):
                return step(state, {d: _batch(data[d], rows[t - span[0]]) for d, rows in order.items()})[0]

            return jax.lax.fori_loop(span[0], span[1], body, state)

        def logits(state, rows, point, features):
            variables = self._step(dict.fromkeys(self.data, 1.0), point).variables(state)
            batch = {"target": {"features": features[rows], "mask": jnp.ones(len(rows))}}
            return self.template.model.apply(variables, batch, train=False)[0]["target"].logits

        # The order and what it gathers are mapped over places alone: the points of a place share them.
        over = jax.vmap(jax.vmap(advance, (0, None, None, 0, None, None)), (0, 0, 0, None, None, None))
        said = jax.vmap(jax.vmap(logits, (0, None, 0, None)), (0, 0, None, None))
        return jax.jit(over, donate_argnums=0, out_shardings=self.sharding["heads"]), jax.jit(said)


def _batch(data: Mapping[str, jax.Array], rows: jax.Array) -> dict[str, jax.Array]:
    """The batch that `data.loading` would give of these rows."""
    gathered = {name: values[rows] for name, values in data.items()}
    place = jnp.arange(len(rows), dtype=jnp.int32)
    return gathered | {"mask": jnp.ones(len(rows), jnp.float32), "index": rows, "position": place}


def _orders(places: Sequence[Place], domains: tuple[str, ...], every: int) -> Iterator[dict[str, np.ndarray]]:
    """domain -> i32[R, every, B], the rows of the next `every` steps: those of the trainer's batches."""
    sizes = batch_sizes(places[0][1].config, "target", domains)
    streams = {
        d: [
            # Batches of many steps at once, without their features: the places of an endless sequence are the same.
            loading.train_batches(
                at.examples[d],
                "train",
                sizes[d] * every,
                seed=order_seed(seed, "target", d),
                features=np.empty((len(at.examples[d]), 0), np.float32),
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
    """The probabilities of each head's chosen checkpoint: the best on val, the earliest of equals."""

    def __init__(self, config: Any, places: Sequence[Place], val: Sequence[np.ndarray], points: int):
        self._metric = config.checkpoint.metric
        self._targets = [at.examples["target"] for _, at in places]
        self._val = val
        self._score = np.full((len(places), points), -np.inf)
        self.points = points
        self.probability: list[np.ndarray] = []

    def take(self, logits: Sequence[np.ndarray]) -> None:
        """The next evaluation's, for each place f32[H, n, K]."""
        if not self.probability:
            self.probability = [np.full(of_place.shape, np.nan) for of_place in logits]
        for r, of_place in enumerate(logits):
            for h, found in enumerate(of_place):
                if not np.all(np.isfinite(found)):  # the trainer would have stopped here
                    self._score[r, h], self.probability[r][h] = np.inf, np.nan
                    continue
                probability = predictions.probabilities(found, multi_label=self._targets[r].multi_label)
                score = self._rank(r, probability)
                if score > self._score[r, h]:
                    self._score[r, h], self.probability[r][h] = score, probability

    def _rank(self, r: int, probability: np.ndarray) -> float:
        e = self._targets[r]
        value = getattr(metrics.compute(e.label[self._val[r]], probability, classes=e.classes), self._metric)
        value = -value if self._metric in metrics.LOWER_IS_BETTER else value
        return value if math.isfinite(value) else -np.finfo(np.float64).max


def minimised(places: Sequence[Place], arm: str, grid: Grid) -> list[np.ndarray]:
    """The linear heads that minimise the objective + weight_decay / 2 |W|², for each place and point; returns as `trained`."""
    run = places[0][1]
    problem = _problem(places, arm, grid)
    found = linear.solve(problem, devices=run.parallel.devices)
    late = int(np.sum(found.gradient > 1e-3))
    if late:
        print(f"{late} of {found.gradient.size} heads did not converge; a larger weight_decay would help")
    features, said = run.frozen_features("target"), []
    for r, (_, at) in enumerate(places):
        e = at.examples["target"]
        x = features[e.indices("val")]
        logits = [x @ kernel + bias for kernel, bias in zip(found.kernel[:, r], found.bias[:, r], strict=True)]
        said.append(np.stack([predictions.probabilities(z, multi_label=e.multi_label) for z in logits]))
    return said


def _problem(places: Sequence[Place], arm: str, grid: Grid) -> linear.Problem:
    run = places[0][1]
    config = run.config
    joint = config.arm[arm].joint
    # A head of its own for the source has no part in what the target's head minimises.
    domains = DOMAINS if joint and run.model.head_of["source"] == run.model.head_of["target"] else DOMAINS[1:]
    examples = {d: run.examples[d] for d in domains}
    trains = [np.concatenate([at.examples[d].split == "train" for d in domains]) for _, at in places]
    weight = np.concatenate([e.weight for e in examples.values()])
    [term] = config.objective.losses.values()
    points = len(next(iter(grid.values())))
    strength = grid.get("lambda_", np.full(points, config.objective.lambda_)) if joint else np.ones(points)
    scale = np.full((points, len(places), len(domains)), term.weight)
    for i, d in enumerate(domains):
        if config.objective.reduction == "mean":
            scale[..., i] /= [len(at.examples[d].indices("train")) for _, at in places]
        if d == "target":
            scale[..., i] *= strength[:, None]
    multi_label = examples["target"].multi_label
    return linear.Problem(
        features=np.concatenate([run.frozen_features(d) for d in domains]),
        target=np.concatenate([_target(e, term.loss) for e in examples.values()]),
        kind="sigmoid" if multi_label else "softmax",
        part=np.repeat(np.arange(len(domains)), [len(e) for e in examples.values()]),
        rows=np.stack(trains) * weight,
        scale=scale.astype(np.float32),
        penalty=grid.get("weight_decay", np.full(points, config.stages.target.weight_decay)).astype(np.float32),
    )


def _target(e: Examples, loss: str) -> np.ndarray:
    """f32[N, K]: one-hot and smoothed, or several diagnoses as they are."""
    if e.multi_label:
        return e.label
    smoothing = spec.parse(loss, key="config.objective.losses").kwargs.get("label_smoothing", 0.0)
    return ((1 - smoothing) * np.eye(len(e.classes))[e.label] + smoothing / len(e.classes)).astype(np.float32)
