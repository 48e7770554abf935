"""The classifier: one backbone, a head for each label space; all domains go through the backbone as one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Variables = Mapping[str, Any]


@flax.struct.dataclass
class Outputs:
    """What a model says of one domain's batch.

    Attributes:
      logits: f32[B, K].
      features: f32[B, D], the pooled output of the backbone.
    """

    logits: jax.Array
    features: jax.Array


class Head(nn.Module):
    """Features f32[B, D] -> logits f32[B, K]: Dense + ReLU for each of `hidden`, dropout, Dense.

    Attributes:
      classes: K.
      hidden: widths of the hidden layers.
      dropout: the share of the last hidden layer's values that is set to zero in training.
      prior: the initial value of the last bias, K numbers, e.g. the log frequencies of the classes; None: zeros.
    """

    classes: int
    hidden: Sequence[int] = ()
    dropout: float = 0.0
    prior: Sequence[float] | None = None

    @nn.compact
    def __call__(self, features: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """keys: key[B], one for each example, switches dropout on; so it does not depend on the number of devices."""
        x = features
        for i, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, name=f"hidden_{i}")(x))
        if keys is not None and self.dropout > 0:
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, x.shape[1:]))(
                keys
            )
            x = jnp.where(keep, x / (1 - self.dropout), 0.0)
        prior = self.prior
        bias_init = (
            nn.initializers.zeros if prior is None else lambda *_: jnp.asarray(prior, jnp.float32)
        )
        return nn.Dense(self.classes, name="logits", bias_init=bias_init)(x)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Pure functions `init` and `apply` over a backbone and its heads.

    Variables are `{"params": {"backbone": ..., "heads": {HEAD: ...}}, "batch_stats": {"backbone": ...}}`.

    Attributes:
      backbone: image f32[B, H, W, C] -> feature map [B, h, w, D].
      heads: the heads by name.
      head_of: domain -> the name of its head; domains with the same classes may share one.
    """

    backbone: nn.Module
    heads: Mapping[str, Head]
    head_of: Mapping[str, str]

    def init(self, key: jax.Array, image_shape: Sequence[int]) -> dict[str, Any]:
        """Random variables for images of `image_shape` [H, W, C]."""
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        # Not jitted: as one program, the random draws of all layers take longer to compile than layer by layer.
        backbone = self.backbone.lazy_init(jax.random.fold_in(key, 0), image, use_batch_stats=False)
        feature_map = jax.eval_shape(
            lambda v, x: self.backbone.apply(v, x, use_batch_stats=False), backbone, image
        )
        features = jnp.zeros((1, feature_map.shape[-1]), jnp.float32)
        heads = {
            name: head.init(jax.random.fold_in(key, 1 + i), features)["params"]
            for i, (name, head) in enumerate(sorted(self.heads.items()))
        }
        return {
            "params": {"backbone": backbone["params"], "heads": heads},
            "batch_stats": {"backbone": backbone.get("batch_stats", {})},
        }

    def features(
        self,
        variables: Variables,
        image: jax.Array,
        *,
        use_batch_stats: bool = False,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Normalised images f32[B, H, W, C] -> features f32[B, D] (global average pool), and the new running statistics."""
        backbone = {
            "params": variables["params"]["backbone"],
            "batch_stats": variables["batch_stats"]["backbone"],
        }
        applied: Any = self.backbone.apply(
            backbone, image, use_batch_stats=use_batch_stats, mask=mask, mutable=["batch_stats"]
        )
        feature_map: jax.Array = applied[0]
        changed: Any = applied[1]
        stats = changed.get("batch_stats", backbone["batch_stats"])
        return jnp.mean(feature_map.astype(jnp.float32), axis=(1, 2)), {"backbone": stats}

    def apply(
        self,
        variables: Variables,
        batch: Mapping[str, Mapping[str, jax.Array]],
        *,
        train: bool,
        batch_norm: str = "batch",
    ) -> tuple[dict[str, Outputs], Any]:
        """Runs every domain's examples through the backbone as one batch, and through its head.

        Args:
          variables: what `init` gives.
          batch: domain -> `image` f32[B, H, W, C], normalised, or `features` f32[B, D] of a frozen backbone; `mask` f32[B];
            in training `key` key[B] for dropout.
          train: training (dropout, batch statistics) or evaluation.
          batch_norm: in training, "batch" statistics or "frozen" running statistics.

        Returns:
          domain -> Outputs, and the new `batch_stats`.
        """
        domains = sorted(batch)
        stats = variables["batch_stats"]
        if all("features" in batch[d] for d in domains):
            features = {d: batch[d]["features"] for d in domains}
        else:
            joint, stats = self.features(
                variables,
                jnp.concatenate([batch[d]["image"] for d in domains]),
                use_batch_stats=train and batch_norm == "batch",
                mask=jnp.concatenate([batch[d]["mask"] for d in domains]),
            )
            ends = np.cumsum([len(batch[d]["mask"]) for d in domains])
            features = dict(zip(domains, jnp.split(joint, ends[:-1]), strict=True))
        outputs = {}
        for domain in domains:
            name = self.head_of[domain]
            keys = batch[domain].get("key") if train else None
            logits: Any = self.heads[name].apply(
                {"params": variables["params"]["heads"][name]}, features[domain], keys
            )
            outputs[domain] = Outputs(logits=logits.astype(jnp.float32), features=features[domain])
        return outputs, stats
