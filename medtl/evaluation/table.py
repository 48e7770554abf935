"""The result as plain text: a row per arm and split, a line per pair of arms, and a plain word where the source hurt.

Refuses to call a difference that one seed, or the spread over the seeds, could have made.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation.metrics import LOWER_IS_BETTER, NAMES

WIDTH = 100

_LEFT = 2  # the columns of words, arm and split
_HEADER = (
    ("", "", "", "", "balanced", "f1", "", "", ""),
    ("arm", "split", "n", "accuracy", "accuracy", "macro", "auroc", "auprc", "loss"),
)


def render(
    summary: Mapping[str, Any],
    *,
    metric: str = "auroc",
    uses_source: Collection[str] = ("transfer",),
) -> str:
    """The table of a summary and what follows from it.

    Args:
      summary: of `summarize`.
      metric: in which the arms are compared; one of `metrics.NAMES`.
      uses_source: the arms that learn from the source; where one of them is worse than one that does not, a sentence
        says so.

    Returns:
      Lines without a last newline, at most 100 columns wide for arm names of up to 16 characters and n of up to 5
      digits. The comparison is on test where there is one, else on val, else on the last split.
    """
    arms, seeds = summary["arms"], summary["seeds"].values()
    differences, verdicts = [], []
    for a, b in itertools.combinations(arms, 2):
        split = _split(arms[a], arms[b])
        if split is None:
            continue
        delta = np.array([float(arm[a][split][metric]) - float(arm[b][split][metric]) for arm in seeds])
        differences.append(_difference(a, b, delta, metric, split))
        if (a in uses_source) != (b in uses_source):
            with_source, without, change = (a, b, delta) if a in uses_source else (b, a, -delta)
            verdicts += _verdict(with_source, without, change, metric, split)
    sections = [_table(arms, summary.get("std")), _undefined(arms), differences + verdicts]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _table(arms: Mapping[str, Any], std: Mapping[str, Any] | None) -> list[str]:
    rows: list[Sequence[str]] = list(_HEADER)
    for arm, splits in arms.items():
        for split, entry in splits.items():
            spread = std[arm][split] if std else {}
            rows.append((arm, split, f"{entry['n']:.7g}", *(_cell(entry[m], spread.get(m)) for m in NAMES)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "

    def line(row: Sequence[str]) -> str:
        cells = (c.ljust(w) if i < _LEFT else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
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


def _split(*entries: Mapping[str, Any]) -> str | None:
    """The split on which arms are compared; None where they share none."""
    shared = [split for split in entries[0] if all(split in entry for entry in entries)]
    return next((split for split in ("test", "val") if split in shared), shared[-1] if shared else None)


def _difference(a: str, b: str, delta: np.ndarray, metric: str, split: str) -> str:
    mean = float(delta.mean())
    if math.isnan(mean):
        return f"{a} - {b}: undefined {metric} on {split}"
    agreeing = int(np.sum(delta * mean > 0)) if mean else int(np.sum(delta == 0))
    seeds = f"{agreeing} of {len(delta)} seeds" if len(delta) > 1 else "1 seed"
    spread = f", within the spread of {delta.std(ddof=1):.3f} over seeds" if _within_spread(delta) else ""
    return f"{a} - {b}: {mean:+.3f} {metric} on {split} ({seeds}{spread})"


def _verdict(arm: str, baseline: str, delta: np.ndarray, metric: str, split: str) -> list[str]:
    """What to say where `arm`, which learns from the source, is worse than `baseline`; nothing where it is not."""
    mean = float(delta.mean())
    worse = mean > 0 if metric in LOWER_IS_BETTER else mean < 0
    if not worse:
        return []
    cause = "the transfer" if baseline == "scratch" else "the source"
    side = "above" if metric in LOWER_IS_BETTER else "below"
    what = f"{arm} is {side} {baseline} by {abs(mean):.3f} {metric} on {split}"
    if len(delta) == 1:
        return _wrap(f"{what}: one seed cannot tell whether {cause} hurt")
    if _within_spread(delta):
        return _wrap(f"{what}, within the spread over seeds, which cannot tell whether {cause} hurt")
    return _wrap(f"{what}: {cause} hurt (negative transfer)")


def _within_spread(delta: np.ndarray) -> bool:
    """Whether the mean of the paired differences is no larger than their standard deviation over the seeds."""
    return len(delta) > 1 and bool(abs(delta.mean()) <= delta.std(ddof=1))
