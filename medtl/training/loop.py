"""Where the steps of a stage get their batches: from data that lies on the devices, or streamed from the host.

Both give the same rows in the same order, so the numbers depend on the choice only in their rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from medtl.data import loading
from medtl.examples import Examples
from medtl.training.parallel import Parallel
from medtl.training.step import DOMAINS, Resident, Streamed

STAGES = ("source", "target")


def batch_sizes(config: Any, stage: str, domains: tuple[str, ...]) -> dict[str, int]:
    """domain -> how many of its examples a step of the stage takes."""
    c = config.stages[stage]
    return {d: c.source_batch_size or c.batch_size if d != stage else c.batch_size for d in domains}


def order_seed(seed: int, stage: str, domain: str) -> int:
    """What the order of a domain's examples is drawn from: of its own for each seed, stage and domain; the same for all arms."""
    return seed * 4 + 2 * STAGES.index(stage) + DOMAINS.index(domain)


def lies_on_device(
    config: Any, parallel: Parallel, examples: Mapping[str, Examples], *, cached: bool
) -> bool:
    """Whether the data of a stage lies on the devices: features always, decoded images where there is room for them.

    Args:
      config: the experiment's.
      parallel: the devices.
      examples: domain -> its examples, of the domains that the stage reads.
      cached: the steps read features of a frozen backbone.
    """
    if cached or config.data.resident == "never":
        return config.data.resident != "never"
    images = [e.image for e in examples.values() if isinstance(e.image, np.ndarray)]
    if len(images) < len(examples):
        return False
    return config.data.resident == "always" or parallel.has_room(
        sum(image.nbytes for image in images)
    )


def streamed(
    config: Any,
    parallel: Parallel,
    step: Callable[..., Any],
    examples: Mapping[str, Examples],
    *,
    seed: int,
    stage: str,
    start: int,
    features: Mapping[str, np.ndarray],
    waited: Callable[[float], None],
) -> Streamed:
    """Batches made, cut and copied to the devices ahead of the steps.

    Args:
      config: the experiment's.
      parallel: the devices.
      step: the compiled step.
      examples: domain -> its examples, of the domains that the stage reads.
      seed: the experiment's.
      stage: "source" or "target".
      start: the step to begin with.
      features: domain -> f32[N, D] that stand in for the images; empty where images are read.
      waited: told the seconds in which the devices had nothing to do.
    """
    sizes = batch_sizes(config, stage, tuple(examples))
    streams = {
        d: loading.train_batches(
            e,
            "train",
            sizes[d],
            seed=order_seed(seed, stage, d),
            start_step=start,
            workers=config.data.workers,
            features=features.get(d),
        )
        for d, e in examples.items()
    }
    cut = _cut(config, parallel, stage, streams, sizes)
    return Streamed(step, loading.prefetch((parallel.put(batch), n) for batch, n in cut), waited)


def resident(
    config: Any,
    parallel: Parallel,
    loop: Callable[..., Any],
    examples: Mapping[str, Examples],
    *,
    seed: int,
    stage: str,
    start: int,
    data: Mapping[str, Any],
) -> Resident:
    """Rows of many steps at once, of `data`, which lies on the devices: domain -> arrays [N, ...]; otherwise as `streamed`."""
    sizes = batch_sizes(config, stage, tuple(examples))
    streams = {
        d: loading.train_rows(
            e, "train", sizes[d], seed=order_seed(seed, stage, d), start_step=start
        )
        for d, e in examples.items()
    }
    return Resident(loop, data, _cut(config, parallel, stage, streams, sizes), parallel.stack)


def _cut(
    config: Any,
    parallel: Parallel,
    stage: str,
    streams: Mapping[str, Iterator[Any]],
    sizes: Mapping[str, int],
) -> Iterator[tuple[Any, int]]:
    """Batches of all domains, cut for the devices, and the number of their examples."""
    while True:
        batch = {d: next(stream) for d, stream in streams.items()}
        yield parallel.shard(batch, multiple=config.stages[stage].accumulate), sum(sizes.values())
