"""The head for ordered grades: the cumulative-link model of McCullagh (1980), proportional odds.

With the latent score f of an example and rising cutpoints c_1 < ... < c_{K-1},
`P(grade <= k) = σ(c_k - f)` (J R Stat Soc B 42, 109; section 2.1). One score orders all grades, so
K grades take K - 2 parameters more than two classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from medtl.models.model import Head


def log_probabilities(
    latent: Float[Array, " b"], cutpoints: Float[Array, " c"]
) -> Float[Array, "b k"]:
    """Return the log probabilities of K grades under the cumulative-link model.

    `log(σ(b) - σ(a)) = log σ(b) + log σ(-a) + log(1 - exp(a - b))` for a < b, which neither
    cancels nor overflows far from the cutpoints.

    Args:
      latent: float[B], the scores f.
      cutpoints: float[K - 1], rising strictly.

    Returns:
      f32[B, K].

    >>> print(jnp.exp(log_probabilities(jnp.zeros(1), jnp.array([0.0]))))
    [[0.5 0.5]]
    """
    cutpoints = cutpoints.astype(jnp.float32)
    edges = cutpoints[None] - latent[:, None].astype(jnp.float32)
    below, above = jax.nn.log_sigmoid(edges), jax.nn.log_sigmoid(-edges)
    between = below[:, 1:] + above[:, :-1] + jnp.log(-jnp.expm1(-jnp.diff(cutpoints)))
    return jnp.concatenate([below[:, :1], between, above[:, -1:]], axis=1)


class CumulativeLinkHead(nn.Module):
    """Map features to the log probabilities of K grades in rising order.

    The softmax of the result is the probabilities, so that losses, metrics and calibration of
    classes apply. Attributes are those of `Head`; the cutpoints start where the grades have the
    frequencies of `prior`, or equal ones. Weight decay leaves the cutpoints alone.
    """

    classes: int
    hidden: Sequence[int] = ()
    dropout: float = 0.0
    prior: Sequence[float] | None = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "b d"], keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b k"]:
        """Return f32[B, K]; arguments as those of `Head`."""
        # The cutpoints are the only intercepts: a bias beside them could not be told from them.
        head = Head(1, self.hidden, self.dropout, use_bias=False, name="latent")
        latent = head(features, keys)[:, 0]
        share = np.exp(np.asarray(self.prior or [0.0] * self.classes, np.float64))
        below = np.cumsum(share / share.sum())[:-1]
        start = np.log(below / (1 - below))
        cutpoints = self.param("first_cutpoint", lambda _: jnp.asarray(start[:1], jnp.float32))
        if self.classes > 2:
            gaps = np.log(np.diff(start))
            log_gaps = self.param("log_gaps", lambda _: jnp.asarray(gaps, jnp.float32))
            rest = cutpoints + jnp.cumsum(jnp.exp(log_gaps))
            cutpoints = jnp.concatenate([cutpoints, rest])
        return log_probabilities(latent, cutpoints)
