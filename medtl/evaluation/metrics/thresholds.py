"""Operating thresholds: the score from which an example is called positive."""

from __future__ import annotations

import math

import numpy as np

from medtl.errors import UserError


def operating_threshold(label: np.ndarray, score: np.ndarray, *, rule: str) -> float:
    """Choose the score from which an example is called positive, on data that is not the test set.

    It is halfway between the lowest score that is called positive and the next lower one, so that
    neither is nearer to being called otherwise; it is the lowest score of all where all are called,
    and just above the highest where none is.

    Args:
      label: bool[N].
      score: float[N], higher for positive.
      rule: "youden", the largest sensitivity + specificity - 1 (Youden 1950); "sensitivity=0.95",
        the highest specificity at a sensitivity of at least 0.95; "specificity=0.9", the highest
        sensitivity at a specificity of at least 0.9; or the threshold itself, "0.5". Among equals
        the one of the highest specificity is chosen.

    Returns:
      The threshold; NaN where a class that the rule needs has no example.

    Raises:
      UserError: the rule is none of these.

    >>> operating_threshold(np.array([0, 0, 1, 1]), np.array([1, 2, 3, 4]) / 8, rule="youden")
    0.3125
    """
    kind, wanted = _parse(rule)
    if kind == "fixed":
        return wanted
    label, score = np.asarray(label, bool), np.asarray(score, np.float64)
    levels = np.unique(score)[::-1]
    high, low = np.sort(score[label]), np.sort(score[~label])
    if (kind != "specificity" and not len(high)) or (kind != "sensitivity" and not len(low)):
        return math.nan
    # Called positive: none, then those of at least the first level, the second, ...
    true = np.append(0, len(high) - np.searchsorted(high, levels, "left"))
    false = np.append(0, len(low) - np.searchsorted(low, levels, "left"))
    if kind == "youden":
        chosen = int(np.argmax(true * len(low) - false * len(high)))
    elif kind == "sensitivity":
        chosen = int(np.argmax(true >= (wanted - 1e-12) * len(high)))
    else:
        allowed = false <= (1 - wanted + 1e-12) * len(low)
        chosen = int(np.argmax(np.where(allowed, true, -1)))
    if not chosen:
        return float(np.nextafter(levels[0], np.inf))
    if chosen == len(levels):
        return float(levels[-1])
    middle = (levels[chosen - 1] + levels[chosen]) / 2
    return float(middle if middle > levels[chosen] else levels[chosen - 1])


def _parse(rule: str) -> tuple[str, float]:
    if rule == "youden":
        return rule, math.nan
    kind, _, number = rule.partition("=") if "=" in rule else ("fixed", "", rule)
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in ("fixed", "sensitivity", "specificity") or not 0 <= value <= 1:
        wanted = "'youden', 'sensitivity=0.95', 'specificity=0.9' or a threshold such as '0.5'"
        raise UserError(f"threshold rule {rule!r} is none of {wanted}, with a number from 0 to 1")
    return kind, value
