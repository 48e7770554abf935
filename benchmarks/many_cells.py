"""A weekend's run in small: memory, open files and compilations over many cells in one process.

    python benchmarks/many_cells.py --cells=2000
    python benchmarks/many_cells.py --cells=200 --kind=sweep

A cell is one fold of a repeated cross-validation, or one setting of a sweep, of the tiny model on
phantoms of 8 px, with checkpoints and logs as in any run. After --first cells resident memory and
open files shall be flat within 2 % and nothing more be compiled. --write keeps the result in
benchmarks/results/many_cells_KIND.json.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timing
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from medtl import config as configs
from medtl.experiment import experiment
from medtl.experiment.arm import Arm
from medtl.sweep import sweep, trainer
from medtl.training import memory

CELLS = flags.DEFINE_integer("cells", 2000, "cells to run", lower_bound=25)
FIRST = flags.DEFINE_integer("first", 20, "cells after which all is flat", lower_bound=1)
KIND = flags.DEFINE_enum("kind", "cv", ["cv", "sweep"], "what a cell is")
SECONDS = flags.DEFINE_float("seconds", 1e9, "stop after this time")
WRITE = flags.DEFINE_bool("write", False, "keep the result in benchmarks/results")


class StoppedError(Exception):
    """The time is over."""


def config_of(kind: str, cells: int) -> Any:
    """Return the config of a run with so many cells."""
    c = configs.default()
    c.data.image_size = 8
    c.data.target = configs.dataset("phantom(size=60, scanner='b', split=(0.4, 0.3, 0.3), seed=1)")
    c.model.last_layer = "layer1"
    c.stages.target = configs.stage(epochs=1, batch_size=16, learning_rate=1e-2)
    c.arms, c.seeds, c.parallel = ("scratch",), (0,), "none"
    c.evaluation.times, c.evaluation.resamples = 1, 100
    if kind == "cv":
        c.evaluation.folds, c.evaluation.repeats = 5, -(-cells // 5)
    else:
        rates = tuple(np.geomspace(1e-4, 1e-1, cells).tolist())
        c.sweep.grid = configs.grid({"stages.target.learning_rate": rates})
    return c


def resident() -> int:
    """Return the bytes of the process that are in memory, without garbage."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Counts compilations; takes a row after each cell."""

    def __init__(self, first: int, seconds: float):
        self.rows: list[dict[str, float]] = []
        self._compiled, self._first, self._until = 0, first, time.monotonic() + seconds
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, duration: float, **_: Any) -> None:
        self._compiled += event.endswith("backend_compile_duration")

    def after(self, function: Any) -> Any:
        """Return the function, with a row taken after each call."""

        def called(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            row = {
                "cell": len(self.rows) + 1,
                "rss": resident(),
                "files": len(os.listdir("/proc/self/fd")),
                "compiled": self._compiled,
            }
            self.rows.append(row)
            n = row["cell"]
            if n in (1, 2, 5, 10, self._first) or n % 50 == 0:
                mib = f"{row['rss'] / 2**20:7.1f} MiB"
                line = f"cell {n:5}  {mib}  {row['files']:3} files  {row['compiled']:4} compiled"
                print(line, file=sys.__stdout__, flush=True)
            if time.monotonic() > self._until:
                raise StoppedError
            return result

        return called


def main(_: list[str]) -> None:
    memory.keep()  # as the command line does
    watch = Watch(FIRST.value, SECONDS.value)
    config = config_of(KIND.value, CELLS.value)
    Arm.keep = watch.after(Arm.keep)  # type: ignore[method-assign]
    trainer._trained = watch.after(trainer._trained)
    run = experiment.train if KIND.value == "cv" else sweep.sweep
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(StoppedError),
    ):
        run(config, Path(folder) / "run")
    if len(watch.rows) <= FIRST.value:
        sys.exit(f"only {len(watch.rows)} cells in {SECONDS.value:g} s; give more --seconds")
    start, later = watch.rows[FIRST.value - 1], watch.rows[FIRST.value :]
    rss = max(row["rss"] for row in later) / start["rss"] - 1
    files = max(row["files"] for row in later) - start["files"]
    compiled = later[-1]["compiled"] - start["compiled"]
    print(
        f"{len(watch.rows)} cells in {time.monotonic() - began:.0f} s; after {FIRST.value}: "
        f"memory at most {rss:+.1%}, files {files:+d}, compilations {compiled:+d}"
    )
    if WRITE.value:
        shown = [r for r in watch.rows if r["cell"] in (1, FIRST.value) or r["cell"] % 50 == 0]
        facts = {"cells": len(watch.rows), "rss": rss, "files": files, "compiled": compiled}
        timing.write(f"many_cells_{KIND.value}", {**facts, "rows": shown})


if __name__ == "__main__":
    app.run(main)
