"""`--profile`: a trace of some training steps, and the operations on which their time goes.

The trace opens in Perfetto and XProf. The table counts time on the clock: at every instant it is shared equally between the
threads, or streams, that work, and each part goes to the innermost operation there, so that nothing is counted twice and
what is missing from 100 % was spent outside of operations. An operation of which the compiled program does not tell where
it comes from keeps the name that XLA gave it.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from medtl import files
from medtl.profiling import hlo
from medtl.training import parallel
from medtl.training.step import Feed, Resident, TrainState

STEPS = 3  # streamed steps in a trace; of resident data it holds one dispatch
WARM_UP = 2  # dispatches before it, which compile
SHOWN = 10


class Span(NamedTuple):
    """What a thread, or a stream of a device, does from `start` to `end`, in nanoseconds."""

    start: float
    end: float
    what: Hashable


class Profile:
    """Traces the first stage that trains.

    Args:
      folder: where the trace and `operations.txt` go.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._taken = False

    def around(self, feed: Feed, title: str, *, left: int) -> Feed:
        """The feed, which traces itself once if this is the first stage that can be traced; its numbers are the same.

        Args:
          feed: what takes the steps of a stage.
          title: names the stage.
          left: how many steps it will take; of one alone, which compiles, there would be nothing to see.
        """
        if self._taken or left < 2:
            return feed
        self._taken = True
        return _Traced(feed, self._folder, title, warm_up=min(WARM_UP, left - 1))

    def close(self) -> None:
        """Says so if nothing was traced."""
        if not self._taken:
            print(
                "profile: nothing was traced: no stage had two steps left to train (the first one compiles); "
                "a run that is done needs another --workdir"
            )


class _Traced:
    """A feed that traces some of its steps and says where their time went; before and after it is the feed itself."""

    def __init__(self, feed: Feed, folder: Path, title: str, *, warm_up: int):
        self._feed, self._folder, self._title = feed, folder, title
        self._warm_up = warm_up
        self._done = False

    def __call__(self, state: TrainState, most: int) -> tuple[TrainState, Any, int, int]:
        if self._done:
            return self._feed(state, most)
        if self._warm_up > 0:
            self._warm_up -= 1
            return self._feed(state, 1)
        self._done = True
        return self._trace(state, most)

    def _trace(self, state: TrainState, most: int) -> tuple[TrainState, Any, int, int]:
        feed: Any = self._feed
        field = "loop" if isinstance(feed, Resident) else "step"
        compiled = getattr(feed, field)
        arguments: list[Any] = []

        def remembered(state: TrainState, *rest: Any) -> Any:
            arguments[:] = rest
            return compiled(state, *rest)

        feed = dataclasses.replace(feed, **{field: remembered})
        dispatched: list[tuple[Any, int, int]] = []
        steps = 0
        jax.block_until_ready(state)
        with _tracing(self._folder):
            began = time.perf_counter()
            while steps < min(STEPS, most):
                state, found, taken, examples = feed(state, most - steps)
                dispatched.append((found, taken, examples))
                steps += taken
            jax.block_until_ready((state, dispatched))
            seconds = time.perf_counter() - began
        text = (
            compiled.lower(state, *arguments).compile(parallel.compiler_options()).as_text() or ""
        )
        self._report(text, state.params, steps, seconds)
        metrics = [
            jax.tree.map(lambda x, n=n: np.atleast_1d(x)[:n], found)
            for found, n, _ in jax.device_get(dispatched)
        ]
        return (
            state,
            jax.tree.map(lambda *x: np.concatenate(x), *metrics),
            steps,
            sum(n for *_, n in dispatched),
        )

    def _report(self, text: str, params: Any, steps: int, seconds: float) -> None:
        newest = max(
            (self._folder / "plugins" / "profile").iterdir(),
            key=lambda folder: folder.stat().st_mtime_ns,
        )
        times = clock_time(
            threads(jax.profiler.ProfileData.from_file(str(next(newest.glob("*.xplane.pb")))))
        )
        shapes = {path: value.shape for path, value in traverse_util.flatten_dict(params).items()}
        shown = table(
            times, hlo.operations(text, shapes), title=self._title, steps=steps, seconds=seconds
        )
        files.write_text(self._folder / "operations.txt", shown + "\n")
        if sys.stdout.isatty():
            print()  # the line of the progress stands open
        print(shown)
        print(
            f"trace: {newest / 'perfetto_trace.json.gz'} opens in https://ui.perfetto.dev, {self._folder} in XProf"
        )


@contextlib.contextmanager
def _tracing(folder: Path) -> Iterator[None]:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of a Python function would be an event
    with jax.profiler.trace(str(folder), create_perfetto_trace=True, profiler_options=options):
        yield


def innermost(spans: Iterable[Span]) -> Iterator[Span]:
    """Cuts spans of one thread, which may lie in each other, into spans in order that do not: the innermost at each instant."""
    open_: list[Span] = []
    at = -math.inf

    def close(until: float) -> Iterator[Span]:
        nonlocal at
        while open_ and open_[-1].end <= until:
            span = open_.pop()
            if at < span.end:
                yield Span(at, span.end, span.what)
                at = span.end

    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        yield from close(span.start)
        if open_ and at < span.start:
            yield Span(at, span.start, open_[-1].what)
        at = max(at, span.start)
        open_.append(span)
    yield from close(math.inf)


def clock_time(threads: Iterable[Iterable[Span]]) -> dict[Any, float]:
    """Nanoseconds for each `what`: every instant is shared equally between the threads that do something.

    Args:
      threads: spans of each, which may lie in each other; an instant counts for the innermost.
    """
    edges = []
    for spans in threads:
        for start, end, what in innermost(spans):
            edges += [(start, 1, what), (end, -1, what)]
    edges.sort(key=lambda edge: edge[:2])
    times: dict[Any, float] = collections.defaultdict(float)
    working: collections.Counter[Any] = collections.Counter()
    before = 0.0
    for at, change, what in edges:
        total = working.total()
        if at > before and total:
            for other, n in working.items():
                times[other] += (at - before) * n / total
        before = at
        working[what] += change
        if not working[what]:
            del working[what]
    return dict(times)


def threads(data: Any) -> list[list[Span]]:
    """The operations in a trace, by their HLO names: of each stream of the devices, or of each thread of a CPU.

    Args:
      data: a `jax.profiler.ProfileData`.
    """
    with warnings.catch_warnings():
        # Types of the binding name no module, which Python 3.13 finds wrong.
        warnings.simplefilter("ignore", DeprecationWarning)
        planes = list(data.planes)
        found = [
            spans
            for plane in planes
            if plane.name.startswith("/device:")
            for spans in _streams(plane)
        ]
        return found or [
            spans for plane in planes if plane.name == "/host:CPU" for spans in _cpu_threads(plane)
        ]


def _streams(plane: Any) -> list[list[Span]]:
    """A TPU tells of its operations in one line, a GPU of the kernels in those of its streams."""
    lines = list(plane.lines)
    chosen = [line for line in lines if line.name == "XLA Ops"] or [
        line for line in lines if line.name.startswith("Stream")
    ]
    return [
        [
            Span(e.start_ns, e.end_ns, dict(e.stats).get("hlo_op") or hlo.name_of(e.name))
            for e in line.events
        ]
        for line in chosen
    ]


class _Part(NamedTuple):
    """Work that a CPU's operation gave to the thread pool, by its number."""

    number: int


def _cpu_threads(plane: Any) -> list[list[Span]]:
    """For which operation each thread worked.

    An operation runs in its own event and, where it gives parts of its work to the thread pool ("Record"), in regions of other
    threads that bear the number of such a part; it is over at an event "end: NAME". A part that nobody gave, or that goes on
    after its operation is over, is the runtime's own.
    """
    lines = [_Line.read(line.events) for line in plane.lines]
    names = {run: name for line in lines for run, name in line.names.items()}
    over = {run: at for line in lines for run, at in line.over.items()}
    given_in = {part: (line, at) for line in lines for part, at in line.given.items()}

    def run_of(what: Any) -> Any:
        while isinstance(what, _Part):
            if what not in given_in:
                return None
            line, at = given_in[what]
            what = line.at(at)
        return what

    found = []
    for line in lines:
        owned = [
            Span(s.start, min(s.end, over.get(run, s.end)), names[run])
            for s in line.spans
            if (run := run_of(s.what))
        ]
        found.append([span for span in owned if span.start < span.end])
    return found


@dataclasses.dataclass(frozen=True)
class _Line:
    """One thread of a CPU; runs of operations and parts of them go by numbers.

    Attributes:
      spans: what it did, in order: runs of operations (their number) and `_Part`s; none lies in another.
      names: run -> the HLO name of the operation.
      over: run -> when it was over.
      given: part -> when it was given to the pool.
    """

    spans: Sequence[Span]
    names: Mapping[int, str]
    over: Mapping[int, float]
    given: Mapping[_Part, float]

    @classmethod
    def read(cls, events: Iterable[Any]) -> _Line:
        spans, regions = [], []
        names: dict[int, str] = {}
        over: dict[int, float] = {}
        given: dict[_Part, float] = {}
        for event in events:
            stats = dict(event.stats)
            if "hlo_op" in stats:
                names[stats["_p"]] = stats["hlo_op"]
                spans.append(Span(event.start_ns, event.end_ns, stats["_p"]))
            elif event.name.startswith("end: ") and "_c" in stats:
                over[stats["_c"]] = event.start_ns
            elif event.name == "ThreadpoolListener::Record":
                given[_Part(stats["_p"])] = event.start_ns
            elif event.name == "ThreadpoolListener::StartRegion":
                regions.append((event.start_ns, _Part(stats["_c"])))
            elif event.name == "ThreadpoolListener::StopRegion" and regions:
                start, part = regions.pop()
                spans.append(Span(start, event.end_ns, part))
        return cls(list(innermost(spans)), names, over, given)

    def at(self, instant: float) -> Any:
        """What the thread did at an instant; None: nothing."""
        i = bisect.bisect_right(self.spans, instant, key=lambda span: span.start) - 1
        return self.spans[i].what if i >= 0 and instant < self.spans[i].end else None


def table(
    times: Mapping[str, float],
    known: Mapping[str, hlo.Operation],
    *,
    title: str,
    steps: int,
    seconds: float,
) -> str:
    """The costliest operations, a line each, and what is left of the time.

    Args:
      times: HLO name -> nanoseconds on the clock, of all steps.
      known: HLO name -> what it is.
      title: of what the steps are.
      steps: how many there were.
      seconds: what they took.
    """
    costliest = sorted(times.items(), key=lambda item: -item[1])[:SHOWN]
    rows: list[tuple[str, ...]] = []
    for name, _ in costliest:
        found = known.get(name)
        rows.append(
            (found.kind, found.where, found.direction, name) if found else (name, "", "", "")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    top, all_ = sum(ns for _, ns in costliest), sum(times.values())

    unit, scale = ("ms", 1e6) if costliest and costliest[0][1] > 1e5 * steps else ("µs", 1e3)

    def line(ns: float, words: str) -> str:
        return f"{ns / scale / steps:10.2f} {ns / 1e7 / seconds:5.1f} %  {words}".rstrip()

    return "\n".join(
        [
            f"profile: {steps} step{'s' * (steps > 1)} of {' '.join(title.split())}, {seconds / steps * 1e3:.1f} ms each; "
            f"the {len(rows)} costliest operations take {top / 1e7 / seconds:.0f} %",
            f"   {unit}/step   share  operation",
            *(
                line(ns, "  ".join(word.ljust(n) for word, n in zip(words, widths, strict=True)))
                for (_, ns), words in zip(costliest, rows, strict=True)
            ),
            line(all_ - top, f"{len(times) - len(rows)} other operations"),
            line(seconds * 1e9 - all_, "outside of operations: the host, dispatch, waiting"),
        ]
    )
