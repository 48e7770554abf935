"""The trainer's step on 1, 2, 4 and 8 devices, with a fixed batch in total or on each device.

    python benchmarks/scaling.py --model=cifar_resnet20 --size=28 --batch=128

A batch that is fixed in total measures "strong" scaling, one that is fixed on each device "weak"
scaling. The step is medtl.training.step.Step as medtl.training.factory makes it, with augmentation,
on one batch that is on the devices already. Each device count is divided by its run on one device,
round by round. Compilation is not timed.

On GPUs and TPUs the counts go up to the number of devices. On a CPU each count is a process with
simulated devices, which share the cores; "efficiency" is then the plain ratio to one device's rate
and no speedup. Below 1 it is the cost of dividing a batch and summing over devices; above 1 it says
that one device leaves cores idle. Needs medtl's dependencies. --write keeps the result in
benchmarks/results/scaling_MODEL_DTYPE_BACKEND.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timing

sys.path.insert(0, str(Path(__file__).parents[1]))

from medtl import models
from medtl.config import default, stage
from medtl.models.model import init_variables
from medtl.training import factory, memory, tracing
from medtl.training.parallel import Parallel

MODES = ("pmap", "mesh")
SIMULATED = (
    "The devices are simulated and share the cores: efficiency is the plain ratio to one device's "
    "rate and no speedup. Below 1 it is the overhead of dividing the batch; above 1 it says that "
    "one device leaves cores idle."
)


def experiment(*, model: str, size: int, dtype: str = "float32") -> Any:
    """Return a config with the settings of configs/breastmnist.py and random weights."""
    c = default()
    c.data.image_size, c.data.channels = size, 3
    c.augment.flip = True
    c.model.name, c.model.dtype = model, dtype
    c.stages.target = stage(learning_rate=1e-3, schedule="cosine", warmup=0.1, weight_decay=1e-2)
    return c


def images(
    sizes: Mapping[str, int], size: int, *, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Return domain -> a random batch, as `medtl.data.loading.train_batches` yields it."""
    rng = np.random.default_rng(seed)
    return {
        domain: {
            "image": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
            "label": rng.integers(0, 2, n, dtype=np.int32),
            "mask": np.ones(n, np.float32),
            "weight": np.ones(n, np.float32),
            "index": np.arange(n, dtype=np.int32),
            "position": np.arange(n, dtype=np.int32),
        }
        for domain, n in sizes.items()
    }


def bare(config: Any, parallel: Parallel, sizes: Mapping[str, int]) -> timing.Contender:
    """Return the trainer's step alone, compiled and warm: no data, no log, no checkpoints.

    Args:
      config: the experiment's; its target stage is taken.
      parallel: the devices.
      sizes: domain -> images in a step; two domains make a joint step.
    """
    classes = dict.fromkeys(sizes, ("0", "1"))
    model = factory.model_for(config, classes, axis_name=parallel.axis_name)
    image = jax.ShapeDtypeStruct((1, *factory.image_shape(config)), np.float32)
    variables = jax.device_get(init_variables(model, jax.random.key(0), {"image": image}))
    step = factory.step(
        config,
        "target",
        model,
        factory.Components.create(config),
        tracing.UsedTerms((), frozenset(), {}),
        params=variables["params"],
        domains=tuple(sizes),
        random_backbone=True,
        steps=1000,
        sizes=sizes,
        classes=classes,
        normalization=factory.normalization(config, None),
        parallel=parallel,
    )
    compiled = parallel.train(step)
    batch = parallel.put(parallel.shard(images(sizes, config.data.image_size)))
    holder = [parallel.replicate(step.init(jax.random.key(0), variables))]

    def advance() -> Any:
        holder[0], metrics = compiled(holder[0], batch)
        return metrics

    run = timing.contender(advance)
    run(2)
    return run


def batches(count: int, *, batch: int, device_batch: int) -> dict[str, int]:
    """Return kind of scaling -> the global batch on `count` devices."""
    return {"strong": batch, "weak": device_batch * count}


def contenders(
    config: Any, devices: tuple[jax.Device, ...], sizes: Sequence[int], modes: Sequence[str]
) -> dict[tuple[str, int], timing.Contender]:
    """Return (mode, global batch) -> its step on all these devices."""
    return {
        (mode, n): bare(config, Parallel.create(mode, devices), {"target": n})
        for mode in modes
        for n in sorted({*sizes})
    }


class Simulated:
    """The contenders of one count of simulated devices, in a separate process."""

    def __init__(self, count: int, arguments: Sequence[str]):
        flags = os.environ.get("XLA_FLAGS", "")
        flags = f"{flags} --xla_force_host_platform_device_count={count}"
        self._process = timing.Process(
            [sys.executable, __file__, *arguments, f"--serve={count}"],
            environment={"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        )

    def contender(self, mode: str, batch: int) -> timing.Contender:
        return lambda steps: float(self._process.ask(f"{mode} {batch} {steps}"))

    def close(self) -> None:
        self._process.close()


def serve(args: argparse.Namespace) -> None:
    """Be the process of one count of simulated devices."""
    sizes = batches(args.serve, batch=args.batch, device_batch=args.device_batch).values()
    devices = tuple(jax.devices())
    assert len(devices) == args.serve
    made = contenders(
        experiment(model=args.model, size=args.size, dtype=args.dtype), devices, [*sizes], args.mode
    )

    def answer(line: str) -> float:
        mode, batch, steps = line.split()
        return made[mode, int(batch)](int(steps))

    timing.serve(answer)


def table(
    seconds: Mapping[str, Sequence[float]],
    *,
    modes: Sequence[str],
    counts: Sequence[int],
    simulated: bool,
    **options: int,
) -> dict[str, Any]:
    """Print and return mode -> kind -> count -> images/s, and their share of one device's.

    Args:
      seconds: "mode batch count" -> seconds a step, by round.
      modes: of `Parallel`.
      counts: of devices, the first is 1.
      simulated: whether the devices share the cores.
      options: `batch` and `device_batch`.
    """
    result: dict[str, Any] = {}
    for mode in modes:
        result[mode] = {kind: {} for kind in ("strong", "weak")}
        for kind, of_count in result[mode].items():
            rates = {}
            for n in counts:
                batch = batches(n, **options)[kind]
                rates[n] = [batch / s for s in seconds[f"{mode} {batch} {n}"]]
                # n real devices could be n times as fast; simulated ones have one device's cores.
                best = [rate * (1 if simulated else n) for rate in rates[counts[0]]]
                efficiency = timing.summary(
                    [rate / bound for rate, bound in zip(rates[n], best, strict=True)]
                )
                summary = timing.summary(rates[n])
                of_count[str(n)] = {
                    "batch": batch,
                    "images_per_second": summary,
                    "efficiency": efficiency,
                }
                print(
                    f"{mode:4s} {kind:6s} {n:3d} device{'s' * (n > 1):1s} batch {batch:5d} "
                    f"{summary['median']:9.1f} images/s "
                    f"[{summary['low']:.1f}, {summary['high']:.1f}]  "
                    f"efficiency {efficiency['median']:.3f} "
                    f"[{efficiency['low']:.3f}, {efficiency['high']:.3f}]",
                    flush=True,
                )
    return result


def measure(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Time every count, interleaved; see `table`."""
    simulated = jax.default_backend() == "cpu"
    counts = [n for n in args.counts if simulated or n <= jax.device_count()]
    processes: list[Simulated] = []
    named: dict[str, timing.Contender] = {}
    config = experiment(model=args.model, size=args.size, dtype=args.dtype)
    options = {"batch": args.batch, "device_batch": args.device_batch}
    try:
        for n in counts:
            sizes = [*batches(n, **options).values()]
            if simulated:
                processes.append(Simulated(n, arguments))
                made = {
                    (mode, size): processes[-1].contender(mode, size)
                    for mode in args.mode
                    for size in sizes
                }
            else:
                made = contenders(config, tuple(jax.devices()[:n]), sizes, args.mode)
            named |= {f"{mode} {size} {n}": run for (mode, size), run in made.items()}
        seconds = timing.interleave(named, rounds=args.rounds, steps=args.steps, pause=0.2)
    finally:
        for process in processes:
            process.close()
    if simulated:
        print(SIMULATED)
    return {
        "simulated": simulated,
        **({"note": SIMULATED} if simulated else {}),
        **table(seconds, modes=args.mode, counts=counts, simulated=simulated, **options),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=timing.Help)
    parser.add_argument(
        "--model", default="cifar_resnet20", help="backbone, one of medtl.models.NAMES"
    )
    parser.add_argument("--size", type=timing.positive, default=28, help="pixels of a side")
    parser.add_argument("--dtype", default="float32", choices=models.DTYPES, help="compute dtype")
    parser.add_argument(
        "--batch",
        type=timing.positive,
        default=128,
        help="strong: images in a step, on all devices together",
    )
    parser.add_argument(
        "--device_batch",
        type=timing.positive,
        default=16,
        help="weak: images in a step for each device",
    )
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        help="numbers of devices; the first must be 1",
    )
    parser.add_argument(
        "--mode", nargs="+", default=MODES, choices=MODES, help="see config.parallel"
    )
    parser.add_argument(
        "--rounds", type=timing.positive, default=5, help="timed rounds; the median is reported"
    )
    parser.add_argument("--steps", type=timing.positive, default=5, help="steps in a round")
    parser.add_argument(
        "--write", action="store_true", help="keep the result in benchmarks/results"
    )
    parser.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.counts[0] != 1:
        parser.error("--counts must begin with 1, with which the others are compared")
    if args.batch < max(args.counts):
        parser.error(f"--batch={args.batch} is less than {max(args.counts)} devices")
    memory.keep()  # as the trainer does
    if args.serve:
        serve(args)
        return
    result = {
        name: getattr(args, name)
        for name in ("model", "size", "dtype", "batch", "device_batch", "rounds", "steps")
    }
    result |= measure(args, arguments)
    if args.write:
        print(
            timing.write(f"scaling_{args.model}_{args.dtype}_{jax.default_backend()}", result).name
        )


if __name__ == "__main__":
    main(sys.argv[1:])
