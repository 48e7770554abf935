"""`--profile`: a trace of some training steps, and the operations that take their time.

The trace opens in Perfetto and XProf. The table counts time on the clock: every instant is shared
equally between the threads, or streams, that work, and each part goes to the innermost operation
there. Nothing is counted twice, and the rest up to 100 % was spent outside of operations. An
operation of unknown origin keeps the name that XLA gave it.
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
from medtl.evaluation.wording import text_table
from medtl.profiling import hlo
from medtl.training import parallel
from medtl.training.loop import Feed, Resident, Taken
from medtl.training.step import TrainState

STEPS = 3  # streamed steps in a trace; of resident data it holds one dispatch
WARM_UP = 2  # dispatches before the trace, which compile
SHOWN = 10  # operations in the table


class Span(NamedTuple):
    """The work of a thread, or of a device's stream, from `start` to `end`, in nanoseconds."""

    start: float
    end: float
    work: Hashable


class Profile:
    """Trace the first training stage that trains.

    Args:
      folder: for the trace and `operations.txt`.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._is_used = False

    def around(self, feed: Feed, title: str, *, left: int) -> Feed:
        """Return the feed; the first stage's traces itself once, and its numbers are the same.

        Args:
          feed: takes the steps of a training stage.
          title: names the stage.
          left: the number of steps left; one alone, which compiles, is not traced.
        """
        if self._is_used or left < 2:
            return feed
        self._is_used = True
        return _Traced(feed, self._folder, title, warm_up=min(WARM_UP, left - 1))

    def close(self) -> None:
        """Print a notice if nothing was traced."""
        if not self._is_used:
            print(
                "profile: nothing was traced: no stage had two steps left to train (the first one "
                "compiles); a run that is done needs another --workdir"
            )


class _Traced:
    """A feed that traces some of its steps and reports their time; otherwise the feed itself."""

    def __init__(self, feed: Feed, folder: Path, title: str, *, warm_up: int):
        self._feed, self._folder, self._title = feed, folder, title
        self._warm_up = warm_up
        self._is_done = False

    def __call__(self, state: TrainState, most: int) -> Taken:
        if self._is_done:
            return self._feed(state, most)
        if self._warm_up > 0:
            self._warm_up -= 1
            return self._feed(state, 1)
        self._is_done = True
        return self._trace(state, most)

    def close(self) -> None:
        self._feed.close()

    def _trace(self, state: TrainState, most: int) -> Taken:
        feed: Any = self._feed
        field = "loop" if isinstance(feed, Resident) else "step"
        compiled = getattr(feed, field)
        arguments: list[Any] = []

        def recorded(state: TrainState, *rest: Any) -> Any:
            arguments[:] = rest
            return compiled(state, *rest)

        feed = dataclasses.replace(feed, **{field: recorded})
        dispatches: list[tuple[Any, int, int]] = []  # metrics, steps, examples
        steps = 0
        jax.block_until_ready(state)
        with _tracing(self._folder):
            began = time.perf_counter()
            while steps < min(STEPS, most):
                taken = feed(state, most - steps)
                state, steps = taken.state, steps + taken.steps
                dispatches.append((taken.metrics, taken.steps, taken.examples))
            jax.block_until_ready((state, dispatches))
            seconds = time.perf_counter() - began
        program = compiled.lower(state, *arguments).compile(parallel.compiler_options())
        self._report(program.as_text() or "", state.params, steps, seconds)
        metrics = [
            {name: np.atleast_1d(x)[:n] for name, x in values.items()}
            for values, n, _ in jax.device_get(dispatches)
        ]
        joined = jax.tree.map(lambda *x: np.concatenate(x), *metrics)
        return Taken(state, joined, steps, sum(examples for *_, examples in dispatches))

    def _report(self, text: str, params: Any, steps: int, seconds: float) -> None:
        newest = max(
            (self._folder / "plugins" / "profile").iterdir(),
            key=lambda folder: folder.stat().st_mtime_ns,
        )
        trace = jax.profiler.ProfileData.from_file(str(next(newest.glob("*.xplane.pb"))))
        shapes = {path: x.shape for path, x in traverse_util.flatten_dict(params).items()}
        shown = table(
            clock_time(threads(trace)),
            hlo.operations(text, shapes),
            title=self._title,
            steps=steps,
            seconds=seconds,
        )
        files.write_text(self._folder / "operations.txt", shown + "\n")
        if sys.stdout.isatty():
            print()  # the progress line is still open
        print(shown)
        print(
            f"trace: {newest / 'perfetto_trace.json.gz'} opens in https://ui.perfetto.dev, "
            f"{self._folder} in XProf"
        )


@contextlib.contextmanager
def _tracing(folder: Path) -> Iterator[None]:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of a Python function would be an event
    with jax.profiler.trace(str(folder), create_perfetto_trace=True, profiler_options=options):
        yield


def innermost(spans: Iterable[Span]) -> Iterator[Span]:
    """Cut a thread's nested spans into disjoint ones, in order; the innermost span wins.

    >>> [tuple(s) for s in innermost([Span(0, 9, "loop"), Span(2, 5, "add")])]
    [(0, 2, 'loop'), (2, 5, 'add'), (5, 9, 'loop')]
    """
    open_spans: list[Span] = []
    now = -math.inf

    def close(until: float) -> Iterator[Span]:
        nonlocal now
        while open_spans and open_spans[-1].end <= until:
            span = open_spans.pop()
            if now < span.end:
                yield Span(now, span.end, span.work)
                now = span.end

    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        yield from close(span.start)
        if open_spans and now < span.start:
            yield Span(now, span.start, open_spans[-1].work)
        now = max(now, span.start)
        open_spans.append(span)
    yield from close(math.inf)


def clock_time(threads: Iterable[Iterable[Span]]) -> dict[Any, float]:
    """Return nanoseconds for each `work`; every instant is shared equally by the busy threads.

    Args:
      threads: spans of each, which may be nested; an instant counts for the innermost.
    """
    edges = []
    for spans in threads:
        for start, end, work in innermost(spans):
            edges += [(start, 1, work), (end, -1, work)]
    edges.sort(key=lambda edge: edge[:2])
    times: dict[Any, float] = collections.defaultdict(float)
    busy: collections.Counter[Any] = collections.Counter()
    before = 0.0
    for now, change, work in edges:
        total = busy.total()
        if now > before and total:
            for other, n in busy.items():
                times[other] += (now - before) * n / total
        before = now
        busy[work] += change
        if not busy[work]:
            del busy[work]
    return dict(times)


def threads(trace: Any) -> list[list[Span]]:
    """Return the operations in a trace by HLO name, for each device stream or each CPU thread.

    Args:
      trace: a `jax.profiler.ProfileData`.
    """
    with warnings.catch_warnings():
        # The binding's types name no module, which Python 3.13 warns about.
        warnings.simplefilter("ignore", DeprecationWarning)
        planes = list(trace.planes)
        streams = [s for p in planes if p.name.startswith("/device:") for s in _streams(p)]
        return streams or [s for p in planes if p.name == "/host:CPU" for s in _cpu_threads(p)]


def _streams(plane: Any) -> list[list[Span]]:
    """Return a device's streams: a TPU has one line of operations, a GPU one for each stream."""
    lines = list(plane.lines)
    tpu = [line for line in lines if line.name == "XLA Ops"]
    return [
        [
            Span(e.start_ns, e.end_ns, dict(e.stats).get("hlo_op") or hlo.name_of(e.name))
            for e in line.events
        ]
        for line in tpu or [line for line in lines if line.name.startswith("Stream")]
    ]


class _Part(NamedTuple):
    """Work that a CPU's operation gave to the thread pool, by its number."""

    number: int


def _cpu_threads(plane: Any) -> list[list[Span]]:
    """Return for which operation each thread worked.

    An operation runs in its own event. It may give parts of its work to the thread pool ("Record"),
    which run in regions of other threads with the number of such a part. It is over at an event
    "end: NAME". A part that nobody gave, or that goes on after its operation is over, belongs to
    the runtime.
    """
    lines = [_Line.read(line.events) for line in plane.lines]
    names = {run: name for line in lines for run, name in line.names.items()}
    ends = {run: end for line in lines for run, end in line.ends.items()}
    givers = {part: (line, now) for line in lines for part, now in line.given.items()}

    def run_of(work: Any) -> Any:
        while isinstance(work, _Part):
            if work not in givers:
                return None
            line, now = givers[work]
            work = line.work_at(now)
        return work

    result = []
    for line in lines:
        cut = [
            Span(s.start, min(s.end, ends.get(run, s.end)), names[run])
            for s in line.spans
            if (run := run_of(s.work))
        ]
        result.append([span for span in cut if span.start < span.end])
    return result


@dataclasses.dataclass(frozen=True)
class _Line:
    """One thread of a CPU; runs of operations and parts of them have numbers.

    Attributes:
      spans: runs of operations (their number) and `_Part`s, in order and disjoint.
      names: run -> the HLO name of the operation.
      ends: run -> when it was over.
      given: part -> when it was given to the pool.
    """

    spans: Sequence[Span]
    names: Mapping[int, str]
    ends: Mapping[int, float]
    given: Mapping[_Part, float]

    @classmethod
    def read(cls, events: Iterable[Any]) -> _Line:
        spans, regions = [], []
        names: dict[int, str] = {}
        ends: dict[int, float] = {}
        given: dict[_Part, float] = {}
        for event in events:
            stats = dict(event.stats)
            if "hlo_op" in stats:
                names[stats["_p"]] = stats["hlo_op"]
                spans.append(Span(event.start_ns, event.end_ns, stats["_p"]))
            elif event.name.startswith("end: ") and "_c" in stats:
                ends[stats["_c"]] = event.start_ns
            elif event.name == "ThreadpoolListener::Record":
                given[_Part(stats["_p"])] = event.start_ns
            elif event.name == "ThreadpoolListener::StartRegion":
                regions.append((event.start_ns, _Part(stats["_c"])))
            elif event.name == "ThreadpoolListener::StopRegion" and regions:
                start, part = regions.pop()
                spans.append(Span(start, event.end_ns, part))
        return cls(list(innermost(spans)), names, ends, given)

    def work_at(self, now: float) -> Any:
        """Return what the thread worked on at an instant; None: nothing."""
        i = bisect.bisect_right(self.spans, now, key=lambda span: span.start) - 1
        return self.spans[i].work if i >= 0 and now < self.spans[i].end else None


def table(
    times: Mapping[str, float],
    origins: Mapping[str, hlo.Operation],
    *,
    title: str,
    steps: int,
    seconds: float,
) -> str:
    """Return the costliest operations as text, a line each, and the rest of the time.

    Args:
      times: HLO name -> nanoseconds on the clock, of all steps.
      origins: HLO name -> its origin, where it is known.
      title: names the steps.
      steps: their number.
      seconds: their time.
    """
    costliest = sorted(times.items(), key=lambda item: -item[1])[:SHOWN]
    rows = [
        (o.kind, o.layer, o.direction, name) if (o := origins.get(name)) else (name, "", "", "")
        for name, _ in costliest
    ]
    words = text_table(rows, left=4)
    top, total = sum(ns for _, ns in costliest), sum(times.values())
    unit, scale = ("ms", 1e6) if costliest and costliest[0][1] > 1e5 * steps else ("µs", 1e3)

    def line(ns: float, text: str) -> str:
        return f"{ns / scale / steps:10.2f} {ns / 1e7 / seconds:5.1f} %  {text}".rstrip()

    name = f"{steps} step{'s' * (steps > 1)} of {' '.join(title.split())}"
    return "\n".join(
        [
            f"profile: {name}, {seconds / steps * 1e3:.1f} ms each; "
            f"the {len(rows)} costliest operations take {top / 1e7 / seconds:.0f} %",
            f"   {unit}/step   share  operation",
            *(line(ns, text) for (_, ns), text in zip(costliest, words, strict=True)),
            line(total - top, f"{len(times) - len(rows)} other operations"),
            line(seconds * 1e9 - total, "outside of operations: the host, dispatch, waiting"),
        ]
    )
