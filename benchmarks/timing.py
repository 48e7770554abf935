"""What the benchmarks share: interleaved timing, the machine's own limits, and the record of what ran where.

Needs JAX and NumPy alone, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")

Contender = Callable[[int], float]
"""Runs so many steps, waits until the last has finished, and returns the seconds they took."""


def contender(step: Callable[[], Any]) -> Contender:
    """A contender from a step that dispatches and returns arrays."""

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            out = step()
        jax.block_until_ready(out)
        return time.perf_counter() - start

    return run


def interleave(
    contenders: Mapping[str, Contender], *, rounds: int, steps: int, pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds a step, by contender and round: each round runs every contender, so that noise of the machine hits all.

    Every other round goes backwards, so that none always follows the same neighbour.

    Args:
      contenders: warmed up already, so that nothing compiles here.
      rounds: how often each is timed.
      steps: of each contender in a round.
      pause: seconds between two contenders, in which the threads of the last stop spinning.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds):
        order = list(contenders)
        for name in order if i % 2 == 0 else order[::-1]:
            time.sleep(pause)
            seconds[name].append(contenders[name](steps) / steps)
    return seconds


def summary(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(seconds: Mapping[str, list[float]], ours: str) -> dict[str, dict[str, float]]:
    """How many times as fast as each other contender `ours` is: the ratio within each round, summed up over rounds."""
    return {
        name: summary([theirs / own for own, theirs in zip(seconds[ours], values, strict=True)])
        for name, values in seconds.items()
        if name != ours
    }


def matmul_peak(dtype: str = "float32", *, size: int = 0, repeats: int = 7) -> float:
    """FLOP/s of the best of `repeats` square matrix products: what this machine can reach, not what its data sheet says."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((size, size), jnp.dtype(dtype))
    multiply = jax.jit(lambda x, y: x @ y)
    jax.block_until_ready(multiply(a, a))
    run = contender(lambda: multiply(a, a))
    return 2.0 * size**3 / min(run(3) / 3 for _ in range(repeats))


def bandwidth(*, mebibytes: int = 256, repeats: int = 7) -> float:
    """Bytes/s of the best of `repeats` runs of y <- y + 1 on an array beyond the caches: one read and one write each."""
    x = jnp.zeros((mebibytes * 2**20 // 4,), jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(add(x))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        x = jax.block_until_ready(add(x))
        best = min(best, time.perf_counter() - start)
    return 2.0 * x.nbytes / best


def machine() -> dict[str, Any]:
    """Processor, device, versions and date; no paths and no host name."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
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
    """Writes `benchmarks/results/NAME.json`, the machine's record first."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    return path
