"""λ that chooses itself: by uncertainty, by a held-out loss, or a weight for each source example.

| `objective.balance` | the objective | what is learnt |
|---|---|---|
| "fixed" | L_s + λ L_t | nothing |
| "uncertainty" | e^-a L_s + e^-b L_t + (a + b) / 2 | log-variances a, b; λ = e^(a - b) |
| "learned" | (1 + λ₀) ((1 - π) L_s + π L_t) | π; λ = π / (1 - π) |
| "reweight" | Σ_i w_i ℓ_i + λ L_t | w_i of each source example, anew in each step |

All begin at λ₀, the config's `lambda_`. The last two look at the loss of a part of the target's
train that is held out: its examples are padding to the objective, never those of val or test.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medtl.data.splits import parts
from medtl.examples import Examples
from medtl.training.objective import Batch, Objective

MODES = ("fixed", "uncertainty", "learned", "reweight")
HELD_OUT = ("learned", "reweight")  # those that hold out a part of train
NAME = "balance"  # of the parameters, among those of the terms
SHARE = 0.2  # of the target's train that is held out


def initial(mode: str, lambda_: float) -> dict[str, np.ndarray]:
    """Return the parameters at which λ is `lambda_`; {} for modes without any."""
    log = np.float32(math.log(lambda_)) if lambda_ > 0 else np.float32(-np.inf)
    if mode == "uncertainty":
        return {"source": np.zeros((), np.float32), "target": np.asarray(-log)}
    return {"logit": np.asarray(log)} if mode == "learned" else {}


def names(mode: str) -> set[str]:
    """Return the names of the parameters that a mode owns, among those of the terms."""
    return {NAME} if initial(mode, 1.0) else set()


def lambda_of(mode: str, params: Mapping[str, Any]) -> jax.Array:
    """Return λ, the ratio of the target's factor to the source's, f32[]."""
    own = params["terms"][NAME]
    return jnp.exp(own["source"] - own["target"] if mode == "uncertainty" else own["logit"])


def weighted(
    objective: Objective, mode: str, params: Mapping[str, Any]
) -> tuple[Objective, jax.Array]:
    """Return the objective with learnt factors of both domains, and what is added to it.

    - "uncertainty": Kendall et al. 2018, arXiv:1705.07115, equation 10: the factors e^-a and e^-b,
      and (a + b) / 2. Its minimum over a and b is at e^a = 2 L_s, e^b = 2 L_t, so that
      λ = L_s / L_t.
    - "learned": the factors of the table above, which the loss itself does not change.

    Args:
      objective: with a number λ₀ as `lambda_`.
      mode: of `MODES`.
      params: the parameters; `terms/balance` is read.
    """
    nothing, start = jnp.zeros(()), objective.lambda_at(0)
    if mode == "uncertainty":
        own = params["terms"][NAME]
        source, target = jnp.exp(-own["source"]), jnp.exp(-own["target"])
        nothing = (own["source"] + own["target"]) / 2
    elif mode == "learned":
        pi = jax.nn.sigmoid(jax.lax.stop_gradient(params["terms"][NAME]["logit"]))
        source, target = (1 + start) * (1 - pi), (1 + start) * pi
    else:
        return objective, nothing
    return dataclasses.replace(
        objective, lambda_=lambda step: target, source_factor=source
    ), nothing


def by_domain(objective: Objective, parts: Mapping[str, Any]) -> jax.Array:
    """Return the source's and the target's part of an objective, and the rest, f32[3]."""
    source = objective.source_factor * parts["source"]
    target = objective.lambda_at(0) * parts["target"]
    return jnp.stack([source, target, parts["loss"] - source - target])


def shares(params: Mapping[str, Any]) -> jax.Array:
    """Return d log(factor) / d logit of the source and the target with "learned", f32[2]."""
    pi = jax.nn.sigmoid(params["terms"][NAME]["logit"])
    return jnp.stack([-pi, 1 - pi])


def held_out(examples: Examples, seed: int) -> np.ndarray:
    """Return f32[N], 1 for the fifth of the target's train that is held out, else 0.

    It is stratified by class, and a patient's images stay together.
    """
    rows = examples.indices("train")
    patient = None if examples.patient is None else examples.patient[rows]
    drawn = parts(examples.label[rows], [1 - SHARE, SHARE], key=(seed, 6), patient=patient)
    made = np.zeros(len(examples), np.float32)
    made[rows] = drawn == 1
    return made


def divide(batch: Batch, is_held: jax.Array) -> tuple[Batch, Batch, jax.Array]:
    """Divide a batch into what is trained on and the held-out examples of the target.

    Args:
      batch: of both domains, with `index`.
      is_held: f32[N], of `held_out`.

    Returns:
      The batch, in which held-out examples are padding; the target's batch, in which the others
      have the weight 0 but count for BatchNorm; and the number of held-out examples, f32[].
    """
    target = batch["target"]
    held = is_held[jnp.maximum(target["index"], 0)] * target["mask"]
    training = {**batch, "target": {**target, "mask": target["mask"] * (1 - held)}}
    return training, {"target": {**target, "weight": target["weight"] * held}}, jnp.sum(held)


def hold_out(
    mode: str, batch: Batch, is_held: jax.Array, trained: Any, loss_of: Callable[..., Any],
    total: Callable[[Any], Any],
) -> tuple[Batch, Callable[[Any], Any], dict[str, jax.Array]]:  # fmt: skip
    """Hold a part of the target out and, with "reweight", weigh the source by it.

    Args:
      mode: "learned" or "reweight".
      batch: of both domains.
      is_held: f32[N], of `held_out`.
      trained: the trained parameters.
      loss_of: (parameters, batch, counts by domain) -> (value, (parts, ...)), without terms.
      total: adds up over devices.

    Returns:
      The batch to train on, the held-out loss of the parameters, and numbers to log.
    """
    batch, held_batch, n = divide(batch, is_held)
    source, whole = batch["source"], batch

    def held(trained: Any) -> Any:
        return loss_of(trained, held_batch, {"target": n})[0]

    def with_factors(factors: Any) -> Batch:
        return {**whole, "source": {**source, "weight": source["weight"] * factors}}

    def source_loss(trained: Any, factors: Any) -> Any:
        counts = {domain: jnp.sum(part["mask"]) for domain, part in whole.items()}
        return loss_of(trained, with_factors(factors), counts)[1][0]["source"]

    if mode == "learned":
        return batch, held, {}
    factors, found = example_weights(source_loss, held, trained, source["mask"], total)
    return with_factors(factors), held, found


def through_one_step(
    held_loss: Callable[[Any], Any], trained: Any, gradient: Any, direction: Any, rate: Any,
    total: Callable[[Any], Any],
) -> jax.Array:  # fmt: skip
    """Return the gradient of the held-out loss by the logit of π, through one step, f32[].

        d/da L_v(θ - η g(a)) / η = -∇L_v(θ - η g) · dg/da

    g is linear in the factors of both domains, so that this is exact. Ren et al. 2018,
    arXiv:1803.09050, equations 6 and 7, for two weights in place of one for each example.

    Args:
      held_loss: of the trained parameters θ, on this device's part of the batch.
      trained: θ.
      gradient: g, of the objective.
      direction: dg/da.
      rate: η, the learning rate.
      total: adds up over devices.
    """
    moved = jax.tree.map(lambda x, g: x - rate * g, trained, gradient)
    return -optax.tree.vdot(total(jax.grad(held_loss)(moved)), direction)


def example_weights(
    source_loss: Callable[[Any, Any], Any], held_loss: Callable[[Any], Any], trained: Any,
    mask: jax.Array, total: Callable[[Any], Any],
) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """Return weights of source examples by how much a step on each lowers the held-out loss.

        w_i ∝ max(0, ∇L_v · ∇ℓ_i),  with the mean 1; all are 0 where no example helps

    Ren et al. 2018, arXiv:1803.09050, algorithm 1: the derivative of the held-out loss after one
    step by the weight of the example, at 0.

    Args:
      source_loss: (θ, f32[B]) -> the source's loss with these factors of its examples.
      held_loss: of θ.
      trained: θ.
      mask: f32[B], of the source.
      total: adds up over devices.

    Returns:
      f32[B]; and for the log the share of source examples that help, and the effective sample size
      of the weights as a share of the examples.
    """
    held = total(jax.grad(held_loss)(trained))

    def along(factors: jax.Array) -> jax.Array:
        return optax.tree.vdot(jax.grad(source_loss)(trained, factors), held)

    helps = jnp.where(mask > 0, jnp.maximum(jax.grad(along)(mask), 0.0), 0.0)
    n, sum_, squares, positive = total(
        (jnp.sum(mask), jnp.sum(helps), jnp.sum(helps**2), jnp.sum(helps > 0))
    )
    n = jnp.maximum(n, 1.0)
    found = {
        "balance/helping": positive / n,
        "balance/effective": sum_**2 / jnp.where(squares > 0, squares, 1.0) / n,
    }
    return helps * jnp.where(sum_ > 0, n / jnp.where(sum_ > 0, sum_, 1.0), 0.0), found
