"""The result as plain text: a row per arm and split, and the verdict on the arms in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from medtl.evaluation.metrics import NAMES

WIDTH = 100

_LEFT = 2  # the columns of words, arm and split
_HEADER = (
    ("", "", "", "", "balanced", "f1", "", "", ""),
    ("arm", "split", "n", "accuracy", "accuracy", "macro", "auroc", "auprc", "loss"),
)


def render(summary: Mapping[str, Any]) -> str:
    """The table of a summary and what follows from it.

    Args:
      summary: of `summarize`, and under "evaluation" an analysis, whose verdict is shown.

    Returns:
      Lines without a last newline, at most 100 columns wide for arm names of up to 16 characters and n of up to 5
      digits.
    """
    arms = summary["arms"]
    verdict = summary["evaluation"]["verdict"]
    # With one comparison that is told the headline is its sentence.
    told = dict.fromkeys(
        (*verdict["sentences"], *([] if verdict["sentences"] else [verdict["headline"]]))
    )
    said = [line for sentence in told for line in _wrap(sentence)]
    sections = [_table(arms, summary.get("std")), _undefined(arms), said]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _table(arms: Mapping[str, Any], std: Mapping[str, Any] | None) -> list[str]:
    rows: list[Sequence[str]] = list(_HEADER)
    for arm, splits in arms.items():
        for split, entry in splits.items():
            spread = std[arm][split] if std else {}
            rows.append(
                (arm, split, f"{entry['n']:.7g}", *(_cell(entry[m], spread.get(m)) for m in NAMES))
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "

    def line(row: Sequence[str]) -> str:
        cells = (
            c.ljust(w) if i < _LEFT else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        return gap.join(cells).rstrip()

    return [line(row) for row in rows]


def _cell(mean: float, std: float | None) -> str:
    if math.isnan(mean):
        return "undefined"
    return f"{mean:.3f}" if std is None else f"{mean:.3f}±{std:.3f}"


def _undefined(arms: Mapping[str, Any]) -> list[str]:
    """Why the metrics that the table shows as undefined are so; one line for those that share a reason."""
    lines = []
    for arm, splits in arms.items():
        for split, entry in splits.items():
            by_reason: dict[str, list[str]] = {}
            for name, reason in entry.get("undefined", {}).items():
                if name in NAMES:
                    by_reason.setdefault(reason, []).append(name)
            for reason, names in by_reason.items():
                lines += _wrap(f"{arm}, {split}: {', '.join(names)} undefined: {reason}")
    return lines


def _wrap(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, subsequent_indent="  ", break_long_words=False)
