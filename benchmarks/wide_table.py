"""Seconds and memory from a wide clinical table to the first steps of training.

    python benchmarks/wide_table.py [--rows 50000] [--columns 100] [--encoder mlp]

A CSV file with numbers (half of them with empty cells), codes and words is read, checked, split,
preprocessed, and a model is compiled, all by `launch.py` in a process of its own that ends when it
logs its first steps. Printed: wall and processor seconds with Python's start, and the peak memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

_CONFIG = """
from medtl.config import arm, dataset, default, stage

def get_config():
    c = default()
    c.arm.own = arm("random", source_stage=False, joint=False)
    c.arms, c.seeds = ("own",), (0,)
    c.data.inputs = ("table",)
    c.data.target = dataset("manifest", path={path!r})
    c.model.encoders.table = {encoder!r}
    c.stages.target = stage(epochs=1, batch_size=256)
    c.loggers = ({logger!r},)
    return c
"""


class First:
    """A metric writer that reports on the process, and ends it, at the first steps."""

    def __init__(self, folder: Path, config: Any):
        pass

    def write(self, step: int, scalars: Any) -> None:
        """Print processor seconds and peak memory of this process."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(f"first {usage.ru_utime + usage.ru_stime} {usage.ru_maxrss / 2**20}", flush=True)
        os._exit(0)

    def close(self) -> None:
        """Do nothing."""


def write(path: Path, rows: int, columns: int) -> None:
    """Write a table: four fifths numbers, a tenth codes, a tenth words, and a diagnosis."""
    rng = np.random.default_rng(0)
    cells = []
    for i in range(columns):
        if i % 10 == 8:
            column = rng.integers(0, 5, rows).astype(str)
        elif i % 10 == 9:
            column = np.array([f"kind {letter}" for letter in "abcdefgh"])[rng.integers(0, 8, rows)]
        else:
            column = np.char.mod("%.4f", rng.lognormal(i % 3, 1, rows))
        if i % 2:
            column = np.where(rng.random(rows) < 0.2, "", column)
        cells.append(column)
    first = np.array([float(x) for x in cells[0]])
    ill = rng.random(rows) < 1 / (1 + np.exp(2 - first))
    with path.open("w") as file:
        file.write(",".join(["id", *(f"c{i}" for i in range(columns)), "diagnosis"]) + "\n")
        for i, row in enumerate(zip(*cells, strict=True)):
            file.write(f"case{i},{','.join(row)},{'ill' if ill[i] else 'well'}\n")


def measure(folder: Path, rows: int, columns: int, encoder: str) -> dict[str, float]:
    """Return the seconds and GiB until the first steps."""
    write(folder / "wide.csv", rows, columns)
    settings = dict(path=str(folder / "wide.csv"), encoder=encoder, logger=f"{__file__}:First")
    (folder / "wide.py").write_text(_CONFIG.format(**settings))
    command = [sys.executable, str(ROOT / "launch.py"), f"--config={folder / 'wide.py'}"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, f"--workdir={folder / 'run'}"], capture_output=True, text=True, cwd=ROOT
    )
    wall = time.perf_counter() - began
    lines = [line for line in done.stdout.splitlines() if line.startswith("first ")]
    if not lines:
        raise SystemExit(done.stdout + done.stderr)
    processor, peak = map(float, lines[0].split()[1:])
    return {"wall_s": wall, "processor_s": processor, "peak_gib": peak}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--encoder", default="mlp")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), a.rows, a.columns, a.encoder)
    print(
        f"{a.rows:,} rows x {a.columns} columns: {result['wall_s']:.1f} s to the first steps, "
        f"processor {result['processor_s']:.1f} s; peak memory {result['peak_gib']:.2f} GiB"
    )


if __name__ == "__main__":
    main()
