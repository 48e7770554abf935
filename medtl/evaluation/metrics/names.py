"""Names of the metrics, and on which side each is better."""

from __future__ import annotations

NAMES = ("accuracy", "balanced_accuracy", "f1_macro", "auroc", "auprc", "loss")
ALL_NAMES = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "f1_weighted",
    "auroc",
    "auprc",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
    "mcc",
    "kappa_quadratic",
    "brier",
    "loss",
    "ece",
    "calibration_slope",
    "calibration_intercept",
)
LOWER_IS_BETTER = frozenset({"brier", "loss", "ece"})
# Shares of something: both 0 and 1 bound them, which the others are not or are distances from.
PROPORTIONS = frozenset(ALL_NAMES[:12])


def rank(name: str, value: float) -> float:
    """Return the value of a metric with its sign such that higher is better.

    A metric of the user's counts as one that is better the higher it is.

    >>> rank("auroc", 0.9), rank("loss", 0.4)
    (0.9, -0.4)
    """
    return -value if name in LOWER_IS_BETTER else value
