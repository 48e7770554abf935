"""One training step and one inference step on synthetic data: images/s and shares of the peaks.

    python benchmarks/step.py --model=resnet50 --batch=16 --size=224 --dtype=float32

The step is medtl's model and objective with SGD and momentum, without augmentation, data and
checkpoints, so that it runs on a bare GPU machine (`end_to_end.py` times the trainer). Compilation
is timed apart. FLOP/s come from XLA's count of the program as written, so a rewritten convolution
counts what it computes. --write keeps the result in
benchmarks/results/step_MODEL_DTYPE_BACKEND.json.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from medtl import losses, models
from medtl.models.model import Head, Model, init_variables
from medtl.training import memory, parallel
from medtl.training.objective import Loss, Objective

MODEL = flags.DEFINE_enum("model", "resnet50", models.NAMES, "backbone")
BATCH = flags.DEFINE_integer("batch", 16, "images in a step", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 224, "pixels of a side", lower_bound=8)
DTYPE = flags.DEFINE_enum("dtype", "float32", models.DTYPES, "compute dtype")
ROUNDS = flags.DEFINE_integer("rounds", 5, "timed rounds; the median is reported", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "steps in a round", lower_bound=1)
WRITE = flags.DEFINE_bool("write", False, "keep the result in benchmarks/results")

Batch = dict[str, dict[str, jax.Array]]


def build(name: str, *, classes: int, dtype: str, domains: Sequence[str]) -> Model:
    """Return the model with a head for each domain, as an experiment builds it."""
    heads = {domain: functools.partial(Head, classes) for domain in domains}
    encoders = {"image": models.backbone(name, dtype=dtype)}
    return Model(encoders, heads, {domain: domain for domain in domains})


def draw(model: Model, size: int) -> dict[str, Any]:
    """Return random variables for images with sides of `size` pixels."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return init_variables(model, jax.random.key(0), {"image": image})


def train_step(model: Model) -> tuple[optax.GradientTransformation, Callable[[Any, Batch], Any]]:
    """Return the optimizer and the pure function `(state, batch) -> state`.

    The state is (params, batch_stats, optimizer state).
    """
    optimizer = optax.sgd(1e-3, momentum=0.9)
    objective = Objective((Loss("main", losses.cross_entropy),))

    def step(state: Any, batch: Batch) -> Any:
        params, batch_stats, opt_state = state

        def loss(params: Any) -> Any:
            variables = {"params": params, "batch_stats": batch_stats}
            outputs, changed = model.apply(variables, batch, True, mutable=["batch_stats"])
            value, _ = objective(outputs, batch, step=0, counts=objective.counts(batch))
            return value, changed.get("batch_stats", batch_stats)

        gradient, stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    return optimizer, step


def images(batch: int, size: int, *, classes: int, domains: Sequence[str], seed: int = 0) -> Batch:
    """Return `batch` random images for each domain, on the device."""
    rng = np.random.default_rng(seed)
    return {
        domain: {
            "image": jnp.asarray(rng.standard_normal((batch, size, size, 3), np.float32)),
            "label": jnp.asarray(rng.integers(classes, size=batch), jnp.int32),
            "mask": jnp.ones(batch, jnp.float32),
            "key": jax.random.split(jax.random.key(seed), batch),
        }
        for domain in domains
    }


def trainer(
    name: str,
    *,
    batch: int,
    size: int,
    dtype: str,
    domains: Sequence[str] = ("target",),
    classes: int = 1000,
) -> tuple[timing.Contender, Any, float]:
    """Return a warm training step as a contender, its program, and seconds of compilation.

    Args:
      name: the backbone.
      batch: images for each domain.
      size: pixels of a side.
      dtype: compute dtype.
      domains: several make a joint step.
      classes: of each head.
    """
    model = build(name, classes=classes, dtype=dtype, domains=domains)
    data = images(batch, size, classes=classes, domains=domains)
    variables = draw(model, size)
    optimizer, step = train_step(model)
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    compiled, seconds = compile_(
        jax.jit(step, donate_argnums=0, compiler_options=parallel.compiler_options()), state, data
    )
    holder = [compiled(state, data)]

    def advance() -> Any:
        holder[0] = compiled(holder[0], data)
        return holder[0]

    run = timing.contender(advance)
    run(1)
    return run, compiled, seconds


def predictor(
    name: str, *, batch: int, size: int, dtype: str, classes: int = 1000
) -> tuple[timing.Contender, Any, float]:
    """Return an inference step (running statistics), as `trainer`."""
    model = build(name, classes=classes, dtype=dtype, domains=("target",))
    data = images(batch, size, classes=classes, domains=("target",))
    variables = draw(model, size)
    predict = jax.jit(lambda variables, data: model.apply(variables, data, False)["target"].logits)
    compiled, seconds = compile_(predict, variables, data)
    run = timing.contender(lambda: compiled(variables, data))
    run(2)
    return run, compiled, seconds


def compile_(function: Any, *args: Any) -> tuple[Any, float]:
    """Return the compiled program, and the seconds it took to trace and compile."""
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    return compiled, time.perf_counter() - start


def describe(
    compiled: Any,
    seconds: dict[str, float],
    *,
    batch: int,
    peak: float,
    bandwidth: float,
    compile_seconds: float,
) -> dict[str, Any]:
    """Return images/s and the shares of the machine's limits."""
    cost = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    flops, bytes_ = cost.get("flops", float("nan")), cost.get("bytes accessed", float("nan"))
    return {
        "images_per_second": {
            "median": batch / seconds["median"],
            "low": batch / seconds["high"],
            "high": batch / seconds["low"],
        },
        "flops_per_image": flops / batch,
        "flops_per_second": flops / seconds["median"],
        "share_of_matmul_peak": flops / seconds["median"] / peak,
        # Operands in caches count, too: an upper bound of the traffic.
        "share_of_bandwidth": bytes_ / seconds["median"] / bandwidth,
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "argument_bytes": memory.argument_size_in_bytes if memory else None,
        "compile_seconds": compile_seconds,
    }


def main(_: Sequence[str]) -> None:
    memory.keep()  # as the trainer does
    peak, bandwidth = timing.matmul_peak(DTYPE.value), timing.bandwidth()
    print(
        f"{jax.devices()[0].device_kind}: {peak / 1e9:,.0f} GFLOP/s in a matrix product, "
        f"{bandwidth / 1e9:,.0f} GB/s"
    )
    result: dict[str, Any] = {
        "model": MODEL.value,
        "batch": BATCH.value,
        "size": SIZE.value,
        "dtype": DTYPE.value,
        "matmul_flops_per_second": peak,
        "memory_bytes_per_second": bandwidth,
    }
    for name, make in (("train", trainer), ("inference", predictor)):
        run, compiled, compile_seconds = make(
            MODEL.value, batch=BATCH.value, size=SIZE.value, dtype=DTYPE.value
        )
        seconds = timing.summary(
            timing.interleave({name: run}, rounds=ROUNDS.value, steps=STEPS.value)[name]
        )
        numbers = describe(
            compiled,
            seconds,
            batch=BATCH.value,
            peak=peak,
            bandwidth=bandwidth,
            compile_seconds=compile_seconds,
        )
        result[name] = numbers
        rate = numbers["images_per_second"]
        print(
            f"{name:9s} {rate['median']:8.1f} images/s [{rate['low']:.1f}, {rate['high']:.1f}]"
            f"  {numbers['flops_per_second'] / 1e9:7,.0f} GFLOP/s = "
            f"{numbers['share_of_matmul_peak']:.0%} of the peak"
            f"  temporaries {(numbers['temporary_bytes'] or 0) / 2**20:,.0f} MiB"
            f"  compiled in {compile_seconds:.1f} s",
            flush=True,
        )
    if WRITE.value:
        timing.write(f"step_{MODEL.value}_{DTYPE.value}_{jax.default_backend()}", result)


if __name__ == "__main__":
    app.run(main)
