"""The fields of `--mode=plan`, a section of `fields.SCHEMA`. Imports no JAX."""

from __future__ import annotations

from medtl.config.rules import INSIDE, SHARE, Field, Node, Rule, at_least, between
from medtl.evaluation.plan import Assumptions

_WIDE = Rule("at least 0.005 and below 1", lambda width: 0.005 <= width < 1)
PLAN: dict[str, Node] = {
    "prevalence": Field(
        Assumptions.prevalence, "--mode=plan: the expected share of positive patients.", INSIDE
    ),
    "auroc": Field(
        Assumptions.auroc,
        "The expected AUROC, in a comparison that of the reference arm.",
        Rule("above 0.5 and below 1", lambda value: 0.5 < value < 1),
    ),
    "sensitivity": Field(Assumptions.sensitivity, "The expected sensitivity.", INSIDE),
    "specificity": Field(Assumptions.specificity, "The expected specificity.", INSIDE),
    "width": Field(
        Assumptions.width,
        "The wanted full width of the intervals of AUROC, sensitivity and specificity.",
        _WIDE,
    ),
    "calibration_width": Field(
        Assumptions.calibration_width,
        "The wanted full width of the intervals of O:E and of the calibration slope.",
        _WIDE,
    ),
    "difference": Field(
        Assumptions.difference,
        "The difference in AUROC between two arms that the comparison should detect; 0: none.",
        SHARE,
    ),
    "margin": Field(
        Assumptions.margin,
        "The margin of AUROC within which arms that do not differ should be shown equivalent; 0:"
        " none.",
        SHARE,
    ),
    "power": Field(Assumptions.power, "The chance of either.", INSIDE),
    "correlation": Field(
        Assumptions.correlation, "The correlation of both arms' AUROC over patients.", SHARE
    ),
    "training_sd": Field(
        Assumptions.training_sd,
        "The standard deviation over seeds of the difference in AUROC.",
        SHARE,
    ),
    "images_per_patient": Field(
        Assumptions.images_per_patient, "The mean number of images of a patient.", at_least(1)
    ),
    "icc": Field(
        Assumptions.icc,
        "The correlation of two images of a patient (intraclass).",
        between(0, 1),
    ),
    "level": Field(Assumptions.level, "The level of the intervals and of the test.", INSIDE),
}
