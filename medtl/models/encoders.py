"""Encoders of tables, texts and features, by name in `config.model.encoders`: [B, F] -> [B, D].

`linear` gives the input itself, so that a head without hidden layers is a linear model; `mlp` has
residual blocks; `dense` is one layer, for the many n-grams of a text.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, Num

DEFAULTS = {"table": "mlp", "text": "dense", "features": "linear"}


class Linear(nn.Module):
    """The input itself, as float32.

    >>> Linear().apply({}, jnp.array([[1, 2]]), False).tolist()
    [[1.0, 2.0]]
    """

    @nn.compact
    def __call__(self, x: Num[Array, "b f"], train: bool) -> Float[Array, "b f"]:
        """Return f32[B, F]."""
        return x.astype(jnp.float32)


class Mlp(nn.Module):
    """A layer and residual blocks, Gorishniy et al. 2021, arXiv:2106.11959, section 3.2.

    `x + Dense(dropout(relu(Dense(norm(x)))))` for each block, then `relu(norm(x))`. LayerNorm
    stands for their BatchNorm, so that an example's features do not depend on its batch.

    Attributes:
      width: D.
      blocks: the number of residual blocks.
      dropout: within a block.
    """

    width: int = 64
    blocks: int = 2
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self, x: Num[Array, "b f"], train: bool, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b d"]:
        """Return f32[B, D]; a key for each example switches dropout on."""
        x = nn.Dense(self.width, name="input")(x.astype(jnp.float32))
        for i in range(self.blocks):
            y = nn.LayerNorm(name=f"block{i}_norm")(x)
            y = nn.relu(nn.Dense(2 * self.width, name=f"block{i}_in")(y))
            if train and key is not None:
                y = _dropped(y, jax.vmap(lambda k, i=i: jax.random.fold_in(k, 10 + i))(key), self)
            x = x + nn.Dense(self.width, name=f"block{i}_out")(y)
        return nn.relu(nn.LayerNorm(name="norm")(x))


class Dense(nn.Module):
    """One layer, `relu(W x + b)`.

    Attributes:
      width: D.
      dropout: of the input.
    """

    width: int = 32
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Num[Array, "b f"], train: bool, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b d"]:
        """Return f32[B, D]; a key for each example switches dropout on."""
        x = x.astype(jnp.float32)
        if train and key is not None:
            x = _dropped(x, jax.vmap(lambda k: jax.random.fold_in(k, 20))(key), self)
        return nn.relu(nn.Dense(self.width, name="layer")(x))


def _dropped(x: jax.Array, keys: jax.Array, module: Mlp | Dense) -> jax.Array:
    """Drop values of each example by its own key, whatever the number of devices."""
    if not module.dropout:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - module.dropout, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - module.dropout), 0.0)


linear, mlp, dense = Linear, Mlp, Dense
