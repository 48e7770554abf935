"""Numbers, names and text tables as the report, the verdicts and the terminal write them.

NaN is written "undefined", a minus as −, and p never as 0. Refuses nothing: an unknown metric keeps
its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

UNDEFINED = "undefined"
NO_INTERVAL = "no interval: the metric is undefined in too many resamples"
NO_REASON = "no reason was recorded"

# A metric's name at the head of a column or an axis, and in a sentence.
_METRICS = {
    "accuracy": ("Accuracy", "accuracy"),
    "balanced_accuracy": ("Balanced accuracy", "balanced accuracy"),
    "f1_macro": ("F1, macro", "macro F1"),
    "f1_weighted": ("F1, weighted", "weighted F1"),
    "auroc": ("AUROC", "AUROC"),
    "auprc": ("AUPRC", "AUPRC"),
    "sensitivity": ("Sensitivity", "sensitivity"),
    "specificity": ("Specificity", "specificity"),
    "ppv": ("PPV", "PPV"),
    "npv": ("NPV", "NPV"),
    "sensitivity_at_specificity": (
        "Sensitivity at fixed specificity",
        "sensitivity at fixed specificity",
    ),
    "specificity_at_sensitivity": (
        "Specificity at fixed sensitivity",
        "specificity at fixed sensitivity",
    ),
    "mcc": ("MCC", "MCC"),
    "kappa_quadratic": ("Kappa, quadratic", "quadratic kappa"),
    "grade_mae": ("Grades off, mean", "mean distance in grades"),
    "mae": ("MAE", "MAE"),
    "rmse": ("RMSE", "RMSE"),
    "r2": ("R²", "R²"),
    "c_index": ("C-index", "C-index"),
    "brier": ("Brier score", "Brier score"),
    "loss": ("Log loss", "log loss"),
    "ece": ("ECE", "ECE"),
    "calibration_slope": ("Calibration slope", "calibration slope"),
    "calibration_intercept": ("Calibration intercept", "calibration intercept"),
}
VERDICTS = {
    "better": "Better",
    "worse": "Worse",
    "equivalent": "Equivalent",
    "model_better": "This model: better",
    "model_worse": "This model: worse",
    "model_equivalent": "These models: equivalent",
    "inconclusive": "Inconclusive",
    "no_comparison": "One arm",
}
_MAIN = {
    "two_class": (
        "auroc",
        "auprc",
        "balanced_accuracy",
        "sensitivity",
        "specificity",
        "brier",
        "calibration_slope",
    ),
    "multi_class": (
        "auroc",
        "balanced_accuracy",
        "f1_macro",
        "accuracy",
        "kappa_quadratic",
        "grade_mae",
        "loss",
    ),
    "regression": ("mae", "rmse", "r2", "c_index", "calibration_slope"),
    "multi_label": ("auroc", "auprc", "f1_macro", "brier"),
}


def metric(name: str) -> str:
    """Return a metric's name for the head of a column: "Balanced accuracy", "F1, macro"."""
    return _METRICS.get(name, (name, name))[0]


def metric_in_a_sentence(name: str) -> str:
    """Return a metric's name in a sentence: "balanced accuracy", "macro F1"."""
    return _METRICS.get(name, (name, name))[1]


def column(name: str) -> str:
    """Return the name of a column of groups as people read it.

    >>> column("subgroup_sex"), column("site")
    ('sex', 'site')
    """
    return name.removeprefix("subgroup_") or name


def main_metrics(analysis: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the metrics of the first table: the one of the comparison, then the task's."""
    first = analysis["metric"]
    wanted = (first, *(m for m in _MAIN.get(analysis["task"], ()) if m != first))
    return tuple(m for m in wanted if any(m in arm["metrics"] for arm in analysis["arms"].values()))


def value(x: Any) -> float:
    """Return a number of the analysis; metrics.json writes NaN as null."""
    return math.nan if x is None else float(x)


def is_known(x: Any) -> bool:
    """Tell whether it is a number: neither NaN nor null."""
    return not math.isnan(value(x))


def number(x: Any, digits: int = 3) -> str:
    """Write 0.912, −0.031, ∞; "undefined" for NaN.

    >>> number(-0.0314), number(float("nan"))
    ('−0.031', 'undefined')
    """
    x = value(x)
    if math.isnan(x):
        return UNDEFINED
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    text = f"{x:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(x: Any, digits: int = 3) -> str:
    """Write a difference in a table: +0.031, −0.031, 0.000."""
    text = number(x, digits)
    return f"+{text}" if value(x) > 0 and text != number(0, digits) else text


def signed_alike(values: Sequence[float]) -> list[str]:
    """Write differences in a sentence, with three decimals, more where one would read as 0."""
    smallest = min((abs(v) for v in values if v), default=1.0)
    decimals = next((d for d in (3, 4, 5) if round(smallest, d)), 6)
    return [f"{v:+.{decimals}f}".replace("-", "−") if v else "0" for v in values]


def count(x: Any) -> str:
    """Write a count, or the mean of counts over seeds: 1,204 or 12.5."""
    x = value(x)
    if math.isnan(x):
        return UNDEFINED
    return f"{x:,.0f}" if x == round(x) else f"{x:,.1f}"


def interval(low: Any, high: Any, *, sign: bool = False) -> str:
    """Write the ends of an interval, "0.812 to 0.934"; empty where one is NaN."""
    if not (is_known(low) and is_known(high)):
        return ""
    write = signed if sign else number
    return f"{write(low)} to {write(high)}"


def p_value(p: Any) -> str:
    """Write p in a table: three decimals, <0.001, >0.999; a dash where the test gives no p."""
    return p_relation(p).removeprefix("= ").replace(" ", "") if is_known(p) else "–"


def p_relation(p: Any) -> str:
    """Write p in a sentence, after the letter: "= 0.004", "< 0.001", "> 0.999"."""
    p = value(p)
    return "< 0.001" if p < 0.001 else "> 0.999" if p > 0.999 else f"= {p:.3f}"


def percent(share: Any) -> str:
    """Write a share in percent: 95 %."""
    return f"{100 * value(share):.4g} %"


def duration(seconds: Any) -> str:
    """Write 12 s, 3 min 20 s, 2 h 05 min."""
    rounded = round(value(seconds))
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def listed(parts: list[str]) -> str:
    """Join words: a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def difference_name(comparison: Mapping[str, Any]) -> str:
    """Write the difference of two arms: "arm − reference"."""
    return f"{comparison['arm']} − {comparison['reference']}"


def text_table(rows: Sequence[Sequence[str]], *, left: int = 1, width: int = 0) -> list[str]:
    """Align rows of text into columns two spaces apart, one space where that is too wide.

    Args:
      rows: cells, the same number in each.
      left: how many columns are aligned to the left; the others are to the right.
      width: the width that two spaces may not exceed; 0: any.

    Returns:
      A line per row, without spaces at its end.

    >>> text_table([("arm", "auroc"), ("scratch", "0.9")])
    ['arm      auroc', 'scratch    0.9']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = "  " if not width or sum(widths) + 2 * (len(widths) - 1) <= width else " "
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        aligned = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells))
        lines.append(gap.join(aligned).rstrip())
    return lines
