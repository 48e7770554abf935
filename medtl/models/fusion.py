"""Fusion of the features of several inputs, of which an example may lack some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from medtl.examples import PRESENT


class Gated(nn.Module):
    """The gated sum `Σ_m p_m z_m ⊙ tanh(W_m x_m)`, with `z_m = σ(V_m [x_1, ..., x_M, p])`.

    The gated multimodal unit of Arevalo et al. 2017, arXiv:1702.01992, figure 2a, for any number of
    inputs. `p_m` is 1 for a present input, else 0: an absent one adds nothing, and the gates of the
    others see that it is absent. Gates that sum to 1 would average the inputs instead: two of three
    would give larger logits than all three, although they know less. Its width is that of the
    widest input.
    """

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], present: jax.Array | None) -> jax.Array:
        """Return f32[B, W].

        Args:
          features: f32[B, D_m] for each input.
          present: f32[B, M]; None: all are.
        """
        width = max(x.shape[-1] for x in features)
        if present is None:
            present = jnp.ones((len(features[0]), len(features)), jnp.float32)
        seen = jnp.concatenate([*features, present], axis=-1)
        fused = jnp.zeros((len(seen), width), jnp.float32)
        for m, x in enumerate(features):
            gate = nn.sigmoid(nn.Dense(width, name=f"gate_{m}")(seen))
            value = jnp.tanh(nn.Dense(width, name=f"input_{m}")(x))
            fused += present[:, m, None] * gate * value
        return fused


class LateHead(nn.Module):
    """A head for each input, and the average of their logits over the inputs that are present.

    Attributes:
      make_head: makes the head of an input from its `name`.
      names: the inputs.
    """

    make_head: Any
    names: Sequence[str]

    @nn.compact
    def __call__(
        self,
        features: Sequence[jax.Array],
        keys: jax.Array | None = None,
        present: jax.Array | None = None,
    ) -> jax.Array:
        """Return f32[B, K]; arguments as those of `Gated`, with keys for dropout."""
        pairs = zip(self.names, features, strict=True)
        logits = jnp.stack([self.make_head(name=name)(x, keys) for name, x in pairs], axis=1)
        if present is None:
            return jnp.mean(logits, axis=1)
        share = present / jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1.0)
        return jnp.einsum("bm,bmk->bk", share, logits)


def presence(
    batch: Mapping[str, Mapping[str, Any]], names: Sequence[str], *, train: bool, dropout: float
) -> jax.Array | None:
    """Return f32[B, M], 1 for each input that an example has; None: all have all.

    Args:
      batch: domain -> the model's inputs with `present_INPUT` f32[B], and `key` in training.
      names: the inputs.
      train: hides inputs.
      dropout: the rate at which each input is hidden; where all would be, none is.
    """
    parts = [batch[domain] for domain in sorted(batch)]
    if len(names) == 1:
        return None
    present = None
    if all(f"{PRESENT}{name}" in part for part in parts for name in names):
        columns = [jnp.concatenate([part[f"{PRESENT}{name}"] for part in parts]) for name in names]
        present = jnp.stack(columns, axis=1)
    if not (train and dropout > 0 and all("key" in part for part in parts)):
        return present
    keys = jnp.concatenate([part["key"] for part in parts])
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 30))(keys)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - dropout, (len(names),)))(keys)
    present = jnp.ones(kept.shape, jnp.float32) if present is None else present
    hidden = present * kept
    return jnp.where(jnp.sum(hidden, axis=1, keepdims=True) > 0, hidden, present)
