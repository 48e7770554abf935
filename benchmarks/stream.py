"""Stream many image files from a manifest: seconds, images/s and memory of an epoch.

    python benchmarks/stream.py [--images 100000] [--against IMAGES_PER_SECOND]

Distinct grey JPEGs of 224 px are written into a temporary folder, read as an experiment reads them
with config.data.cache="stream" (each file is decoded once to look for copies), and streamed once in
the order of a training epoch. The rates of the first and of the last tenth show whether the number
of files matters. --against is the step's rate (`step.py`): a slower stream makes the device wait.
The files are in the operating system's page cache: disks are not measured.
--write keeps the result in benchmarks/results/stream.json.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timing

sys.path.insert(0, str(Path(__file__).parents[1]))

from input import KINDS, texture
from memory import resident
from PIL import Image

from medtl import data
from medtl.config import dataset
from medtl.data import loading

TEXTURES = 500


def write_manifest(folder: Path, n: int, side: int) -> Path:
    """Write `n` distinct JPEGs, 1,000 to a folder, and their manifest; return its path.

    The images are `TEXTURES` textures, each shifted by another number of pixels.
    """
    rng = np.random.default_rng(0)
    textures = [np.asarray(texture(rng, side)) for _ in range(min(n, TEXTURES))]
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "diagnosis"])
        for i in range(n):
            turn, which = divmod(i, TEXTURES)
            pixels = np.roll(textures[which], (turn // side, turn % side), (0, 1))
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, "jpeg", **KINDS["jpeg"])
            name = f"{i // 1000}/{i}.jpg"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(encoded.getvalue())
            rows.writerow([name, "ab"[i % 2]])
    return path


def measure(manifest: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Read the manifest and stream an epoch; return seconds, rates and bytes."""
    began = time.perf_counter()
    examples = data.load(
        dataset("manifest", path=str(manifest), split=(1.0, 0.0, 0.0)),
        image_size=args.side,
        channels=3,
        resize="squash",
        cache="stream",
        cache_dir="",
        key="config.data.target",
    )
    read = time.perf_counter() - began
    steps = args.images // args.batch or 1
    batches = loading.train_batches(examples, "train", args.batch, seed=0, workers=args.workers)
    marks, memory = [time.perf_counter()], [resident("VmRSS")]
    with contextlib.closing(batches):
        for _ in range(steps):
            next(batches)
            marks.append(time.perf_counter())
            memory.append(resident("VmRSS"))
    tenth = max(1, steps // 10)
    rate = args.batch * tenth
    return {
        "seconds_to_read_and_look_for_copies": read,
        "images_per_second": args.batch * steps / (marks[-1] - marks[0]),
        "first_tenth": rate / (marks[tenth] - marks[0]),
        "last_tenth": rate / (marks[-1] - marks[-1 - tenth]),
        "resident_after_first_tenth": memory[tenth],
        "resident_at_the_end": memory[-1],
        "peak": resident("VmHWM"),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=timing.Help)
    parser.add_argument("--images", type=timing.positive, default=100_000, help="files")
    parser.add_argument("--side", type=timing.positive, default=224, help="pixels of a side")
    parser.add_argument("--batch", type=timing.positive, default=32, help="images in a batch")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0: threads")
    parser.add_argument("--against", type=float, default=0.0, help="the step's images/s")
    parser.add_argument("--write", action="store_true", help="keep the result")
    args = parser.parse_args(arguments)
    timing.end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="medtl-benchmark-") as folder:
        result = measure(write_manifest(Path(folder), args.images, args.side), args)
    rate = result["images_per_second"]
    print(
        f"{args.images:,} images read and compared in "
        f"{result['seconds_to_read_and_look_for_copies']:.0f} s\n"
        f"stream {rate:.1f} images/s, first tenth {result['first_tenth']:.1f} images/s, "
        f"last tenth {result['last_tenth']:.1f} images/s\n"
        f"resident {result['resident_after_first_tenth'] / 2**20:.0f} MiB after the first tenth, "
        f"{result['resident_at_the_end'] / 2**20:.0f} MiB at the end"
    )
    if args.against:
        print(f"{rate / args.against:.2f} x the step{', which waits' * (rate < args.against)}")
    if args.write:
        options = {name: value for name, value in vars(args).items() if name != "write"}
        print(timing.write("stream", options | result).name)


if __name__ == "__main__":
    main(sys.argv[1:])
