"""Gradients of the source and of the target that agree or conflict.

The gradients are flat dicts of parameters. In the log, `cosine/head` is the cosine over the shared
head and `cosine/shared` that over all trained parameters which both domains use. A cosine that
stays below 0 says that a step for the source undoes what the target needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

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
