"""Shared by the benchmarks: interleaved timing, the machine's limits, the record of the machine.

Needs only JAX and NumPy, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}
"""glibc's settings of medtl.training.memory.keep, as environment variables."""

Contender = Callable[[int], float]
"""Takes a number of steps, waits until the last has finished, and returns the seconds."""


def contender(step: Callable[[], Any]) -> Contender:
    """Return a contender from a step that dispatches work and returns arrays."""

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            out = step()
        jax.block_until_ready(out)
        return time.perf_counter() - start

    return run


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The unchanged docstring, and each option's default."""


def end_on_sigterm() -> None:
    """Exit cleanly on SIGTERM, so that temporary folders are removed after `timeout`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def positive(text: str) -> int:
    """Return a command line's whole number of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


class Process:
    """A contender in a separate process: the line "N" runs N steps, the answer is the seconds."""

    def __init__(self, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None):
        # Several contenders share a GPU; by default each JAX takes three quarters of its memory.
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**shared, **os.environ, **(environment or {})},
        )
        self.words = self._read()
        if not self.words.startswith("ready"):
            self.close()
            raise RuntimeError("it did not start; see its error above")

    def __call__(self, steps: int) -> float:
        return float(self.ask(str(steps)))

    def ask(self, question: str) -> str:
        """Send a line to the process and return its answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(question, file=self._process.stdin, flush=True)
        answer = self._read()
        if not answer:
            raise RuntimeError(
                f"{self.words}: it ended with {self._process.wait()}; see its error above "
                "(-9 and no error: killed, probably for memory; --noall_kept and fewer contenders "
                "need less)"
            )
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def serve(answer: Callable[[str], object]) -> None:
    """Be the other end of a `Process`: answer each line by a line; first compile and warm up."""
    print(f"ready jax {jax.__version__} {jax.devices()[0].device_kind}", flush=True)
    for line in sys.stdin:
        print(answer(line.strip()), flush=True)


def interleave(
    contenders: Mapping[str, Contender], *, rounds: int, steps: int, pause: float = 0.0
) -> dict[str, list[float]]:
    """Return seconds a step, by contender and round.

    Each round runs every contender, so that the machine's noise hits all. Every other round goes
    backwards, so that no contender always follows the same neighbor.

    Args:
      contenders: warmed up, so that nothing compiles here.
      rounds: the number of timings of each.
      steps: of each contender in a round.
      pause: seconds between two contenders, for the threads of the last to stop spinning.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds):
        order = list(contenders)
        for name in order if i % 2 == 0 else order[::-1]:
            time.sleep(pause)
            seconds[name].append(contenders[name](steps) / steps)
    return seconds


def summary(values: list[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(seconds: Mapping[str, list[float]], ours: str) -> dict[str, dict[str, float]]:
    """Return other contender -> its time / ours, summarised over the ratios of the rounds."""
    return {
        name: summary([y / x for x, y in zip(seconds[ours], values, strict=True)])
        for name, values in seconds.items()
        if name != ours
    }


def matmul_peak(dtype: str = "float32", *, size: int = 0, repeats: int = 7) -> float:
    """Return the FLOP/s of the best of `repeats` square matrix products."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((size, size), jnp.dtype(dtype))
    multiply = jax.jit(lambda x, y: x @ y)
    jax.block_until_ready(multiply(a, a))
    run = contender(lambda: multiply(a, a))
    return 2.0 * size**3 / min(run(3) / 3 for _ in range(repeats))


def bandwidth(*, mebibytes: int = 256, repeats: int = 7) -> float:
    """Return the bytes/s of the best of `repeats` runs of y <- y + 1, beyond the caches."""
    x = jnp.zeros((mebibytes * 2**20 // 4,), jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(add(x))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        x = jax.block_until_ready(add(x))
        best = min(best, time.perf_counter() - start)
    return 2.0 * x.nbytes / best


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return processor, device, versions and date; no paths and no host name."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "processor": _processor(),
        "cores": cores(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "versions": versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(name: str, result: Mapping[str, Any]) -> Path:
    """Write `benchmarks/results/NAME.json`, which begins with the machine's record."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    return path
