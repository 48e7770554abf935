"""The objective: per-example losses, masked and weighed, reduced to one scalar and its parts.

    L = mean_source + λ · mean_target                                                      (reduction "mean")
    L = Σ_source + λ · Σ_target, estimated without bias as n_s · mean_source + λ · n_t · mean_target   (reduction "sum")

with the mean over the examples of a batch of `Σ_terms weight · ℓ(outputs, batch)`, each example times its own weight, and
n_s, n_t the sizes of the training sets. The two have the same minimiser where λ_mean = λ_sum · n_t / n_s: of a source ten
times as large as the target, λ_sum = 1 gives each target example the weight of a source example, which is λ_mean = 0.1. The
sum's gradient is n_s times the mean's: Adam does not notice, SGD's learning rate must be divided by n_s.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medtl.errors import UserError

Batch = Mapping[str, Mapping[str, jax.Array]]
Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of the objective.

    Attributes:
      name: what it is called in the log.
      loss: (Outputs, batch of one domain) -> f32[B].
      weight: its factor.
    """

    name: str
    loss: Callable[[Any, Mapping[str, jax.Array]], jax.Array]
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Objective:
    """The λ-weighted joint objective; without a source in the batch it is the target's mean alone, without λ, and the other way round.

    Attributes:
      terms: the losses; each is taken over both domains.
      lambda_: λ, a float or an Optax schedule over steps; never negative.
      reduction: "mean" or "sum" over each domain.
      sizes: domain -> the size of its training set; needed by "sum".
    """

    terms: tuple[Term, ...]
    lambda_: float | Schedule = 1.0
    reduction: str = "mean"
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not callable(self.lambda_) and not (math.isfinite(self.lambda_) and self.lambda_ >= 0):
            raise UserError(
                f"objective.lambda_ is {self.lambda_}; it must be a finite number of at least 0"
            )
        if self.reduction not in ("mean", "sum"):
            raise UserError(f"objective.reduction is {self.reduction!r}; it can be 'mean' or 'sum'")

    def lambda_at(self, step: jax.Array | int) -> jax.Array:
        """λ at a step, f32[]."""
        return jnp.asarray(
            self.lambda_(step) if callable(self.lambda_) else self.lambda_, jnp.float32
        )

    def check(self, steps: int) -> None:
        """Refuses a schedule that makes λ negative or infinite within `steps` steps."""
        if callable(self.lambda_):
            values = np.asarray(jax.vmap(self.lambda_at)(jnp.arange(max(steps, 1))))
            wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
            if len(wrong):
                raise UserError(
                    f"config.objective.lambda_schedule gives λ = {values[wrong[0]]:g} at step {wrong[0]}; it must stay at least 0"
                )

    def counts(self, batch: Batch) -> dict[str, jax.Array]:
        """domain -> f32[], the number of real examples in this (part of a) batch."""
        return {domain: jnp.sum(part["mask"]) for domain, part in batch.items()}

    def __call__(
        self,
        outputs: Mapping[str, Any],
        batch: Batch,
        *,
        step: jax.Array | int,
        counts: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The objective over this part of a batch; over all parts (devices, accumulated micro-batches) the values add up.

        Args:
          outputs: domain -> Outputs.
          batch: domain -> batch with `mask` f32[B], and what the losses ask for; `weight` f32[B] is optional.
          step: for the schedule of λ.
          counts: domain -> the number of real examples in the whole global batch.

        Returns:
          The loss f32[], and its parts by name: `TERM/DOMAIN` (before weights and λ), `source`, `target` (before λ), `loss`.
        """
        parts: dict[str, jax.Array] = {}
        loss = jnp.zeros((), jnp.float32)
        for domain in sorted(batch):
            mask = batch[domain]["mask"]
            weight = mask * batch[domain]["weight"] if "weight" in batch[domain] else mask
            scale = (self.sizes[domain] if self.reduction == "sum" else 1.0) / jnp.maximum(
                counts[domain], 1.0
            )
            total = jnp.zeros((), jnp.float32)
            for term in self.terms:
                values = term.loss(outputs[domain], batch[domain])
                if not (
                    isinstance(values, jax.Array) and jnp.issubdtype(values.dtype, jnp.floating)
                ):
                    raise UserError(
                        f"loss {term.name!r} gives {values!r}; it must give f32{list(mask.shape)}"
                    )
                if values.shape != mask.shape:
                    raise UserError(
                        f"loss {term.name!r} gives shape {values.shape}; it must give one value per example, {mask.shape}"
                    )
                # where, not a product: of a padded row that is infinite, 0 * inf would be NaN.
                parts[f"{term.name}/{domain}"] = (
                    jnp.sum(jnp.where(mask > 0, weight * values, 0.0)) * scale
                )
                total += term.weight * parts[f"{term.name}/{domain}"]
            parts[domain] = total
            loss += (
                self.lambda_at(step) * total if domain == "target" and "source" in batch else total
            )
        parts["loss"] = loss
        return loss, parts
