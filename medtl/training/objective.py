"""The objective: per-example losses and terms over the whole batch, reduced to one scalar.

    L = mean_source + λ · mean_target + Σ_terms weight · term                   (reduction "mean")
    L = Σ_source + λ · Σ_target + Σ_terms weight · term                         (reduction "sum")

A domain's mean is the mean over a batch's real examples of `Σ_losses weight · ℓ(outputs, batch)`,
each example times its own weight. The sums are estimated without bias as n_s · mean_source and
n_t · mean_target, with n_s and n_t the sizes of the training sets. Both forms have the same
minimizer where λ_mean = λ_sum · n_t / n_s: with a source ten times as large as the target,
λ_sum = 1 gives a target example the weight of a source example, which is λ_mean = 0.1. The gradient
of the sum is n_s times that of the mean: Adam is invariant to it, SGD's learning rate must be
divided by n_s.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from medtl import plugins
from medtl.errors import UserError

Batch = Mapping[str, Mapping[str, jax.Array]]
Schedule = Callable[[Any], Any]
DOMAINS = ("source", "target")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A per-example loss, taken over both domains.

    Attributes:
      name: its name in the log.
      loss: (Outputs, batch of one domain) -> f32[B]. An argument `class_counts` gets f32[K], the
        number of train examples of each class in the domain; `progress` gets f32[], the share of
        the stage's steps that are done.
      weight: its factor.
    """

    name: str
    loss: Callable[..., jax.Array]
    weight: float = 1.0

    @functools.cached_property
    def takes(self) -> frozenset[str]:
        """The arguments that training gives beside the outputs and the batch."""
        return plugins.accepted(self.loss, ("class_counts", "progress"))


class AbsentDomainError(UserError):
    """A term reads a domain that the batch does not hold."""


class MixedLabelError(UserError):
    """A term reads the labels of examples that are mixed in pairs."""


class ByDomain(dict):
    """Domain -> value; a domain that is not there is an error of its own kind."""

    def __missing__(self, domain: str) -> Any:
        if domain in DOMAINS:
            raise AbsentDomainError(f"the batch holds no examples of the {domain}")
        raise KeyError(domain)


class _Mixed(dict):
    """A batch whose examples are mixed in pairs, so that none has one label."""

    def __missing__(self, name: str) -> Any:
        if name == "label":
            raise MixedLabelError("reads labels, but config.augment.mix mixes two in an example")
        raise KeyError(name)


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """The arguments of a term: the whole global batch and the parameters.

    | attribute | holds |
    |---|---|
    | `outputs` | domain -> Outputs: `logits` f32[B, K], `features` f32[B, D] |
    | `batch` | domain -> `label`, `mask`, `weight`, `index`, `position` and the raw inputs |
    | `params` | all parameters, nested: `encoders`, `heads`, `terms` |
    | `pretrained` | the transferred encoders at the start of the stage; {} for a random start |
    | `step` | i32[], the optimizer step |
    | `progress` | f32[], the share of the stage's steps that are done |
    | `classes` | domain -> the K names |
    | `class_counts` | domain -> f32[K], the number of train examples of each class |

    B is the global batch on every device: rows are gathered when `outputs` or `batch` is read. Rows
    whose `mask` is 0 are padding. `reads` records which attributes a term has read.
    """

    parts: Mapping[str, Any]
    gather: Callable[[Any], Any] = lambda tree: tree
    reads: set[str] = dataclasses.field(default_factory=set)

    def _read(self, name: str) -> Any:
        self.reads.add(name)
        return self.parts[name]

    @property
    def outputs(self) -> Mapping[str, Any]:
        return ByDomain(self.gather(dict(self._read("outputs"))))

    @property
    def batch(self) -> Mapping[str, Mapping[str, jax.Array]]:
        batch = self.gather(dict(self._read("batch")))
        return ByDomain({d: p if "label" in p else _Mixed(p) for d, p in batch.items()})

    @property
    def params(self) -> Any:
        return self._read("params")

    @property
    def pretrained(self) -> Any:
        return self._read("pretrained")

    @property
    def step(self) -> jax.Array:
        return self._read("step")

    @property
    def progress(self) -> jax.Array:
        return self._read("progress")

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        return ByDomain(self._read("classes"))

    @property
    def class_counts(self) -> Mapping[str, jax.Array]:
        return ByDomain(self._read("class_counts"))


@dataclasses.dataclass(frozen=True)
class Term:
    """A scalar over the whole batch and the parameters.

    Attributes:
      name: its name in the log, after "term/".
      term: (Context) -> f32[], or a Linen module that is called with it and owns parameters, which
        are `params["terms"][name]`.
      weight: its factor.
    """

    name: str
    term: Callable[[Context], jax.Array] | nn.Module
    weight: float = 1.0

    def __call__(self, context: Context) -> jax.Array:
        """Return the term's value f32[], without its weight.

        Raises:
          UserError: the term does not return one number.
        """
        if isinstance(self.term, nn.Module):
            parameters = context.parts["params"].get("terms", {}).get(self.name, {})
            value: Any = self.term.apply({"params": parameters}, context)
        else:
            value = self.term(context)
        if not isinstance(value, jax.Array | float):
            raise UserError(f"term {self.name!r} returns {value!r}; it must return f32[]")
        value = jnp.asarray(value)
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            kind = f"{value.dtype}{list(value.shape)}"
            raise UserError(f"term {self.name!r} returns {kind}; it must return f32[]")
        return value.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The λ-weighted joint objective.

    With one domain in the batch the loss is that domain's mean, unscaled by λ.

    Attributes:
      losses: each is taken over both domains.
      lambda_: λ, a float or an Optax schedule over steps; never negative.
      reduction: "mean" or "sum" over each domain.
      sizes: domain -> the size of its training set; needed by "sum".
      terms: scalars over the whole batch.
      source_factor: the factor of the source in a joint stage; not 1 only where it is learnt.
    """

    losses: tuple[Loss, ...]
    lambda_: float | Schedule = 1.0
    reduction: str = "mean"
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    terms: tuple[Term, ...] = ()
    source_factor: Any = 1.0

    def __post_init__(self) -> None:
        if not callable(self.lambda_) and not (math.isfinite(self.lambda_) and self.lambda_ >= 0):
            raise UserError(
                f"objective.lambda_ is {self.lambda_}; it must be a finite number of at least 0"
            )
        if self.reduction not in ("mean", "sum"):
            raise UserError(f"objective.reduction is {self.reduction!r}; it can be 'mean' or 'sum'")

    def lambda_at(self, step: jax.Array | int) -> jax.Array:
        """Return λ at a step, f32[]."""
        value = self.lambda_(step) if callable(self.lambda_) else self.lambda_
        return jnp.asarray(value, jnp.float32)

    def check(self, steps: int) -> None:
        """Refuse a schedule that makes λ negative or infinite within `steps` steps."""
        if callable(self.lambda_):
            values = np.asarray(jax.vmap(self.lambda_at)(jnp.arange(max(steps, 1))))
            wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
            if len(wrong):
                raise UserError(
                    f"config.objective.lambda_schedule gives λ = {values[wrong[0]]:g} at step "
                    f"{wrong[0]}; it must stay at least 0"
                )

    def counts(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """Return for each domain the number of real examples in this (part of a) batch, f32[]."""
        return {domain: jnp.sum(part["mask"]) for domain, part in batch.items()}

    def __call__(
        self,
        outputs: Mapping[str, Any],
        batch: Batch,
        *,
        step: Any,
        counts: Mapping[str, Any],
        context: Context | None = None,
        share: float = 1.0,
        class_counts: Mapping[str, Any] | None = None,
        progress: Any = 0.0,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Return the objective over this part of a batch.

        | the batch is | what adds up to the objective |
        |---|---|
        | whole | the returned value |
        | spread over n devices | the sum of the devices' values, each with `share` 1/n |
        | accumulated in n parts | the sum of the parts' values, each with `share` 1/n |

        Args:
          outputs: domain -> Outputs.
          batch: domain -> batch with `mask` f32[B] and what the losses read; `weight` f32[B] is
            optional.
          step: for the schedule of λ.
          counts: domain -> the number of real examples in the whole global batch.
          context: for the terms; None: there are none.
          share: the part of each term that this part of the batch contributes.
          class_counts: domain -> f32[K], for the losses that take them.
          progress: f32[], for the losses that take it.

        Returns:
          The loss f32[], and its parts by name: `LOSS/DOMAIN` and `term/TERM` (before weights and
          λ), `source`, `target` (before λ), `loss`.

        Raises:
          UserError: a loss does not return one value for each example, or a term one number.
        """
        parts: dict[str, jax.Array] = {}
        loss = jnp.zeros((), jnp.float32)
        for domain in sorted(batch):
            given = {"class_counts": (class_counts or {}).get(domain), "progress": progress}
            total = self._mean(domain, outputs[domain], batch[domain], counts[domain], given, parts)
            parts[domain] = total
            factor = self.lambda_at(step) if domain == "target" else self.source_factor
            loss += factor * total if len(batch) > 1 else total
        for term in self.terms:
            assert context is not None
            parts[f"term/{term.name}"] = share * term(context)
            loss += term.weight * parts[f"term/{term.name}"]
        parts["loss"] = loss
        return loss, parts

    def _mean(
        self,
        domain: str,
        outputs: Any,
        batch: Mapping[str, Any],
        count: Any,
        given: Mapping[str, Any],
        parts: dict[str, Any],
    ) -> jax.Array:
        mask = batch["mask"]
        weight = mask * batch["weight"] if "weight" in batch else mask
        scale = (self.sizes[domain] if self.reduction == "sum" else 1.0) / jnp.maximum(count, 1.0)
        total = jnp.zeros((), jnp.float32)
        for loss in self.losses:
            arguments = {name: given[name] for name in loss.takes}
            values = loss.loss(outputs, batch, **arguments)
            floating = isinstance(values, jax.Array) and jnp.issubdtype(values.dtype, jnp.floating)
            if not floating:
                returned = getattr(values, "dtype", values)
                raise UserError(
                    f"loss {loss.name!r} returns {returned}; it must return f32{list(mask.shape)}"
                )
            if values.shape != mask.shape:
                raise UserError(
                    f"loss {loss.name!r} returns shape {values.shape}; it must return one value "
                    f"per example, {mask.shape}"
                )
            # where, not a product: 0 * inf of a padded row would be NaN.
            if "share" in batch:  # two examples are mixed, see `mixing`
                share, partner = batch["share"], {**batch, "label": batch["partner_label"]}
                other = loss.loss(outputs, partner, **arguments)
                values = share * weight * values
                values += (1 - share) * mask * batch["partner_weight"] * other
            else:
                values = weight * values
            part = jnp.sum(jnp.where(mask > 0, values, 0.0)) * scale
            parts[f"{loss.name}/{domain}"] = part
            total += loss.weight * part
        return total
