"""The model: an encoder for each input, the fusion of their features, a head for each label space.

The examples of all domains go through an encoder as one batch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from medtl.errors import UserError
from medtl.models.fusion import Gated, presence
from medtl.models.layers import mark_feature_map

Factory = Callable[[], nn.Module]
Variables = Mapping[str, Any]


@flax.struct.dataclass
class Outputs:
    """The model's outputs for the batch of one domain.

    Attributes:
      logits: f32[B, K].
      features: f32[B, D], the fused features of the encoders.
    """

    logits: jax.Array
    features: jax.Array


class Head(nn.Module):
    """Map features to logits: Dense and ReLU for each of `hidden`, dropout, Dense.

    Attributes:
      classes: K.
      hidden: widths of the hidden layers.
      dropout: the share of the last hidden layer's values that training sets to zero.
      prior: the initial value of the last bias, K numbers, e.g. the log frequencies of the classes;
        None: zeros.
      use_bias: whether there is a last bias.
    """

    classes: int
    hidden: Sequence[int] = ()
    dropout: float = 0.0
    prior: Sequence[float] | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, features: Float[Array, "b d"], keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b k"]:
        """Return the logits.

        Args:
          features: f32[B, D].
          keys: key[B], one for each example; switches dropout on. A mask then does not depend on
            the number of devices.
        """
        x = features
        for i, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, name=f"hidden_{i}")(x))
        if keys is not None and self.dropout > 0:
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, x.shape[1:]))(
                keys
            )
            x = jnp.where(keep, x / (1 - self.dropout), 0.0)
        prior = self.prior
        bias = (
            nn.initializers.zeros if prior is None else lambda *_: jnp.asarray(prior, jnp.float32)
        )
        return nn.Dense(self.classes, self.use_bias, name="logits", bias_init=bias)(x)


class Named(nn.Module):
    """A group of submodules with names that are known at run time.

    Attributes:
      factories: name -> a callable that makes the submodule.
    """

    factories: Mapping[str, Factory]

    def setup(self) -> None:
        """Make the submodules."""
        for name, make in self.factories.items():
            setattr(self, name, make())

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one submodule."""
        return getattr(self, name)(*args, **kwargs)


class Model(nn.Module):
    """Encoders, the fusion of their features, and heads.

    Parameters: `encoders/INPUT` and `heads/HEAD`. `init_variables` draws them.

    Attributes:
      make_encoders: input name -> a callable that makes its encoder. An encoder is a Linen module
        `(x, train) -> [B, D]` or a feature map `[B, h, w, D]`, which the model pools by its mean.
      make_heads: head name -> a callable that makes the head.
      head_of: domain -> the name of its head; domains with the same classes may share one.
      fuse: "concat", "gated" (adds the parameters `fusion`) or "late" (heads `fusion.LateHead`).
      modality_dropout: the rate at which training hides each of several inputs.
    """

    make_encoders: Mapping[str, Factory]
    make_heads: Mapping[str, Factory]
    head_of: Mapping[str, str]
    fuse: str = "concat"
    modality_dropout: float = 0.0

    def setup(self) -> None:
        """Make the groups of submodules."""
        self.encoders = Named(self.make_encoders)
        self.heads = Named(self.make_heads)
        if self.is_gated:
            self.fusion = Gated()

    @property
    def is_gated(self) -> bool:
        """Whether a gated sum fuses the features of several inputs."""
        return self.fuse == "gated" and len(self.make_encoders) > 1

    @property
    def is_late(self) -> bool:
        """Whether each of several inputs has a head of its own."""
        return self.fuse == "late" and len(self.make_encoders) > 1

    def __call__(
        self, batch: Mapping[str, Mapping[str, Any]], train: bool, *, batch_norm: str = "batch"
    ) -> dict[str, Outputs]:
        """Return each domain's logits and features.

        Args:
          batch: domain -> the inputs by name, normalized, or `encoded_INPUT` f32[B, D], the output
            of a frozen encoder; `mask` f32[B]; in training `key` key[B] for dropout.
          train: training (dropout, batch statistics) or evaluation.
          batch_norm: in training, "batch" statistics or "frozen" running statistics.
        """
        domains = sorted(batch)
        names = list(self.make_encoders)
        encoded = [self._encode(name, batch, train, batch_norm) for name in names]
        present = presence(batch, names, train=train, dropout=self.modality_dropout)
        if present is not None:
            encoded = [x * present[:, m, None] for m, x in enumerate(encoded)]
        if self.is_gated:
            fused = self.fusion(encoded, present)
        else:
            fused = encoded[0] if len(encoded) == 1 else jnp.concatenate(encoded, axis=-1)
        ends = np.cumsum([len(batch[d]["mask"]) for d in domains])
        outputs = {}
        for i, domain in enumerate(domains):
            rows = slice(ends[i] - len(batch[domain]["mask"]), ends[i])
            keys = batch[domain].get("key") if train else None
            if self.is_late:
                parts = [x[rows] for x in encoded]
                shown = None if present is None else present[rows]
                logits = self.heads(self.head_of[domain], parts, keys, shown)
            else:
                logits = self.heads(self.head_of[domain], fused[rows], keys)
            outputs[domain] = Outputs(logits=logits.astype(jnp.float32), features=fused[rows])
        return outputs

    def encode(self, batch: Mapping[str, Any], name: str = "image") -> jax.Array:
        """Return the features f32[B, D] of one input of one domain's batch, in evaluation mode."""
        return self._encode(name, {"": batch}, train=False, batch_norm="frozen")

    def _encode(
        self, name: str, batch: Mapping[str, Mapping[str, Any]], train: bool, batch_norm: str
    ) -> jax.Array:
        parts = [batch[domain] for domain in sorted(batch)]
        if all(f"encoded_{name}" in part for part in parts):
            return jnp.concatenate([part[f"encoded_{name}"] for part in parts])
        use_batch_stats = train and batch_norm == "batch"
        optional = {
            "mask": jnp.concatenate([part["mask"] for part in parts]),
            "use_batch_stats": use_batch_stats,
        }
        if all("key" in part for part in parts):
            optional["key"] = jnp.concatenate([part["key"] for part in parts])
        accepted = _optional_arguments(self.make_encoders[name])
        if "use_batch_stats" not in accepted:
            train = use_batch_stats  # frozen statistics stay frozen
        x = jnp.concatenate([part[name] for part in parts])
        x = self.encoders(name, x, train, **{k: v for k, v in optional.items() if k in accepted})
        if x.ndim == 4:
            if name == "image":
                x = mark_feature_map(self, x)
            x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        if x.ndim != 2:
            raise UserError(
                f"the encoder of {name!r} returns {list(x.shape)}; it must return [B, D] or "
                "[B, h, w, D]"
            )
        return x.astype(jnp.float32)


def init_variables(
    model: Model, key: jax.Array, inputs: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """Draw random variables.

    Each encoder and head is initialized alone and without jit: as one program, the random draws of
    all layers take longer to compile than layer by layer.

    Args:
      model: the model.
      key: key[].
      inputs: input name -> shape and dtype of a batch of one example.

    Returns:
      `{"params": {"encoders": ..., "heads": ...}, "batch_stats": {"encoders": ...}}`; without
      BatchNorm `batch_stats` is empty.
    """
    params: dict[str, Any] = {"encoders": {}, "heads": {}}
    batch_stats: dict[str, Any] = {}
    for i, (name, make) in enumerate(model.make_encoders.items()):
        own_key = jax.random.fold_in(key, 0 if name == "image" else 1000 + i)
        drawn: Any = make().lazy_init(own_key, inputs[name], False)
        if "params" in drawn:
            params["encoders"][name] = drawn["params"]
        if "batch_stats" in drawn:
            batch_stats.setdefault("encoders", {})[name] = drawn["batch_stats"]
    widths = _widths(model, {"params": params, "batch_stats": batch_stats}, inputs)
    parts = [jnp.zeros((1, width), jnp.float32) for width in widths]
    if model.is_gated:
        drawn = Gated().init(jax.random.fold_in(key, 3000), parts, None)
        params["fusion"] = drawn["params"]
    fused = jnp.zeros((1, max(widths) if model.is_gated else sum(widths)), jnp.float32)
    for i, (name, make) in enumerate(sorted(model.make_heads.items())):
        drawn = make().init(jax.random.fold_in(key, 1 + i), parts if model.is_late else fused)
        params["heads"][name] = drawn["params"]
    return {"params": params, "batch_stats": batch_stats}


def feature_width(
    model: Model, variables: Variables, inputs: Mapping[str, jax.ShapeDtypeStruct]
) -> int:
    """Return D, the number of fused features."""
    widths = _widths(model, variables, inputs)
    return max(widths) if model.is_gated else sum(widths)


def _widths(
    model: Model, variables: Variables, inputs: Mapping[str, jax.ShapeDtypeStruct]
) -> list[int]:
    """Return the number of features of each encoder."""
    return [
        jax.eval_shape(
            functools.partial(model.apply, method="encode", name=name),
            variables,
            {name: inputs[name], "mask": jax.ShapeDtypeStruct((1,), jnp.float32)},
        ).shape[-1]
        for name in model.make_encoders
    ]


def _optional_arguments(make: Factory) -> set[str]:
    """Return which of the optional arguments an encoder takes."""
    module: Any = make.func if isinstance(make, functools.partial) else make
    parameters = inspect.signature(module.__call__).parameters.values()
    names = {"mask", "use_batch_stats", "key"}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return names
    return names & {p.name for p in parameters}
