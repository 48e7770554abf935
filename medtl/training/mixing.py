"""Mixing of pairs of examples inside the training step: mixup and CutMix.

A function `(key, a, b) -> (mixed, share)` mixes one example's input with its partner's; `share` is
the part of the example in it. The loss is `share · ℓ(y) + (1 - share) · ℓ(y of the partner)`, each
with the weight of its example, so that every loss of an example can be used, also with several
diagnoses and unknown labels.

The partner of the example at position i of a batch of n is that at i + s modulo n, where s in
1 .. n - 1 is drawn for each step from (seed, stage, domain, step). The batches are in random order,
so that a cyclic shift draws pairs as a permutation does; and neither the number of devices nor
padding changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from medtl.errors import UserError
from medtl.training.objective import DOMAINS

Mix = Callable[[Any, Any, Any], tuple[Any, Any]]
_PARTNER, _SHARE = 1 << 20, 2  # are folded into keys that others fold, too


def mixup(
    key: Key[Array, ""], a: Float[Array, "*x"], b: Float[Array, "*x"], *, alpha: float = 0.2
) -> tuple[Float[Array, "*x"], Float[Array, ""]]:
    """Return `λ a + (1 - λ) b` and λ, with λ from Beta(α, α).

    Zhang et al. 2018, https://arxiv.org/abs/1710.09412, equation 1. Where the features of a frozen
    backbone are kept, it mixes them (Verma et al. 2019, https://arxiv.org/abs/1806.05236).

    Args:
      key: key[], of the example.
      a: the example's input.
      b: its partner's.
      alpha: above 0.

    Raises:
      UserError: alpha is not above 0.
    """
    _require(alpha, "mixup")
    share = jax.random.beta(key, alpha, alpha)
    return share * a + (1 - share) * b, share


def cutmix(
    key: Key[Array, ""], a: Float[Array, "h w c"], b: Float[Array, "h w c"], *, alpha: float = 1.0
) -> tuple[Float[Array, "h w c"], Float[Array, ""]]:
    """Return a with a box of b in it, and the share of the pixels that are a's.

    The box has the sides `H √(1 - λ)` and `W √(1 - λ)` about a uniform centre, with λ from
    Beta(α, α); the share is that of the box as the border cuts it.

    Yun et al. 2019, https://arxiv.org/abs/1905.04899, section 3.2 and equation 2.

    Args:
      key: key[], of the example.
      a: the example's image f32[H, W, C].
      b: its partner's.
      alpha: above 0.

    Raises:
      UserError: alpha is not above 0, or the input is no image.
    """
    _require(alpha, "cutmix")
    if jnp.ndim(a) != 3:
        raise UserError(
            f"augment.mix is cutmix, which cuts images; the input has the shape {list(a.shape)}"
        )
    side_key, row_key, column_key = jax.random.split(key, 3)
    half = jnp.sqrt(1 - jax.random.beta(side_key, alpha, alpha)) / 2
    inside = [
        jnp.abs(jnp.arange(n) + 0.5 - n * jax.random.uniform(k)) < n * half
        for n, k in zip(a.shape, (row_key, column_key), strict=False)
    ]
    box = inside[0][:, None] & inside[1]
    return jnp.where(box[..., None], b, a), 1 - jnp.mean(box.astype(jnp.float32))


def mixed(
    mix: Mix,
    inputs: Mapping[str, Mapping[str, jax.Array]],
    batch: Mapping[str, Mapping[str, jax.Array]],
    *,
    key: jax.Array,
    step: jax.Array | int,
    axis_name: str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mix the input of each domain with its partners', within the domain.

    Args:
      mix: of one example.
      inputs: domain -> from `step.prepare`: the input, `key` key[B] and `mask`.
      batch: domain -> `label`, `weight`, `mask`, `position`.
      key: key[], the training stage's.
      step: the optimizer step.
      axis_name: the pmap axis that divides the batch; None: it is whole.

    Returns:
      The inputs, and the batch with `partner_label`, `partner_weight` f32[B] and `share` f32[B].

    Raises:
      UserError: there are several inputs.
    """
    made, labelled = {}, {}
    for domain, part in inputs.items():
        names = [n for n in part if n not in ("mask", "key")]
        if len(names) != 1:
            raise UserError(f"augment.mix mixes one input, but the model has {', '.join(names)}")
        x, own = part[names[0]], batch[domain]
        weight = own.get("weight", own["mask"])
        whole = {"x": x, "label": own["label"], "weight": weight, "mask": own["mask"]}
        here = jnp.arange(len(x))
        if axis_name:
            here += jax.lax.axis_index(axis_name) * len(x)
            whole = jax.lax.all_gather(whole, axis_name, tiled=True)
        n = jnp.maximum(jnp.sum(whole["mask"]).astype(jnp.int32), 1)
        of_step = jax.random.fold_in(
            jax.random.fold_in(key, _PARTNER + step), DOMAINS.index(domain)
        )
        shift = jax.random.randint(of_step, (), 1, jnp.maximum(n, 2))
        partner = jnp.where(here < n, (here + shift) % n, here)
        keys = jax.vmap(lambda k: jax.random.fold_in(k, _SHARE))(part["key"])
        values, share = jax.vmap(mix)(keys, x.astype(jnp.float32), whole["x"][partner])
        made[domain] = {**part, names[0]: values}
        labelled[domain] = {
            **own,
            "partner_label": whole["label"][partner],
            "partner_weight": whole["weight"][partner],
            "share": share,
        }
    return made, labelled


def without_labels(batch: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the batch as the terms see it: a mixed example has no label of its own."""
    hidden = ("label", "partner_label", "partner_weight", "share")
    return {d: {k: v for k, v in part.items() if k not in hidden} for d, part in batch.items()}


def _require(alpha: float, name: str) -> None:
    if not alpha > 0:
        raise UserError(f"{name}: alpha is {alpha}; it must be above 0")
