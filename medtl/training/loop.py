"""The training loop, and the feeds that bring it batches.

A feed takes steps from data that is kept on the devices (`Resident`) or from batches that a thread
copies there (`Streamed`). Both give the same rows in the same order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from medtl.data import loading
from medtl.data.order import Part
from medtl.examples import Examples
from medtl.training import hosts
from medtl.training.checkpoint import Store
from medtl.training.conflicts import Watch
from medtl.training.log import Log, Logger, flush
from medtl.training.objective import DOMAINS, Batch
from medtl.training.parallel import Parallel
from medtl.training.progress import Progress
from medtl.training.step import TrainState
from medtl.training.stopping import Request, deferred

STAGES = ("source", "target")
AHEAD = 2  # dispatches the host may be ahead of the device
CHUNK = 64  # steps in one dispatch, at most, where the data is on the device
SAVE_SECONDS = 30.0  # save an evaluated state that is not the best after this time without a save


@dataclasses.dataclass(frozen=True)
class Taken:
    """The result of one dispatch.

    Attributes:
      state: the new state.
      metrics: f32[] by name, or f32[steps] after several steps.
      steps: the number of steps taken.
      examples: the number of examples in them.
    """

    state: TrainState
    metrics: Any
    steps: int
    examples: int


class Feed(Protocol):
    """Takes steps of a training stage."""

    def __call__(self, state: TrainState, most: int) -> Taken:
        """Take at least one step and at most `most`."""

    def close(self) -> None:
        """Stop what runs in the background."""


class Evaluate(Protocol):
    """Evaluates a state on val."""

    def __call__(self, state: TrainState) -> tuple[dict[str, float], float | None]:
        """Return metrics for the log, and the score that ranks checkpoints (None: not ranked)."""


def make_loop(step: Callable[[TrainState, Batch], tuple[TrainState, Any]]) -> Callable[..., Any]:
    """Return a function that takes several steps in one dispatch, over data on the device.

    Returns:
      `(state, data, rows, n) -> (state, metrics)`: `data` is domain -> arrays [N, ...]; `rows` is
      domain -> `index`, `mask` and `position` [steps, B], of which the first n steps are taken;
      metrics are [steps], with zeros after n. The number n is an argument of the one compiled
      program, so a run does not depend on how it was divided into dispatches.
    """

    def loop(state: TrainState, data: Any, rows: Any, n: Any) -> tuple[TrainState, Any]:
        def batch_at(i: Any) -> Any:
            chosen = jax.tree.map(lambda x: x[i], rows)
            return {d: {**loading.gather(data[d], chosen[d]["index"]), **chosen[d]} for d in data}

        shapes = jax.eval_shape(lambda s: step(s, batch_at(0))[1], state)
        most = len(jax.tree.leaves(rows)[0])
        metrics = jax.tree.map(lambda s: jnp.zeros((most, *s.shape), s.dtype), shapes)

        def body(i: Any, carry: Any) -> Any:
            state, metrics = carry
            state, new = step(state, batch_at(i))
            return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, new)

        return jax.lax.fori_loop(0, n, body, (state, metrics))

    return loop


@dataclasses.dataclass
class Streamed:
    """One step a dispatch, on batches that come from the host.

    Attributes:
      step: the compiled step.
      batches: from the state's step on: (batch for the devices, number of examples).
      waited: called with the seconds in which the devices had no batch to work on.
    """

    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    batches: loading.Prefetch
    waited: Callable[[float], None] = lambda seconds: None
    _metrics: Any = None

    def __call__(self, state: TrainState, most: int) -> Taken:
        """Take one step."""
        began = time.monotonic()
        batch, examples = next(self.batches)
        # Waiting costs nothing while a step that was dispatched before still runs.
        if all(x.is_ready() for x in jax.tree.leaves(self._metrics)):
            self.waited(time.monotonic() - began)
        state, self._metrics = self.step(state, batch)
        return Taken(state, self._metrics, 1, examples)

    def close(self) -> None:
        """Stop the thread that makes batches."""
        self.batches.close()


@dataclasses.dataclass(frozen=True)
class Resident:
    """Up to `CHUNK` steps a dispatch, on data that is kept on the devices.

    Attributes:
      loop: the compiled `make_loop`.
      data: domain -> columns [N, ...], on the devices.
      rows: from the state's step on: (rows of one batch, cut for the devices; number of examples).
      stack: rows of several batches -> one tree.
    """

    loop: Callable[..., tuple[TrainState, Any]]
    data: Any
    rows: Iterator[tuple[Any, int]]
    stack: Callable[[Any], Any]

    def __call__(self, state: TrainState, most: int) -> Taken:
        """Take up to `most` steps; metrics get a leading axis for the steps."""
        n = min(most, CHUNK)
        taken = list(itertools.islice(self.rows, n))
        # Filled up, so that every chunk has the shape of the one program, which skips the rest.
        rows = self.stack([row for row, _ in taken] + [taken[-1][0]] * (CHUNK - n))
        state, metrics = self.loop(state, self.data, rows, np.int32(n))
        return Taken(state, metrics, n, sum(examples for _, examples in taken))

    def close(self) -> None:
        """Do nothing: nothing runs in the background."""


def batch_sizes(config: Any, stage: str, domains: Sequence[str]) -> dict[str, int]:
    """Return for each domain the number of its examples in a step of the training stage."""
    c = config.stages[stage]
    return {d: c.source_batch_size or c.batch_size if d != stage else c.batch_size for d in domains}


def order_seed(seed: int, stage: str, domain: str) -> int:
    """Return the seed of a domain's data order in a stage; all arms share it."""
    return seed * 4 + 2 * STAGES.index(stage) + DOMAINS.index(domain)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a training stage's batches come from.

    Attributes:
      config: the experiment's.
      parallel: the devices.
      examples: domain -> examples, for the domains that the stage reads.
      sampler: of `medtl.data.samplers`, or the user's.
      seed: the experiment's.
      stage: "source" or "target".
      start: the first step.
    """

    config: Any
    parallel: Parallel
    examples: Mapping[str, Examples]
    sampler: Any
    seed: int
    stage: str
    start: int

    def streamed(
        self,
        step: Callable[..., Any],
        replaced: Mapping[str, Mapping[str, np.ndarray]],
        waited: Callable[[float], None],
    ) -> Streamed:
        """Return a feed whose thread makes batches and copies them to the devices.

        Args:
          step: the compiled step.
          replaced: domain -> arrays that replace inputs, see `loading.columns`.
          waited: called with the seconds in which the devices had nothing to do.
        """
        placed = ((self.parallel.put(batch), n) for batch, n in self.batches(replaced))
        return Streamed(step, loading.Prefetch(placed), waited)

    def batches(
        self, replaced: Mapping[str, Mapping[str, np.ndarray]]
    ) -> Iterator[tuple[Any, int]]:
        """Return batches without end, cut for the devices, and the number of their examples."""
        streams = {
            d: loading.train_batches(
                e,
                "train",
                self._sizes[d],
                **self._order(d),
                workers=self.config.data.workers,
                replaced=replaced.get(d),
                part=self._part(d),
            )
            for d, e in self.examples.items()
        }
        return self._sharded(streams)

    def resident(self, loop: Callable[..., Any], data: Mapping[str, Any]) -> Resident:
        """Return a feed over `data`, domain -> columns [N, ...], which is on the devices."""
        streams = {
            d: loading.train_rows(e, "train", self._sizes[d], **self._order(d), part=self._part(d))
            for d, e in self.examples.items()
        }
        return Resident(loop, data, self._sharded(streams), self.parallel.stack)

    @property
    def _sizes(self) -> dict[str, int]:
        return batch_sizes(self.config, self.stage, tuple(self.examples))

    def _order(self, domain: str) -> dict[str, Any]:
        return {
            "seed": order_seed(self.seed, self.stage, domain),
            "start_step": self.start,
            "sampler": self.sampler,
            "domain": domain,
        }

    def _sharded(self, streams: Mapping[str, Iterator[Any]]) -> Iterator[tuple[Any, int]]:
        """Yield batches of all domains, cut for the devices, and the number of their examples."""
        examples = sum(self._sizes.values())
        while True:
            batch = {d: next(stream) for d, stream in streams.items()}
            yield self.parallel.shard(batch, multiple=self._accumulate), examples

    @property
    def _accumulate(self) -> int:
        return self.config.stages[self.stage].accumulate

    def _part(self, domain: str) -> Part | None:
        """Return the rows of each batch that this process reads."""
        return self.parallel.part(self._sizes[domain], multiple=self._accumulate)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When a training stage evaluates and saves.

    Attributes:
      steps: the last step.
      evaluate_every: steps between evaluations; the last step is always evaluated.
      save_every: steps between saves; 0: the best, the last, and one every `SAVE_SECONDS`.
    """

    steps: int
    evaluate_every: int
    save_every: int = 0

    def until_due(self, step: int) -> int:
        """Return the number of steps until something is due."""
        to_save = self.save_every - step % self.save_every if self.save_every else self.steps
        return min(self.steps - step, self.evaluate_every - step % self.evaluate_every, to_save)


def fit(
    state: TrainState,
    feed: Feed,
    schedule: Schedule,
    *,
    evaluate: Evaluate,
    record: Mapping[str, Any],
    store: Store,
    progress: Progress,
    loggers: Sequence[Logger] = (),
) -> TrainState:
    """Train from `state.step` to the last step; evaluate, log and save on the way.

    The loop owns the feed and the loggers and closes them, also after an error: a thread that
    makes batches must not outlive it.

    Args:
      state: on the devices; its buffers are donated.
      feed: takes steps.
      schedule: when to evaluate and save.
      evaluate: the evaluation on val.
      record: goes into each checkpoint.
      store: the training stage's checkpoints.
      progress: the line on the terminal.
      loggers: metric writers beside `log.jsonl`.

    Returns:
      The last state, on the devices.

    Raises:
      DivergedError: a loss part is NaN or infinite; the last good checkpoint stays.
      Stopped: SIGTERM or Ctrl-C came; the state after the step in progress is saved.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(deferred())
        stack.callback(feed.close)
        for logger in loggers:
            stack.callback(logger.close)
        path, first = store.folder / "log.jsonl" if hosts.is_first() else None, int(state.step)
        log = stack.enter_context(Log(path, first, loggers))
        watch = Watch(path, first - first % max(schedule.evaluate_every, 1))
        log.loggers.append(watch)
        state = _steps(state, feed, schedule, evaluate, record, store, progress, log, watch, stop)
    if schedule.steps == 0 and store.last_step is None:
        store.save(0, state, record, score=evaluate(state)[1])
    store.wait()
    stop.signal_number = int(hosts.largest(stop.signal_number or 0)) or None
    if stop:
        raise stop.stopped()
    return state


def _steps(
    state: TrainState,
    feed: Feed,
    schedule: Schedule,
    evaluate: Evaluate,
    record: Mapping[str, Any],
    store: Store,
    progress: Progress,
    log: Log,
    watch: Watch,
    stop: Request,
) -> TrainState:
    step = int(state.step)
    pending: list[tuple[int, int, Any]] = []  # step before, steps, metrics
    flushed = saved = time.monotonic()
    meetings = hosts.Meetings(step)
    while step < schedule.steps:
        taken = feed(state, min(schedule.until_due(step), meetings.until(step, schedule.steps)))
        # The old state's buffers were donated: from here on only the new state exists.
        state = taken.state
        pending.append((step, taken.steps, taken.metrics))
        step += taken.steps
        if len(pending) > AHEAD:
            # Dispatch returns at once; without this the host would queue hundreds of batches.
            jax.block_until_ready(pending[-1 - AHEAD][2])
        last = step == schedule.steps
        evaluating = last or step % schedule.evaluate_every == 0
        met, signal = meetings.hold(step, stop.signal_number or 0, taken.metrics)
        save_due = bool(signal) or (schedule.save_every > 0 and step % schedule.save_every == 0)
        progress.count(step, taken.examples)
        # Metrics are checked for NaN before anything is evaluated or saved.
        # Several processes check at the same steps, so that all of them end for the same reason.
        is_late = met if hosts.count() > 1 else time.monotonic() - flushed > 0.5
        if evaluating or save_due or is_late:
            values = flush(pending, log, store)
            flushed = time.monotonic()
            if not evaluating:
                progress.show(step, values)
        score, late = None, False
        if evaluating:
            with progress.apart():
                metrics, score = evaluate(state)
                late = time.monotonic() - saved > SAVE_SECONDS
                score, late = hosts.agreed((score, late))
            if metrics:
                log.write_validation(step, metrics)
                progress.line(step, metrics)
            if finding := watch.finding(step):
                log.write_note(step, finding)
                progress.note(finding)
        # The log is written before the checkpoint: a resumed run drops the lines after it.
        if save_due or late or last or store.improves(score):
            with progress.apart():
                store.save(step, state, record, score=score)
            saved = time.monotonic()
        if signal:
            store.wait()
            stop.signal_number = signal  # another process may have got it
            raise stop.stopped(f"step {step} is saved; the same command resumes")
    return state
