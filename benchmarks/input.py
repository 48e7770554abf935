"""From image files to the device: images/s of decoding, cache, batches, copy and augmentation.

    python benchmarks/input.py --against=IMAGES_PER_SECOND

Grey textures of --side pixels, drawn from a seed and written as PNG and JPEG into a temporary
folder, become uint8 RGB images of --size pixels. --against is the step's rate (`step.py`): a slower
stage makes the device wait. A run passes several stages: with images in memory only "batches",
"copy" and, inside the step, "augment"; with config.data.cache="stream" also "stream", which
decodes.

Each round of a stage follows the last without a pause, and the first is not counted, so that
nothing is compiled and no worker has batches from idle time. Files and cache are in the operating
system's page cache: disks are not measured. On a CPU the copy is from memory to memory. Needs
medtl's dependencies. --write keeps the result in benchmarks/results/input_BACKEND.json.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timing

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image

from medtl import data
from medtl.config import dataset
from medtl.data import augment, loading
from medtl.data import images as decoder
from medtl.examples import NORMALIZATIONS, Examples

KINDS = {"png": {}, "jpeg": {"quality": 90}}
WORKERS = (0, 2)
AUGMENTATIONS = {
    "flip": augment.Augmentation(flip=True),
    "all": augment.Augmentation(
        crop=0.8, flip=True, rotation=10.0, brightness=0.1, contrast=0.1, noise=0.02
    ),
}


def texture(rng: np.random.Generator, side: int) -> Image.Image:
    """Return a grey image that compresses about as well as an X-ray: soft, with a little noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse, np.float32) + rng.normal(0, 4, (side, side))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def write_manifest(folder: Path, kind: str, n: int, side: int, *, seed: int = 0) -> Path:
    """Write `n` image files of one kind and their manifest; return the manifest's path."""
    rng = np.random.default_rng(seed)
    path = folder / f"{kind}.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "diagnosis"])
        for i in range(n):
            name = f"{i}.{kind}"
            texture(rng, side).save(folder / name, **KINDS[kind])
            rows.writerow([name, "ab"[i % 2]])
    return path


class Bench:
    """Time stages on one set of images and gather the rates.

    Args:
      args: `images`, `side`, `size`, `batch`, `rounds`, `against`.
      folder: for the files and the cache.
    """

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder = args, folder
        self.manifests = {
            kind: write_manifest(folder, kind, args.images, args.side) for kind in KINDS
        }
        self.rates: dict[str, dict[str, Any]] = {}

    def time(self, name: str, run: timing.Contender, images: int, **more: Any) -> None:
        """Time rounds of `run`, each of `images` images; print and keep the rate."""
        run(1)
        seconds = timing.interleave({name: run}, rounds=self.args.rounds, steps=1)[name]
        rate = timing.summary([images / s for s in seconds])
        self.rates[name] = {"images_per_second": rate, **more}
        line = f"{name:32s} {rate['median']:10.1f} images/s [{rate['low']:.1f}, {rate['high']:.1f}]"
        if "bytes_per_image" in more:
            line += f"  {rate['median'] * more['bytes_per_image'] / 1e6:,.0f} MB/s"
        if self.args.against:
            share = rate["median"] / self.args.against
            self.rates[name]["of_the_step"] = share
            line += f"  {share:.2f} x the step{', which waits' if share < 1 else ''}"
        print(line, flush=True)

    def load(self, kind: str, cache: str, folder: Path) -> Examples:
        """Return the set as an experiment reads it."""
        return data.load(
            dataset("manifest", path=str(self.manifests[kind]), split=(1.0, 0.0, 0.0)),
            image_size=self.args.size,
            channels=3,
            resize="squash",
            cache=cache,
            cache_dir=str(folder),
            key="config.data.target",
        )

    def decode(self) -> None:
        """Time medtl's decoder, in one thread and in one for each core."""
        for kind, threads in itertools.product(KINDS, sorted({1, timing.cores()})):
            encoded = [path.read_bytes() for path in sorted(self.folder.glob(f"*.{kind}"))]

            def one(content: bytes) -> np.ndarray:
                return decoder.decode(content, size=self.args.size, channels=3, resize="squash")

            with ThreadPoolExecutor(threads) as pool:
                run = stopwatch(lambda: list(pool.map(one, encoded)))  # noqa: B023
                kib = sum(map(len, encoded)) / len(encoded) / 1024
                self.time(
                    f"decode {kind}, {threads} thread{'s' * (threads > 1)}",
                    run,
                    len(encoded),
                    kib_per_file=kib,
                )

    def cache(self) -> None:
        """Time reading a set at a run's start: every file is hashed, and decoded if not cached."""
        new = (self.folder / f"cache_{i}" for i in itertools.count())
        self.time(
            "load into memory",
            stopwatch(lambda: self.load("png", "memory", self.folder)),
            self.args.images,
        )
        self.time(
            "load, write disk cache",
            stopwatch(lambda: self.load("png", "disk", next(new))),
            self.args.images,
        )
        full = self.folder / "cache_0"
        self.time(
            "load, disk cache found",
            stopwatch(lambda: self.load("png", "disk", full)),
            self.args.images,
        )

    def batches(self) -> None:
        """Time training batches: from memory, from the mapped cache, and decoded by workers."""
        kinds = [("memory", 0), ("disk", 0), *(("stream", workers) for workers in WORKERS)]
        for cache, workers in kinds:
            examples = self.load("png", cache, self.folder / "cache_0")
            name = f"stream, {workers} workers" if cache == "stream" else f"batches from {cache}"
            # A pass that only copies is too short for the clock, so it is repeated.
            steps = -(-self.args.images // self.args.batch) * (1 if cache == "stream" else 20)
            made = loading.train_batches(
                examples, "train", self.args.batch, seed=0, workers=workers
            )
            with contextlib.closing(made):
                self.time(name, stopwatch(lambda: drawn(made, steps)), steps * self.args.batch)  # noqa: B023

    def device(self) -> None:
        """Time the copy to the device, and augmentation with normalization there."""
        images = np.random.default_rng(0).integers(
            0, 256, (self.args.batch, self.args.size, self.args.size, 3), dtype=np.uint8
        )
        # On a CPU JAX would alias the array.
        copy = timing.contender(lambda: jax.device_put(images, may_alias=False))
        size = images.nbytes // len(images)
        self.time("copy to the device", lambda _: copy(20), 20 * len(images), bytes_per_image=size)
        placed = jax.device_put(images)
        keys = jax.random.split(jax.random.key(0), len(images))
        for name, options in AUGMENTATIONS.items():

            def prepare(images: Any, keys: Any, options: Any = options) -> Any:
                augmented = augment.augment(images, keys, options)
                return augment.normalize(augmented, NORMALIZATIONS["torchvision"])

            compiled = jax.jit(prepare)
            run = timing.contender(lambda: compiled(placed, keys))  # noqa: B023
            run(1)
            self.time(f"augment: {name}", lambda _: run(5), 5 * len(images))  # noqa: B023


def stopwatch(work: Callable[[], Any]) -> timing.Contender:
    """Return a contender from work that has finished when it returns."""

    def run(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return time.perf_counter() - start

    return run


def drawn(batches: Iterator[Any], steps: int) -> None:
    """Take a number of batches."""
    for _ in itertools.islice(batches, steps):
        pass


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=timing.Help)
    parser.add_argument("--images", type=timing.positive, default=256, help="files of each kind")
    parser.add_argument("--side", type=timing.positive, default=512, help="pixels of a file's side")
    parser.add_argument(
        "--size", type=timing.positive, default=224, help="pixels of a side at the working size"
    )
    parser.add_argument("--batch", type=timing.positive, default=32, help="images in a batch")
    parser.add_argument(
        "--rounds", type=timing.positive, default=5, help="timed rounds; the median is reported"
    )
    parser.add_argument(
        "--against", type=float, default=0.0, help="the step's images/s, to compare with"
    )
    parser.add_argument(
        "--write", action="store_true", help="keep the result in benchmarks/results"
    )
    args = parser.parse_args(arguments)
    result: dict[str, Any] = {name: value for name, value in vars(args).items() if name != "write"}
    timing.end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="medtl-benchmark-") as folder:
        bench = Bench(args, Path(folder))
        bench.decode()
        bench.cache()
        bench.batches()
        bench.device()
    if args.write:
        print(timing.write(f"input_{jax.default_backend()}", result | {"stages": bench.rates}).name)


if __name__ == "__main__":
    main(sys.argv[1:])
