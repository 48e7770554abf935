"""Averages of weights: SWA along a training run, WiSE-FT between its start and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Variables = Any


def running_mean(mean: Any, new: Any, step: jax.Array, first: float) -> Any:
    """Return the mean of the weights after step `first`, with those after one more step.

    `w̄ ← w̄ + (w - w̄) / (n + 1)` with n the number of steps in the mean; up to `first` it is w.
    SWA: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, algorithm 1 with a cycle of one
    step.

    Args:
      mean: a tree.
      new: the same tree after the step.
      step: i32[], the number of steps before it.
      first: the step at which the mean begins.

    >>> print(running_mean(jnp.array(2.0), jnp.array(8.0), jnp.array(12), first=10))
    4.0
    """
    share = 1 / (jnp.maximum(step - first, 0) + 1)
    return jax.tree.map(lambda m, x: m + (x - m) * share, mean, new)


def between(start: Variables, tuned: Variables, share: float) -> Variables:
    """Return `(1 - α) start + α tuned` of each array, on the host.

    WiSE-FT: Wortsman et al. 2022, https://arxiv.org/abs/2109.01903, equation 1. BatchNorm's running
    statistics are interpolated as the weights are.

    >>> between({"w": np.zeros(2, np.float32)}, {"w": np.ones(2, np.float32)}, 0.25)
    {'w': array([0.25, 0.25], dtype=float32)}
    """

    def mixed(a: Any, b: Any) -> np.ndarray:
        a, b = np.asarray(a), np.asarray(b)
        return ((1 - share) * a.astype(np.float64) + share * b).astype(b.dtype)

    return jax.tree.map(mixed, start, tuned)


def best_between(
    start: Variables,
    tuned: Variables,
    shares: Sequence[float],
    rank: Callable[[Variables], Any],
) -> tuple[float, Variables]:
    """Return the share with the highest rank, among equals the largest, and its variables."""
    tried = [(share, between(start, tuned, share)) for share in sorted(shares, reverse=True)]
    ranks = [rank(variables) for _, variables in tried]
    return tried[max(range(len(tried)), key=lambda i: (ranks[i], -i))]


def batch_statistics(
    statistics: Any,
    update: Callable[[Any, Any], Any],
    batches: Iterable[Any],
) -> Any:
    """Return BatchNorm's running statistics as the plain mean over some batches.

    A running average is `m · old + (1 - m) · batch`. From old = 0 it gives `(1 - m) · batch`, whose
    mean over the batches is divided by 1 - m, which the first batch shows: that from old = 1 less
    that from old = 0 is m. So no layer needs to say its momentum. A value that the batches do not
    change (m = 1) stays as it was.

    Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, section 3.2.

    Args:
      statistics: the running statistics, a tree of floats.
      update: (statistics, batch) -> the statistics after one batch in training mode.
      batches: of equal size.

    >>> momentum = lambda old, batch: 0.9 * old + 0.1 * batch
    >>> mean = batch_statistics(jnp.zeros(()), momentum, [jnp.array(1.0), jnp.array(3.0)])
    >>> print(mean.round(4))
    2.0
    """
    zeros = jax.tree.map(jnp.zeros_like, statistics)
    ones = jax.tree.map(jnp.ones_like, statistics)
    total, kept, n = zeros, None, 0
    for batch in batches:
        new = update(zeros, batch)
        if kept is None:
            kept = jax.tree.map(jnp.subtract, update(ones, batch), new)
        total, n = jax.tree.map(jnp.add, total, new), n + 1

    def mean(old: Any, total: Any, kept: Any) -> Any:
        rest = jnp.where(kept < 1, 1 - kept, 1.0)
        return jnp.where(kept < 1, total / n / rest, old)

    return statistics if not n else jax.tree.map(mean, statistics, total, kept)
