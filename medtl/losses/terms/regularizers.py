"""Terms of the parameters alone; gradient accumulation allows them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medtl.errors import UserError


def l2_sp(context: Any, *, heads: float = 0.0) -> Float[Array, ""]:
    """Return half the squared distance of the encoders to their pretrained weights.

    `1/2 ‖w - w⁰‖² + heads/2 ‖v‖²`, over the parameters w of the transferred encoders and v of the
    heads. The term's `weight` is the paper's α, and `heads` is β / α. The distance includes the
    scales and shifts of the normalization layers; frozen layers contribute 0.

    Li et al. 2018, https://arxiv.org/abs/1802.01483, equation 3. A training stage that starts from
    random weights has no w⁰; the term is left out.

    Args:
      context: `params` and `pretrained`, the encoders' parameters at the start of the stage.
      heads: >= 0.

    Returns:
      f32[].

    Raises:
      UserError: `heads` is negative.

    >>> from types import SimpleNamespace as Namespace
    >>> params = {"encoders": {"image": jnp.array([3.0, 1.0])}, "heads": {"shared": jnp.ones(2)}}
    >>> context = Namespace(params=params, pretrained={"image": jnp.array([1.0, 1.0])})
    >>> print(l2_sp(context), l2_sp(context, heads=0.5))
    2.0 2.5
    """
    if not heads >= 0:
        raise UserError(f"l2_sp: heads is {heads}; it must be at least 0")
    start = context.pretrained
    now = {name: context.params["encoders"][name] for name in start}
    moved = jax.tree.map(lambda a, b: jnp.sum((a.astype(jnp.float32) - b) ** 2), now, start)
    total = sum(jax.tree.leaves(moved), jnp.zeros(()))
    if heads > 0:
        squares = jax.tree.map(lambda v: jnp.sum(v**2), context.params["heads"])
        total += heads * sum(jax.tree.leaves(squares), jnp.zeros(()))
    return 0.5 * total
