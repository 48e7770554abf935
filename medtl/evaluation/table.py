"""The result as plain text: a row per arm and split, and the verdict on the arms in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from medtl.evaluation.metrics import NAMES, QUANTITY_NAMES
from medtl.evaluation.summary import metric_names
from medtl.evaluation.wording import text_table

WIDTH = 100

_HEADER = (
    ("", "", "", "", "balanced", "f1", "", "", ""),
    ("arm", "split", "n", "accuracy", "accuracy", "macro", "auroc", "auprc", "loss"),
)
_QUANTITY_HEADER = (
    ("", "", "", "", "", "", "c-", "calibration", "calibration"),
    ("arm", "split", "n", "mae", "rmse", "r2", "index", "slope", "intercept"),
)


def render(summary: Mapping[str, Any]) -> str:
    """Render the table of a summary, the user's metrics below it, the verdict and the warnings.

    Args:
      summary: of `summarize`, and under "evaluation" an analysis with the verdict.

    Returns:
      Lines without a last newline, at most 100 columns wide for arm names of up to 16 characters
      and n of up to 5 digits.
    """
    arms, std = summary["arms"], summary.get("std")
    verdict = summary["evaluation"]["verdict"]
    # With one comparison the headline is its sentence.
    sentences = dict.fromkeys(verdict["sentences"] or [verdict["headline"]])
    first = next(iter(next(iter(arms.values())).values()))
    is_number = "mae" in first
    names = QUANTITY_NAMES if is_number else NAMES
    extra = [name for name in metric_names(first) if name not in names]
    sections = [
        _table(_QUANTITY_HEADER if is_number else _HEADER, arms, std, names),
        _table([("arm", "split", "n", *extra)], arms, std, extra) if extra else [],
        _reasons(arms, (*names, *extra)),
        [line for sentence in sentences for line in _wrap(sentence)],
        [line for text in summary["evaluation"].get("warnings", ()) for line in _wrap(f"! {text}")],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _table(
    header: Sequence[Sequence[str]],
    arms: Mapping[str, Any],
    std: Mapping[str, Any] | None,
    names: Sequence[str],
) -> list[str]:
    rows = list(header)
    for arm, splits in arms.items():
        for split, entry in splits.items():
            spread = std[arm][split] if std else {}
            values = (_value(entry[m], spread.get(m)) for m in names)
            rows.append((arm, split, f"{entry['n']:.7g}", *values))
    return text_table(rows, left=2, width=WIDTH)


def _value(mean: float, std: float | None) -> str:
    if math.isnan(mean):
        return "undefined"
    return f"{mean:.3f}" if std is None or math.isnan(std) else f"{mean:.3f}±{std:.3f}"


def _reasons(arms: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Say why metrics are undefined, everywhere or in some splits; equal reasons share a line."""
    words = {"undefined": "undefined", "left_out": "are means without splits that lack them"}
    lines = []
    for arm, splits in arms.items():
        for split, entry in splits.items():
            for key, verb in words.items():
                by_reason: dict[str, list[str]] = {}
                for name, reason in entry.get(key, {}).items():
                    if name in names:
                        by_reason.setdefault(reason, []).append(name)
                for reason, same in by_reason.items():
                    lines += _wrap(f"{arm}, {split}: {', '.join(same)} {verb}: {reason}")
    return lines


def _wrap(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_long_words=False)
