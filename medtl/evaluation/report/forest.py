"""Forest plots as SVG text: points with their intervals, row below row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from medtl.evaluation.report import plots

_CHARACTERS = 54  # about as many fit on a line of a plot


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of `intervals`: name, text at the right, (value, low, high, style) of each point.

    Points have a line each, or one together.
    """

    name: str
    text: str
    points: Sequence[tuple[float, float, float, int]]
    on_one_line: bool = False

    @property
    def lines(self) -> int:
        """The number of lines of points."""
        return 1 if self.on_one_line else len(self.points)


def intervals(
    rows: Sequence[Row],
    *,
    axis: plots.Axis,
    center: float | None = None,
    zone: tuple[float, tuple[str, str]] | None = None,
    alt: str,
    prefix: str,
) -> str:
    """Draw points with their intervals, row below row: a forest plot.

    Args:
      rows: from the top; names longer than a line are cut.
      axis: of the points.
      center: position of a vertical line, such as 0 for no difference.
      zone: half the width of the shaded zone around 0, and the words for what is left and right of
        it; the words are above the rows.
      alt: the content in words and numbers.
      prefix: of the ids in the SVG; another one for each plot of a page.

    Returns:
      As `lines`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    line, step, gap = 15.0, 11.0, 9.0
    words = [line * _lines_of(row) for row in rows]
    head = 20.0 if zone else 0.0
    height = head + sum(
        word + step * row.lines + gap for word, row in zip(words, rows, strict=True)
    )
    total = height + 42
    with matplotlib.rc_context():
        plots.set_style()
        figure = Figure(figsize=(plots.WIDTH / 72, total / 72), dpi=72)
        wide = (plots.WIDTH - 28) / plots.WIDTH
        axes = figure.add_axes((14 / plots.WIDTH, 38 / total, wide, height / total))
        axes.grid(True, axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        top = head
        across = axes.get_yaxis_transform()
        if zone:
            _shade_zone(axes, *zone)
        for row, word in zip(rows, words, strict=True):
            axes.text(
                0, top + 11, plots.shown(row.name, _CHARACTERS), transform=across, fontweight="bold"
            )
            axes.text(
                1, top + word - 4, plots.shown(row.text, _CHARACTERS), transform=across, ha="right"
            )
            top += word
            if center is not None:  # not through the words
                ends = [top - 1, top + step * row.lines + 1]
                axes.plot([center, center], ends, color=plots.colour(plots.GUIDE), linewidth=1)
            _draw_points(axes, row, top, step)
            top += step * row.lines + gap
        axes.set_ylim(height, 0)
        plots.apply(axes.xaxis, axes.set_xlim, axes.set_xscale, axis)
        return plots.inline(figure, alt, prefix)


def _draw_points(axes: Any, row: Row, top: float, step: float) -> None:
    for i, (value, low, high, style) in enumerate(row.points):
        position = top + step * (0.5 if row.on_one_line else i + 0.5)
        axes.plot(
            [low, high],
            [position, position],
            color=plots.colour(style),
            linewidth=1.6,
            solid_capstyle="butt",
        )
        axes.plot(
            [value],
            [position],
            plots.MARKERS[style % 6],
            color=plots.colour(style),
            markersize=5.5,
        )


def _shade_zone(axes: Any, half_width: float, words: tuple[str, str]) -> None:
    """Shade the differences that count as none, and name the three zones above the rows."""
    across = axes.get_yaxis_transform()
    left, right = words
    style: dict[str, Any] = {"transform": across, "fontsize": plots.FONT_SIZE - 1, "va": "center"}
    axes.text(0, 8, f"← {left}", ha="left", **style)
    axes.text(1, 8, f"{right} →", ha="right", **style)
    if half_width > 0:
        shade = plots.colour(plots.GUIDE)
        axes.axvspan(-half_width, half_width, color=shade, alpha=0.12, linewidth=0)
        axes.text(0, 8, "equivalent", ha="center", fontsize=plots.FONT_SIZE - 1, va="center")


def _lines_of(row: Row) -> int:
    return 1 if len(row.name) + len(row.text) <= _CHARACTERS - 6 else 2
