"""A model's variables before the first training stage: drawn, then overlaid by the loaded ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import linen as nn
from flax import traverse_util

from medtl import plugins, weights
from medtl.errors import UserError
from medtl.examples import Examples
from medtl.models.model import Model, init_variables
from medtl.training import tracing
from medtl.training.objective import AbsentDomainError, Context, Term

if TYPE_CHECKING:
    from medtl.training.factory import Components


def variables(
    base: Model,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    components: Components,
    examples: Mapping[str, Examples],
    seed: int,
    loaded: weights.Pretrained | None,
) -> dict[str, Any]:
    """Return the variables before the first training stage.

    Args:
      base: the model.
      inputs: from `input_specs`.
      components: whose terms may own parameters.
      examples: domain -> examples, for the shapes that terms see.
      seed: random values are drawn from it.
      loaded: replaces the image encoder's; None: all are random.
    """
    key = jax.random.key(seed)
    drawn = jax.device_get(init_variables(base, key, inputs))
    for i, term in enumerate(components.terms):
        if isinstance(term.term, nn.Module):
            context = tracing.toy_context(base, drawn, inputs, examples)
            of_term = _drawn_term(term, jax.random.fold_in(key, 2000 + i), context)
            if "params" in of_term:
                parameters = drawn["params"].setdefault("terms", {})
                parameters[term.name] = jax.device_get(of_term["params"])
    if loaded is None:
        return drawn
    for collection, values in loaded.variables.items():
        if values:
            encoders = drawn[collection]["encoders"]
            encoders["image"] = overlaid(encoders["image"], values)
    return drawn


def _drawn_term(term: Term, key: jax.Array, context: Context) -> Mapping[str, Any]:
    """Return a term's variables; {} where it reads a domain that no arm reads."""
    module: Any = term.term
    path = inspect.getsourcefile(type(module)) or ""
    try:
        with plugins.blame(path, key=f"config.objective.terms.{term.name}.term"):
            of_term = module.init(key, context)
    except AbsentDomainError:
        return {}
    if others := sorted(of_term.keys() - {"params"}):
        raise UserError(
            f"config.objective.terms.{term.name}.term has {', '.join(others)}; a term can own "
            "parameters alone"
        )
    return of_term


def overlaid(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts `tree` with the leaves of `other` in their places."""
    flat = {**traverse_util.flatten_dict(tree), **traverse_util.flatten_dict(other)}
    return traverse_util.unflatten_dict(flat)
