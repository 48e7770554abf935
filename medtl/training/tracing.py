"""Tracing of losses and terms on zeros of the data's shapes, before anything is trained.

It shows which terms apply to a training stage and what they read, and finds losses that raise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medtl.errors import UserError
from medtl.examples import Examples
from medtl.models.model import Model, Outputs, feature_width
from medtl.training.objective import (
    DOMAINS,
    AbsentDomainError,
    Context,
    Loss,
    MixedLabelError,
    Objective,
    Term,
)


def toy_context(
    base: Model,
    drawn: Mapping[str, Any],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    examples: Mapping[str, Examples],
    domains: Sequence[str] = DOMAINS,
    pretrained: Mapping[str, Any] | None = None,
) -> Context:
    """Return a context of zeros with the data's shapes, for tracing a term."""
    n, width = 2, feature_width(base, drawn, inputs)
    outputs, batch = {}, {}
    for domain in domains:
        if domain in examples:
            batch[domain] = toy_batch(examples[domain], n)
            logits = jnp.zeros((n, len(examples[domain].classes)))
            outputs[domain] = Outputs(logits=logits, features=jnp.zeros((n, width)))
    counts = {d: jnp.ones(len(examples[d].classes)) for d in outputs}
    parts = {
        "outputs": outputs,
        "batch": batch,
        "params": drawn["params"],
        "pretrained": drawn["params"]["encoders"] if pretrained is None else pretrained,
        "step": jnp.zeros((), jnp.int32),
        "progress": jnp.zeros(()),
        "classes": {d: examples[d].classes for d in outputs},
        "class_counts": counts,
    }
    return Context(parts)


def toy_batch(examples: Examples, n: int) -> dict[str, Any]:
    """Return a batch of zeros with the shapes and dtypes of the examples'."""
    label = examples.learned
    batch: dict[str, Any] = {
        "label": jnp.zeros((n, *label.shape[1:]), label.dtype),
        "mask": jnp.ones(n),
        "weight": jnp.ones(n),
        "index": jnp.zeros(n, jnp.int32),
        "position": jnp.arange(n, dtype=jnp.int32),
    }
    for name, values in examples.inputs.items():
        first = np.asarray(values[0])
        batch[name] = jnp.zeros((n, *first.shape), first.dtype)
    return batch


@dataclasses.dataclass(frozen=True)
class UsedTerms:
    """The terms that apply to a training stage.

    Attributes:
      terms: that apply.
      reads: the attributes of the context that they read.
      left_out: term -> why it does not apply.
    """

    terms: tuple[Term, ...]
    reads: frozenset[str]
    left_out: Mapping[str, str]


def used_terms(terms: Sequence[Term], context: Context, *, accumulate: int, key: str) -> UsedTerms:
    """Trace each term on a context of zeros, to see what it reads.

    A term that reads a domain which the training stage does not have is left out, and one that
    reads the pretrained weights where the stage starts from random ones.

    Raises:
      UserError: a term fails, or reads the whole batch under gradient accumulation.
    """
    used: list[Term] = []
    reads: set[str] = set()
    left_out: dict[str, str] = {}
    for term in terms:
        traced = dataclasses.replace(context, reads=set())
        try:
            jax.eval_shape(lambda: term(traced))  # noqa: B023
        except AbsentDomainError as error:
            left_out[term.name] = str(error)
            continue
        except MixedLabelError as error:
            raise UserError(f"config.objective.terms.{term.name} {error}; leave out one") from None
        if "pretrained" in traced.reads and not traced.parts["pretrained"]:
            left_out[term.name] = "the stage starts from random weights"
            continue
        over_batch = sorted(traced.reads & {"outputs", "batch"})
        if accumulate > 1 and over_batch:
            raise UserError(
                f"config.objective.terms.{term.name} reads the whole batch "
                f"({', '.join(over_batch)}), but {key}.accumulate is {accumulate}, which divides "
                "it; set accumulate to 1"
            )
        used.append(term)
        reads |= traced.reads
    return UsedTerms(tuple(used), frozenset(reads), left_out)


def check_losses(losses: Sequence[Loss], examples: Examples, width: int) -> None:
    """Trace the losses on arrays of the data's shapes, to find one that raises before training."""
    batch = toy_batch(examples, 4)
    logits, features = jnp.zeros((4, len(examples.classes))), jnp.zeros((4, width))
    objective = Objective(tuple(losses))
    counts = {"target": jnp.ones(len(examples.classes))}

    def value(outputs: Outputs, batch: Any) -> Any:
        return objective(
            {"target": outputs},
            {"target": batch},
            step=0,
            counts={"target": 4.0},
            class_counts=counts,
            progress=jnp.zeros(()),
        )

    jax.eval_shape(value, Outputs(logits=logits, features=features), batch)
