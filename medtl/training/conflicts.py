"""Gradients of the source and of the target that agree or conflict.

The gradients are flat dicts of parameters. In the log, `cosine/head` is the cosine over the shared
head and `cosine/shared` that over all trained parameters which both domains use. A cosine that
stays below 0 says that a step for the source undoes what the target needs; `Watch` says so.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medtl.errors import damaged
from medtl.training.optimizers import Path

Gradients = Mapping[Path, Any]


def shared_paths(paths: Collection[Path], head_of: Mapping[str, str]) -> frozenset[Path]:
    """Return the paths of parameters that both domains use: encoders, and the head of both.

    >>> paths = [("encoders", "image", "w"), ("heads", "source", "w"), ("terms", "dann", "w")]
    >>> shared_paths(paths, {"source": "source", "target": "target"})
    frozenset({('encoders', 'image', 'w')})
    """
    heads = set(head_of.values()) if len(set(head_of.values())) == 1 else set()
    return frozenset(
        path
        for path in paths
        if path[0] in ("encoders", "adapters") or (path[0] == "heads" and path[1] in heads)
    )


def cosine(a: Any, b: Any) -> jax.Array:
    """Return the cosine of the angle between two trees of arrays; 0 where one of them is 0.

    >>> print(cosine({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([-3.0, 0.0])}))
    -1.0
    """
    norms = optax.tree.norm(a) * optax.tree.norm(b)
    value = optax.tree.vdot(a, b) / jnp.where(norms > 0, norms, 1.0)
    return jnp.clip(jnp.where(norms > 0, value, 0.0), -1.0, 1.0)


def combine(
    source: Gradients, target: Gradients, shared: Collection[Path], mode: str
) -> tuple[dict[Path, Any], jax.Array]:
    """Combine the gradients of the two domains' parts of the objective.

    | mode | where g_s·g_t < 0 |
    |---|---|
    | "pcgrad" | each loses its component along the other, then they are added |
    | "gated" | g_s is left out |

    Elsewhere, and for parameters that one domain uses, they are added. PCGrad: Yu et al. 2020,
    https://arxiv.org/abs/2001.06782, algorithm 1. Gating: Du et al. 2018,
    https://arxiv.org/abs/1812.02224, the unweighted variant.

    Args:
      source: of the source's mean loss.
      target: of the rest: λ times the target's, and the terms.
      shared: paths of the parameters that both domains use.
      mode: "pcgrad" or "gated".

    Returns:
      The gradient, and the cosine of the two over `shared`, f32[].
    """
    g_s, g_t = ({p: g[p] for p in shared} for g in (source, target))
    dot = jnp.minimum(optax.tree.vdot(g_s, g_t), 0.0)  # 0 where they agree
    if mode == "pcgrad":
        # g_s - (g_s·g_t / |g_t|²) g_t + g_t - (g_s·g_t / |g_s|²) g_s, sorted by g_s and g_t.
        squares = [optax.tree.norm(g, squared=True) for g in (g_s, g_t)]
        keep_s, keep_t = (1.0 - dot / jnp.maximum(square, 1e-30) for square in squares)
    else:
        keep_s, keep_t = jnp.where(dot < 0, 0.0, 1.0), jnp.ones(())
    combined = {
        path: keep_s * g + keep_t * target[path] if path in shared else g + target[path]
        for path, g in source.items()
    }
    return combined, cosine(g_s, g_t)


_NAMES = ("cosine/shared", "cosine/head")  # the first that is logged counts
_BLOCKS, _FEWEST = 10, 5


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of a series of steps with its 95 % interval.

    The interval is Student's over the means of up to 10 blocks of successive steps, as those of
    neighbours resemble each other (batch means; Schmeiser 1982, Operations Research 30, 556).

    Args:
      values: float[n], in the order of the steps; with n < 5 the interval is infinite.

    >>> print("%.2f %.2f %.2f" % mean_interval([-0.5, -0.3, -0.4, -0.5, -0.3]))
    -0.40 -0.52 -0.28
    """
    from scipy.stats import t as student

    mean = float(np.mean(values))
    if len(values) < _FEWEST:
        return mean, -math.inf, math.inf
    blocks = np.array_split(np.asarray(values, np.float64), min(_BLOCKS, len(values)))
    means = np.array([block.mean() for block in blocks])
    half = student.isf(0.025, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means))
    return mean, mean - float(half), mean + float(half)


class Watch:
    """Collects the logged cosines between two evaluations, as a metric writer of a stage.

    Args:
      log: the stage's `log.jsonl`; the cosines after `since` are read back, so that a resumed run
        says what one that was never stopped says. None: this process writes no log.
      since: the step of the last evaluation.
    """

    def __init__(self, log: pathlib.Path | None, since: int):
        self._since = since
        self._values: list[float] = []
        if log is not None and log.exists():
            with damaged(f"{log} is damaged; delete it, and the same command goes on"):
                for line in map(json.loads, log.read_text().splitlines()):
                    if line["step"] > since:
                        self.write(line["step"], line)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Collect the cosine of a step, if it is logged."""
        name = next((n for n in _NAMES if n in scalars), None)
        if name is not None:
            self._values.append(float(scalars[name]))

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def finding(self, step: int) -> str:
        """Return a sentence if the source opposed the target since the last call, else "".

        It does where the interval of the mean cosine is below 0, see `mean_interval`.
        """
        values, since = self._values, self._since
        self._values, self._since = [], step
        if not values:
            return ""
        mean, low, high = mean_interval(values)
        if not high < 0:
            return ""
        return (
            f"The source's gradient opposes the target's: mean cosine {mean:.2f} ({low:.2f} to "
            f"{high:.2f}) in steps {since + 1} to {step}; the source hurts here"
        )
