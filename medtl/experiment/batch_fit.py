"""How many examples of a training stage's step fit the device: `batch_size="auto"`, and advice.

XLA says what a compiled step needs. The part that grows with the batch is taken as proportional to
it, which saves a compilation for each size; the size that is chosen is compiled and compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from medtl.config import AUTO
from medtl.experiment.arm import Arm
from medtl.experiment.setup import Experiment
from medtl.experiment.stage import Stage
from medtl.experiment.trials import Trial
from medtl.training import hosts, memory
from medtl.training.loop import CHUNK
from medtl.training.parallel import compiler_options

_PROBE = 32  # examples in the step that is compiled first
_LEAST_STEPS = 8  # of an epoch, which bounds the batch of a small data set
_ON_DEVICE, _OF_HOST = 0.9, 0.5  # shares of what is there that a step may take


def needed(stage: Stage) -> int | None:
    """Return the bytes on a device of a step as the stage takes it; None where XLA does not say.

    With data that is kept on the device this is the program of many steps, data included.
    """
    e, source, encoded = stage.arm.experiment, stage.source(0), stage.is_encoded
    state = e.parallel.place(stage.state())
    if e.fits_on_device(stage.domains, encoded=encoded):
        data = {d: e.on_device(d, x, encoded=encoded) for d, x in stage.examples.items()}
        feed = source.resident(stage.compiled.loop, data)
        rows = feed.stack([next(feed.rows)[0]] * CHUNK)
        lowered = stage.compiled.loop.lower(state, data, rows, np.int32(1))
    else:
        streamed = source.streamed(stage.compiled.one, stage.replaced, lambda seconds: None)
        try:
            batch, _ = next(streamed.batches)
        finally:
            streamed.close()
        lowered = stage.compiled.one.lower(state, batch)
    return memory.needed(lowered.compile(compiler_options()))


def limit() -> int:
    """Return the bytes that a step may take of a device; CPU devices share the host's memory."""
    [device, *others] = jax.local_devices()
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_ON_DEVICE * stats["bytes_limit"])
    return int(_OF_HOST * memory.available() / (1 + len(others)))


def fixed(experiment: Experiment, arms: Sequence[str]) -> Experiment:
    """Replace each `batch_size="auto"` by the largest power of two that fits every arm.

    An epoch keeps 8 steps, so that a small data set is not one batch.
    """
    config = experiment.config
    auto = [name for name, stage in config.stages.items() if stage.batch_size == AUTO]
    if not auto:
        return experiment
    sizes = {name: min(_PROBE, _most(experiment, name)) for name in auto}
    stages = list(_stages(_with_sizes(experiment, sizes), arms))
    for name in auto:
        of_name = [stage for stage in stages if stage.name == name]
        most = _most(experiment, name)
        sizes[name] = min((largest(stage, most) for stage in of_name), default=sizes[name])
    paths = {_path(name): size for name, size in sizes.items()}
    for path, size in paths.items():
        print(f"config.{path}: {size}, of {memory.shown(limit())} that a step may take")
    made = _with_sizes(experiment, sizes)
    experiment.cache.trials.clear()
    return made


def largest(stage: Stage, most: int) -> int:
    """Return the largest power of two, up to `most`, of examples whose step fits the device.

    Several processes agree: it fits in each of them.
    """
    size = hosts.agreed(_predicted(stage, most))
    least = _power_of_two(len(stage.arm.experiment.parallel.devices))
    while size > least:
        if size == _size(stage):
            found = stage
        else:
            found = _with_size(stage, size)
        if hosts.everywhere((needed(found) or 0) <= limit()):
            break
        size //= 2
    return max(size, least)


def out_of_memory(stage: Stage, error: Exception) -> memory.OutOfMemoryError:
    """Return the error for a stage that ran out of memory: what fits, and what saves memory."""
    config, size = stage.arm.config, _size(stage)
    fits = ""
    with contextlib.suppress(Exception):  # the advice must not hide the reason
        probed = _with_size(stage, max(1, min(_PROBE, size // 2)))
        fits = f"set it to {min(_predicted(probed, size), _power_of_two(size) // 2 or 1)}, "
    remat = "" if config.model.remat else ", or set config.model.remat=True"
    detail = memory.requested(str(error))
    return memory.OutOfMemoryError(
        f"the device is out of memory{detail} with config.{_path(stage.name)}={size}; "
        f"{fits}raise config.stages.{stage.name}.accumulate, which is "
        f"{config.stages[stage.name].accumulate}{remat}"
    )


def _predicted(stage: Stage, most: int) -> int:
    """Return the power of two up to `most` that fits by what the stage's own batch needs."""
    total, size = needed(stage), _size(stage)
    if total is None:
        return min(size, most)
    shapes = jax.eval_shape(stage.state)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    for_each = max(total - state, 1) / size
    return _power_of_two(min(most, max(1, int((limit() - state) / for_each))))


def _most(experiment: Experiment, name: str) -> int:
    devices = len(experiment.parallel.devices)
    return _power_of_two(max(experiment.sizes.get(name, 1) // _LEAST_STEPS, devices, 1))


def _stages(experiment: Experiment, arms: Sequence[str]) -> Any:
    """Yield the training stages of the arms on the data's own split, untrained."""
    for name in arms:
        arm = Arm(experiment, experiment.split, experiment.config.seeds[0], name)
        if arm.section.estimator:
            continue
        weights = arm.initial()
        for stage_name in experiment.stages(name):
            stage = Stage(arm, stage_name, weights)
            yield stage
            weights = stage.hand_on(weights.variables)


def _with_sizes(experiment: Experiment, sizes: dict[str, int]) -> Experiment:
    values = {_path(name): size for name, size in sizes.items()}
    return experiment.with_trial(Trial("", values))


def _with_size(stage: Stage, size: int) -> Stage:
    experiment = _with_sizes(stage.arm.experiment, {stage.name: size})
    arm = dataclasses.replace(stage.arm, experiment=experiment)
    return dataclasses.replace(stage, arm=arm)


def _size(stage: Stage) -> int:
    return stage.arm.config.stages[stage.name].batch_size


def _path(name: str) -> str:
    return f"stages.{name}.batch_size"


def _power_of_two(n: int) -> int:
    """Return the largest power of two up to n."""
    return 1 << (max(n, 1).bit_length() - 1)
