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
    "grade_mae",
    "brier",
    "loss",
    "ece",
    "calibration_slope",
    "calibration_intercept",
)
# Of a quantity, whose prediction is a number.
QUANTITY_NAMES = ("mae", "rmse", "r2", "c_index", "calibration_slope", "calibration_intercept")
QUANTITY_CRITERIA = QUANTITY_NAMES[:4]
LOWER_IS_BETTER = frozenset({"brier", "loss", "ece", "mae", "rmse", "grade_mae"})
# Shares of something: both 0 and 1 bound them, which the others are not or are distances from.
PROPORTIONS = frozenset({*ALL_NAMES[:12], "c_index"})


def rank(name: str, value: float) -> float:
    """Return the value of a metric with its sign such that higher is better.

    A metric of the user's counts as one that is better the higher it is.

    >>> rank("auroc", 0.9), rank("loss", 0.4)
    (0.9, -0.4)
    """
    return -value if name in LOWER_IS_BETTER else value
