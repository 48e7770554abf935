"""The fields of the objective: losses, terms, λ and the weights of the source. Imports no JAX."""

from __future__ import annotations

from medtl.config.rules import Entries, Field, Node, PluginString, at_least, one_of
from medtl.data import source_weights

REDUCTIONS = ("mean", "sum")

_LOSS: dict[str, Node] = {
    "loss": Field("cross_entropy", "A loss for each example.", PluginString("medtl.losses")),
    "weight": Field(1.0, "Its factor.", at_least(0)),
}
_TERM: dict[str, Node] = {
    "term": Field(
        "",
        "A term over the whole batch of both domains, or over the parameters.",
        PluginString("medtl.losses.terms"),
    ),
    "weight": Field(1.0, "Its factor.", at_least(0)),
}
OBJECTIVE: dict[str, Node] = {
    "lambda_": Field(1.0, "The factor of the target in a joint target stage.", at_least(0)),
    "lambda_schedule": Field(
        "",
        'An Optax schedule in place of lambda_, e.g. "linear_schedule(0.0, 1.0, 1000)".',
        PluginString("optax", optional=True),
    ),
    "balance": Field(
        "fixed",
        "How λ chooses itself in a joint stage, from lambda_ on. uncertainty: by learnt variances."
        " learned: by the loss of a held-out fifth of the target's train. reweight: λ is fixed, and"
        " that loss weighs each source example.",
        one_of("fixed", "uncertainty", "learned", "reweight"),
    ),
    "source_weights": Field(
        "",
        "Importance weights of the source's train examples, from frozen features of both domains:"
        " those that resemble the target count more.",
        PluginString("medtl.data.source_weights", source_weights.NAMES, optional=True),
    ),
    "reduction": Field("mean", "The reduction over each domain.", one_of(*REDUCTIONS)),
    "gradients": Field(
        "sum",
        "Joint stage, where the source's gradient and the target's conflict. sum: they are added."
        " pcgrad: each loses its part along the other. gated: the source's is left out.",
        one_of("sum", "pcgrad", "gated"),
    ),
    "losses": Entries(_LOSS, {"main": _LOSS}, least="at least one loss"),
    "terms": Entries(_TERM),
}
