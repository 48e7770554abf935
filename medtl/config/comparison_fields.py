"""The fields of `config.evaluation` about arms that are compared; part of `medtl.config.fields`."""

from __future__ import annotations

from medtl.config.rules import UNIQUE, Field, Node, Rule, at_least, each, one_of


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
    "ensembles": Field(
        False,
        "Add for each arm the mean probability of its seeds, as an arm of its own; --mode=predict"
        " then takes all seeds.",
    ),
    "test_time": Field(
        (),
        "Add for each arm the mean probability over views of an image, flips or crops, as the arm"
        " NAME+tta.",
        each("of flip, crop", lambda view: view in ("flip", "crop")),
        UNIQUE,
    ),
    "label_shift": Field(
        (),
        "Add for each arm, as NAME+em or NAME+bbse, its probabilities under the class frequencies"
        " that are estimated from the unlabelled examples: em, bbse.",
        each("of em, bbse", lambda method: method in ("em", "bbse")),
        UNIQUE,
    ),
}
