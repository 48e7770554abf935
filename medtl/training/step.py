"""The training step and the loop around it: short enough to read in one sitting.

The step is a pure function of (state, batch), the same under pmap, over a mesh and on one device. Every random number is
folded from (seed, step, place in the global batch) and the order of the data from (seed, epoch), so a run that was stopped
and resumed equals the run that was not.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from medtl.data import augment
from medtl.errors import UserError
from medtl.evaluation import plain
from medtl.examples import Normalization
from medtl.files import write_text
from medtl.models.model import Model
from medtl.training import optimizers
from medtl.training.checkpoint import Store
from medtl.training.objective import Batch, Objective
from medtl.training.progress import Progress

DOMAINS = ("source", "target")
Feed = Callable[["TrainState", int], tuple["TrainState", Any, int, int]]
"""`Streamed` or `Resident`: takes (state, the most steps), gives the new state, metrics, and how many steps and examples."""

AHEAD = 2  # dispatches the host may be ahead of the device
CHUNK = 64  # steps in one dispatch, at most, where the data lies on the device
SAVE_SECONDS = (
    30.0  # an evaluation that is not the best is saved, to resume from, if nothing was for so long
)


@flax.struct.dataclass
class TrainState:
    """Everything a stage needs to go on.

    Attributes:
      step: i32[], optimizer steps done.
      key: u32[2], the data of the stage's random key.
      params: `{"backbone": ..., "heads": ...}`.
      batch_stats: `{"backbone": ...}`.
      opt_state: of the moving parameters only.
      ema: the moving average of the moving parameters, flat; empty where it is off.
      given: what the step takes from here instead of having it compiled in, see `Step.at`; empty: nothing.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    given: Any = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """What makes one training step; its fields are static under jit, which knows it by identity.

    Attributes:
      model: the model.
      objective: the objective.
      optimizer: over flat parameters.
      moving: paths of the parameters that train.
      augmentation: of training images.
      normalization: of all images.
      batch_norm: "batch" or "frozen".
      rate: the learning rate over steps, for the log.
      remake: fields of `config.stages.NAME` by name -> optimizer and rate with these in the place of the config's.
      accumulate: the batch is worked through in so many parts; its size on each device must be a multiple.
      ema: decay of the moving average; 0: none.
      axis_name: the pmap axis to sum over, None under jit.
    """

    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    moving: frozenset[optimizers.Path]
    augmentation: augment.Augmentation
    normalization: Normalization
    batch_norm: str = "batch"
    rate: Callable[[Any], Any] = lambda step: 0.0
    remake: (
        Callable[[Mapping[str, Any]], tuple[optax.GradientTransformation, Callable[[Any], Any]]]
        | None
    ) = None
    accumulate: int = 1
    ema: float = 0.0
    axis_name: str | None = None

    @property
    def __name__(self) -> str:
        """What traces and logs call the compiled program."""
        return "train_step"

    def at(self, given: Mapping[str, Any]) -> Step:
        """The step with other numbers, which may be traced, so that one compiled program serves all of them.

        Args:
          given: `lambda_` f32[]; `sizes`, domain -> f32[], of the training sets; any other name is a field of the stage, f32[].
        """
        fields = {name: value for name, value in given.items() if name not in ("lambda_", "sizes")}
        objective = dataclasses.replace(
            self.objective, sizes=given.get("sizes", self.objective.sizes)
        )
        if "lambda_" in given:
            objective = dataclasses.replace(objective, lambda_=lambda _: given["lambda_"])
        optimizer, rate = self.optimizer, self.rate
        if fields:
            assert self.remake is not None
            optimizer, rate = self.remake(fields)
        return dataclasses.replace(self, objective=objective, optimizer=optimizer, rate=rate)

    def init(
        self, key: jax.Array, variables: Mapping[str, Any], given: Mapping[str, Any] | None = None
    ) -> TrainState:
        """The state before the first step, from variables that hold their pretrained values already; `given` as in `at`."""
        moving, _ = optimizers.split(variables["params"], self.moving)
        given = dict(given or {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(key),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=self.at(given).optimizer.init(moving),
            ema=moving if self.ema > 0 else {},
            given=given,
        )

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimizer step.

        Args:
          state: the state.
          batch: domain -> `image` uint8[B, H, W, C] (or `features` f32[B, D]), `label`, `mask`, `weight`, `position`.

        Returns:
          The new state, and f32[] metrics by name: the objective's parts, `lambda`, `learning_rate`, `gradient_norm`,
          `update_norm`.
        """
        if state.given:
            new, metrics = self.at(state.given)(dataclasses.replace(state, given={}), batch)
            return dataclasses.replace(new, given=state.given), metrics
        moving, resting = optimizers.split(state.params, self.moving)
        counts = self._sum(self.objective.counts(batch))
        key = jax.random.wrap_key_data(state.key)

        def loss(moving, batch_stats, part):
            inputs = prepare(
                part,
                normalization=self.normalization,
                augmentation=self.augmentation,
                key=key,
                step=state.step,
            )
            variables = {"params": optimizers.merge(moving, resting), "batch_stats": batch_stats}
            outputs, batch_stats = self.model.apply(
                variables, inputs, train=True, batch_norm=self.batch_norm
            )
            value, parts = self.objective(outputs, part, step=state.step, counts=counts)
            return value, (parts, batch_stats)

        gradient = jax.grad(loss, has_aux=True)
        if self.accumulate == 1:
            gradients, (parts, batch_stats) = gradient(moving, state.batch_stats, batch)
        else:

            def add(carry, part):
                # A part begins when the one before it has ended; unrolled, all parts would hold their memory at once.
                (batch_stats, total), part = jax.lax.optimization_barrier((carry, part))
                gradients, (parts, batch_stats) = gradient(moving, batch_stats, part)
                return (batch_stats, jax.tree.map(jnp.add, total, (gradients, parts))), None

            pieces = jax.tree.map(self._cut, batch)
            first = jax.tree.map(lambda x: x[0], pieces)
            shapes = jax.eval_shape(gradient, moving, state.batch_stats, first)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][0]))
            # XLA's CPU backend runs the gradients of convolutions ten times as slowly within a loop.
            unroll = jax.default_backend() == "cpu"
            (batch_stats, (gradients, parts)), _ = jax.lax.scan(
                add, (state.batch_stats, zeros), pieces, unroll=self.accumulate if unroll else 1
            )
        gradients, parts = self._sum((gradients, parts))

        with jax.named_scope("optimizer"):
            updates, opt_state = self.optimizer.update(gradients, state.opt_state, moving)
            moving = optax.apply_updates(moving, updates)
            ema = state.ema
            if self.ema > 0:
                ema = jax.tree.map(
                    lambda old, new: self.ema * old + (1 - self.ema) * new, ema, moving
                )
        metrics = {
            **parts,
            "learning_rate": jnp.asarray(self.rate(state.step), jnp.float32),
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),  # NaN in the new parameters shows here first
        }
        if len(batch) > 1:
            metrics["lambda"] = self.objective.lambda_at(state.step)
        new = TrainState(
            step=state.step + 1,
            key=state.key,
            params=optimizers.merge(moving, resting),
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
        )
        return new, metrics

    def variables(self, state: TrainState) -> dict[str, Any]:
        """What evaluation uses, and what a stage hands on: the moving average where there is one."""
        params = state.params
        if self.ema > 0:
            _, resting = optimizers.split(params, self.moving)
            params = optimizers.merge(state.ema, resting)
        return {"params": params, "batch_stats": state.batch_stats}

    def _sum(self, tree: Any) -> Any:
        return jax.lax.psum(tree, self.axis_name) if self.axis_name else tree

    def _cut(self, x: jax.Array) -> jax.Array:
        # Every k-th row in a part, so that over a mesh each device keeps its own rows.
        return jnp.swapaxes(x.reshape(-1, self.accumulate, *x.shape[1:]), 0, 1)


def prepare(
    batch: Batch,
    *,
    normalization: Normalization,
    augmentation: augment.Augmentation | None = None,
    key: jax.Array | None = None,
    step: jax.Array | int = 0,
) -> dict[str, dict[str, jax.Array]]:
    """Host batches -> the model's inputs: augmented (where a key is given) and normalised images, dropout keys, masks."""
    inputs: dict[str, dict[str, jax.Array]] = {}
    for domain, part in batch.items():
        inputs[domain] = {"mask": part["mask"]}
        keys = None
        if key is not None:
            keys = augment.example_keys(
                jax.random.fold_in(key, DOMAINS.index(domain)), step, part["position"]
            )
            inputs[domain]["key"] = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
        if "features" in part:
            inputs[domain]["features"] = part["features"]
            continue
        image = part["image"]
        if keys is not None and augmentation is not None and not augmentation.is_identity:
            with jax.named_scope("augment"):
                image = augment.augment(
                    image, jax.vmap(lambda k: jax.random.fold_in(k, 0))(keys), augmentation
                )
        with jax.named_scope("normalize"):
            inputs[domain]["image"] = augment.normalize(image, normalization)
    return inputs


def make_eval_step(
    model: Model, domain: str, normalization: Normalization
) -> Callable[[Any, Mapping[str, Any]], jax.Array]:
    """`(variables, batch of one domain) -> logits f32[B, K]`, pure."""

    def step(variables: Any, batch: Mapping[str, Any]) -> jax.Array:
        outputs, _ = model.apply(
            variables, prepare({domain: batch}, normalization=normalization), train=False
        )
        return outputs[domain].logits

    return step


def run_batches(
    step: Callable[[Any, Any], np.ndarray],
    variables: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    progress: Progress | None = None,
) -> np.ndarray:
    """[N, ...], what the compiled `step(variables, batch)` gives for the real rows of all batches, in order."""
    found, done = [], 0
    for batch in batches:
        rows = int(batch["mask"].sum())
        found.append(step(variables, batch)[:rows])
        done += rows
        if progress is not None:
            progress.count(done, rows)
            progress.show(done, {})
    return np.concatenate(found)


def make_loop(
    step: Callable[[TrainState, Batch], tuple[TrainState, Any]],
) -> Callable[..., tuple[TrainState, Any]]:
    """Several steps in one dispatch, over data that lies on the device.

    Returns:
      `(state, data, rows, n) -> (state, metrics)`: `data` is domain -> arrays [N, ...], `rows` domain -> `index`, `mask` and
      `position` [steps, B], of which the first n steps are taken; metrics are [steps], with zeros after n. The number n is
      an argument of the one compiled program, so a run does not depend on where it was cut into dispatches.
    """

    def loop(state: TrainState, data: Any, rows: Any, n: Any) -> tuple[TrainState, Any]:
        def batch_at(i: Any) -> Any:
            at = jax.tree.map(lambda x: x[i], rows)
            return {
                d: {**{name: x[at[d]["index"]] for name, x in data[d].items()}, **at[d]}
                for d in data
            }

        shapes = jax.eval_shape(lambda s: step(s, batch_at(0))[1], state)
        most = len(jax.tree.leaves(rows)[0])
        metrics = jax.tree.map(lambda s: jnp.zeros((most, *s.shape), s.dtype), shapes)

        def body(i: Any, carry: Any) -> Any:
            state, metrics = carry
            state, found = step(state, batch_at(i))
            return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, found)

        return jax.lax.fori_loop(0, n, body, (state, metrics))

    return loop


@dataclasses.dataclass
class Streamed:
    """One step a dispatch, on batches that come from the host.

    Attributes:
      step: the compiled step.
      batches: from the state's step on: (batch for the devices, number of examples).
      waited: told the seconds in which the devices had no batch to work on.
    """

    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    batches: Iterator[tuple[Any, int]]
    waited: Callable[[float], None] = lambda seconds: None
    _metrics: Any = None

    def __call__(self, state: TrainState, most: int) -> tuple[TrainState, Any, int, int]:
        """The new state, metrics, and the number of steps and of examples that were taken."""
        began = time.monotonic()
        batch, examples = next(self.batches)
        # While a step that was dispatched before still runs, the host waits at no cost.
        if all(x.is_ready() for x in jax.tree.leaves(self._metrics)):
            self.waited(time.monotonic() - began)
        state, self._metrics = self.step(state, batch)
        return state, self._metrics, 1, examples


@dataclasses.dataclass(frozen=True)
class Resident:
    """Up to `CHUNK` steps a dispatch, on data that lies on the devices.

    Attributes:
      loop: the compiled `make_loop`.
      data: domain -> arrays [N, ...], on the devices.
      rows: from the state's step on: (rows of one batch, cut for the devices; number of examples).
      stack: rows of several batches -> one tree.
    """

    loop: Callable[..., tuple[TrainState, Any]]
    data: Any
    rows: Iterator[tuple[Any, int]]
    stack: Callable[[Any], Any]

    def __call__(self, state: TrainState, most: int) -> tuple[TrainState, Any, int, int]:
        """As `Streamed`; the metrics have a further axis, of the steps."""
        n = min(most, CHUNK)
        taken = list(itertools.islice(self.rows, n))
        # Filled up, so that every chunk has the shape of the one program; what is not taken is not looked at.
        rows = self.stack([row for row, _ in taken] + [taken[-1][0]] * (CHUNK - n))
        return (
            *self.loop(state, self.data, rows, np.int32(n)),
            n,
            sum(examples for _, examples in taken),
        )


def fit(
    state: TrainState,
    feed: Feed,
    *,
    steps: int,
    every: int,
    save_every: int,
    evaluate: Callable[[TrainState], tuple[dict[str, float], float | None]],
    record: Mapping[str, Any],
    store: Store,
    progress: Progress,
) -> TrainState:
    """Trains from `state.step` to `steps`, evaluating, logging to `log.jsonl` and saving as it goes.

    Args:
      state: on the devices; its buffers are donated.
      feed: takes one step or several.
      steps: the last step.
      every: evaluate after each so many steps, and after the last; what is best, or last, is saved, and what else is
        evaluated at most every `SAVE_SECONDS`.
      save_every: save after each so many steps, too (0: not).
      evaluate: state -> metrics for the log, and the score that ranks checkpoints (None: not ranked).
      record: goes into each checkpoint.
      store: the stage's checkpoints.
      progress: where the user looks.

    Raises:
      UserError: a loss part is NaN or infinite; the last good checkpoint stays.
    """
    at = int(state.step)
    with _Log(store.folder / "log.jsonl", at) as log:
        pending: list[tuple[int, int, Any]] = []
        flushed = saved = time.monotonic()
        while at < steps:
            due = min(
                steps - at,
                every - at % every,
                save_every - at % save_every if save_every else steps,
            )
            state, metrics, taken, examples = feed(state, due)
            pending.append((at, taken, metrics))
            at += taken
            if len(pending) > AHEAD:
                # Dispatch returns at once: without this the host would queue hundreds of batches on the device.
                jax.block_until_ready(pending[-1 - AHEAD][2])
            evaluating = at == steps or at % every == 0
            asked = save_every > 0 and at % save_every == 0
            progress.count(at, examples)
            if evaluating or asked or time.monotonic() - flushed > 0.5:
                values = _flush(pending, log, store)
                flushed = time.monotonic()
                if not evaluating:
                    progress.show(at, values)
            score = None
            if evaluating:
                with progress.apart():
                    found, score = evaluate(state)
                if found:
                    log.write({"step": at, "val": found})
                    log.flush()
                    progress.line(at, found)
            late = evaluating and time.monotonic() - saved > SAVE_SECONDS
            if asked or late or at == steps or store.improves(score):
                with progress.apart():
                    store.save(at, state, record, score=score)
                saved = time.monotonic()
    if steps == 0 and store.last_step is None:
        store.save(0, state, record, score=evaluate(state)[1])
    store.wait()
    return state


def _flush(pending: list[tuple[int, int, Any]], log: _Log, store: Store) -> dict[str, float]:
    """Fetches the metrics that have gathered, refuses NaN, logs them; returns the last."""
    values: dict[str, float] = {}
    for before, taken, metrics in jax.device_get(pending):
        of_each = {name: np.atleast_1d(found) for name, found in metrics.items()}
        for i in range(taken):
            values = {name: float(found[i]) for name, found in of_each.items()}
            _check_finite(before + i + 1, values, store)
            log.write({"step": before + i + 1, **values})
    log.flush()
    pending.clear()
    return values


def _check_finite(at: int, values: Mapping[str, float], store: Store) -> None:
    wrong = [name for name, value in values.items() if not np.isfinite(value)]
    if wrong:
        store.wait()
        kept = (
            f"{store.folder}/checkpoints/{store.last_step}"
            if store.last_step is not None
            else "none yet"
        )
        parts = sorted(wrong, key=lambda name: ("/" not in name, name))
        raise UserError(
            f"step {at}: {', '.join(f'{n} is {values[n]}' for n in parts[:3])}. A lower learning_rate or clip_norm may help. "
            f"Last good checkpoint: {kept}"
        )


class _Log:
    """One JSON object a line; lines past the step at which a run resumes are dropped."""

    def __init__(self, path: Path, step: int):
        kept = ""
        if step > 0 and path.exists():
            for line in path.read_text().splitlines(keepends=True):
                if not line.endswith("\n") or json.loads(line)["step"] > step:
                    break
                kept += line
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, kept)
        self._path = path

    def __enter__(self) -> _Log:
        self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(plain(entry), allow_nan=False) + "\n")

    def flush(self) -> None:
        self._file.flush()
