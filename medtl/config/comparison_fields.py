"""The fields of `config.evaluation` about arms that are compared; part of `medtl.config.fields`."""

from __future__ import annotations

from medtl.config.rules import Field, Node, Rule, at_least, one_of


def _is_range(value: tuple) -> bool:
    numbers = all(isinstance(end, int | float) for end in value)
    return numbers and len(value) == 2 and 0 < value[0] < value[1] < 1


COMPARISON: dict[str, Node] = {
    "margin": Field(
        0.02,
        "A difference below it does not matter: arms whose interval is within ± margin are"
        " equivalent. In the unit of checkpoint.metric; where less is better, as for the loss, a"
        " share of the reference's value. 0: none are.",
        at_least(0),
    ),
    "net_benefit_range": Field(
        (0.05, 0.5),
        "The thresholds between which the net benefit of arms is compared.",
        Rule("two rising numbers above 0 and below 1", _is_range),
    ),
    "mistakes": Field(
        "pictures",
        "The most confident mistakes in report.html: with pictures, with the ids of examples and"
        " patients alone, or none.",
        one_of("pictures", "ids", "none"),
    ),
    "size_repeats": Field(
        1,
        "Subsets of each of target_sizes and seed; more of them average out the choice of labels."
        " In a cross-validation each fold and repeat has its own.",
        at_least(1),
    ),
}
