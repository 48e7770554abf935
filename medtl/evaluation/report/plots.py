"""Plots as SVG text for an HTML page, whose font and text colour they take.

Text and axes are `currentColor`, so one drawing serves light and dark. Lines take the colours
`--c1` to `--c6` that the page defines for each theme; where it defines none they are those of Okabe
and Ito (2008), darkened where these are too pale on white. Every style differs from the others also
by its dashes and its marker. The same input gives the same text. Refuses nothing: NaN is not drawn.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.terminal import without_bidi

COLOURS = ("#0072b2", "#d55e00", "#008f68", "#b5588f", "#9a6a00", "#2f86c0")
GUIDE, GUIDE_DOTTED = (
    -1,
    -2,
)  # styles of what is there to compare with: chance, treat all, treat none
POINTS = 200
WIDTH, HEIGHT = 360, 290  # of a plot of lines, in CSS pixels at scale 1

_DASHES: tuple[Any, ...] = (
    "solid",
    (0, (6, 2)),
    (0, (1.2, 1.6)),
    (0, (6, 1.6, 1.2, 1.6)),
    (0, (3, 1.6)),
    (0, (10, 2)),
)
MARKERS = "os^Dv*"
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
FONT_SIZE = 10.5


@dataclasses.dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
      x, y: float[n]; thinned to `POINTS` points that are evenly spaced along the line.
      style: 0, 1, ... of an arm, a class or a part; or `GUIDE`, `GUIDE_DOTTED`.
      low, high: float[n], ends of the interval at each point.
      bars: the interval is drawn as bars, not as a band.
      marker: points are marked.
      faint: drawn pale, as one of many of its kind.
    """

    x: Sequence[float]
    y: Sequence[float]
    style: int
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    bars: bool = False
    marker: bool = False
    faint: bool = False


@dataclasses.dataclass(frozen=True)
class Axis:
    """What one axis shows; `ticks` are the only ones where given, as (position, text)."""

    label: str
    limits: tuple[float, float] | None = None
    ticks: Sequence[tuple[float, str]] = ()
    log: bool = False


def lines(series: Sequence[Series], *, x: Axis, y: Axis, alt: str, prefix: str) -> str:
    """Draw lines over two axes.

    Args:
      series: drawn in this order.
      x: the lower axis.
      y: the left axis.
      alt: the content in words and numbers.
      prefix: of the ids in the SVG; another one for each plot of a page.

    Returns:
      `<svg role="img" aria-label=alt ...>`, without width and height.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        set_style()
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        axes = figure.add_axes(
            (52 / WIDTH, 40 / HEIGHT, (WIDTH - 64) / WIDTH, (HEIGHT - 50) / HEIGHT)
        )
        axes.grid(True)
        for one in series:
            draw(axes, one)
        apply(axes.xaxis, axes.set_xlim, axes.set_xscale, x)
        apply(axes.yaxis, axes.set_ylim, axes.set_yscale, y)
        return inline(figure, alt, prefix)


def calibration(
    series: Sequence[Series],
    edges: Sequence[float] | None,
    positive: Sequence[float] | None,
    negative: Sequence[float] | None,
    *,
    style: int,
    alt: str,
    prefix: str,
) -> str:
    """Draw a calibration curve, and below it how many examples have each predicted probability.

    Args:
      series: the diagonal and the curve.
      edges: float[n + 1], of the bins; None: no histogram.
      positive: float[n], examples of the class in each bin, drawn upwards.
      negative: float[n], the others, drawn downwards.
      style: of the histogram.
      alt: the content in words and numbers.
      prefix: of the ids in the SVG.

    Returns:
      As `lines`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    total = HEIGHT + (70 if edges else 0)
    with matplotlib.rc_context():
        set_style()
        figure = Figure(figsize=(WIDTH / 72, total / 72), dpi=72)
        width, left = (WIDTH - 64) / WIDTH, 52 / WIDTH
        axes = figure.add_axes((left, 1 - (HEIGHT - 40) / total, width, (HEIGHT - 50) / total))
        axes.grid(True)
        for one in series:
            draw(axes, one)
        apply(axes.yaxis, axes.set_ylim, axes.set_yscale, Axis("observed", (-0.01, 1.01)))
        x, limits = "predicted probability", (-0.01, 1.01)
        if edges is not None and positive is not None and negative is not None:
            apply(axes.xaxis, axes.set_xlim, axes.set_xscale, Axis("", limits))
            below = figure.add_axes((left, 40 / total, width, 60 / total))
            below.spines["left"].set_visible(False)
            below.set_yticks([])
            below.axhline(0, color=colour(GUIDE), linewidth=0.7)
            for counts, sign, alpha in ((positive, 1, 0.9), (negative, -1, 0.45)):
                shares = np.asarray(counts) / max(1.0, float(np.max(counts, initial=0.0)))
                below.bar(
                    edges[:-1],
                    sign * shares,
                    np.diff(edges),
                    align="edge",
                    color=colour(style),
                    alpha=alpha,
                    linewidth=0,
                )
            axes = below
        apply(axes.xaxis, axes.set_xlim, axes.set_xscale, Axis(x, limits))
        return inline(figure, alt, prefix)


def swatch(style: int, *, marker: bool = False) -> str:
    """Draw a short line in a style for a legend in HTML; hidden from screen readers.

    Args:
      style: as in `Series`.
      marker: whether the style's marker is drawn, too.
    """
    if style < 0:
        dashes, width = ("4 3" if style == GUIDE else "1 3"), 1.2
    else:
        pattern = _DASHES[style % 6]
        dashes, width = (
            ("none" if pattern == "solid" else " ".join(f"{1.8 * d:.3g}" for d in pattern[1])),
            1.8,
        )
    colour = _css(style)
    shape = f'<path d="{_SHAPES[style % 6]}" fill="{colour}"/>' if marker and style >= 0 else ""
    return (
        '<svg class="swatch" aria-hidden="true" viewBox="0 0 36 12">'
        f'<path d="M0 6H36" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dashes}"/>{shape}</svg>'
    )


_SHAPES = (
    "M14.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "M15 3h6v6h-6z",
    "M18 2l4 7h-8z",
    "M18 2l4 4-4 4-4-4z",
    "M18 10l4-7h-8z",
    "M18 1.5l1.3 3h3.2l-2.5 2.1 1 3.2-3-1.9-3 1.9 1-3.2-2.5-2.1h3.2z",
)


def set_style() -> None:
    """Set the style of the surrounding `rc_context`: a report ignores the user's matplotlibrc."""
    import matplotlib

    text = colour(0, text=True)
    matplotlib.rcParams.update(
        {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    )
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "medtl",
            "text.parse_math": False,  # a "$" in a class name is a dollar
            "font.size": FONT_SIZE,
            "axes.labelsize": FONT_SIZE,
            "axes.formatter.useoffset": False,
            "axes.formatter.limits": (-5, 7),
            "text.color": text,
            "axes.labelcolor": text,
            "axes.edgecolor": text,
            "xtick.color": text,
            "ytick.color": text,
            "axes.linewidth": 0.7,
            "xtick.major.width": 0.7,
            "ytick.major.width": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "grid.color": text,
            "grid.alpha": 0.13,
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.6,
        }
    )


def draw(axes: Any, one: Series) -> None:
    """Draw a line with its band, bars and markers."""
    n = len(one.x)
    nothing = np.full(n, np.nan)
    x, y, low, high = (
        np.asarray(v, dtype=np.float64)
        for v in (one.x, one.y, _or(one.low, nothing), _or(one.high, nothing))
    )
    keep = thin(x, y)
    x, y, low, high = x[keep], y[keep], low[keep], high[keep]
    line = colour(one.style)
    if one.bars:
        axes.vlines(x, low, high, color=line, linewidth=1.1)
    elif np.isfinite(low).any():
        axes.fill_between(x, low, high, color=line, alpha=0.14, linewidth=0)
    if one.style < 0:
        dashes, width = ((0, (4, 3)) if one.style == GUIDE else (0, (1, 2))), 1.0
    else:
        dashes, width = _DASHES[one.style % 6], 1.6
    axes.plot(
        x,
        y,
        color=line,
        linestyle=dashes,
        linewidth=0.8 if one.faint else width,
        alpha=0.55 if one.faint else 1.0,
        marker=MARKERS[one.style % 6] if one.marker else None,
        markersize=4.5,
    )


def thin(x: np.ndarray, y: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Choose points of a line that are evenly spaced along it, the first and the last among them.

    Args:
      x: float[n].
      y: float[n].
      points: how many at most.

    Returns:
      int[<= points], their indices.
    """
    if len(x) <= points:
        return np.arange(len(x))

    def steps(v: np.ndarray) -> np.ndarray:
        known = v[np.isfinite(v)]
        span = float(np.ptp(known)) if len(known) else 0.0
        return np.abs(np.nan_to_num(np.diff(v), posinf=0.0, neginf=0.0)) / (span or 1.0)

    along = np.concatenate([[0.0], np.cumsum(steps(x) + steps(y))])
    keep = np.searchsorted(along, np.linspace(0.0, along[-1], points - 1))
    return np.unique(np.append(np.minimum(keep, len(x) - 1), len(x) - 1))


def apply(axis: Any, set_limits: Any, set_scale: Any, wanted: Axis) -> None:
    """Set label, limits, scale and ticks of one axis of matplotlib's."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    if wanted.log:
        set_scale("log")
    if wanted.limits is not None:
        set_limits(*wanted.limits)
    axis.set_label_text(shown(wanted.label, 60))
    if wanted.ticks:
        axis.set_ticks(
            [position for position, _ in wanted.ticks],
            labels=[shown(text, 16) for _, text in wanted.ticks],
        )
        axis.set_minor_locator(NullLocator())
    elif not wanted.log:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def inline(figure: Any, alt: str, prefix: str) -> str:
    """Return the figure as SVG with ids unique in the page, without style sheets and metadata."""
    file = io.StringIO()
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)
    figure.savefig(
        file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    root = ET.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    used = {
        m
        for e in root.iter()
        for v in e.attrib.values()
        for m in re.findall(r"^#(\S+)$|url\(#([^)]+)\)", v)
    }
    names = {a or b: f"{prefix}-{i}" for i, (a, b) in enumerate(sorted(used))}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.text, element.tail = ((element.text or "").strip() or None), None
        element.attrib = {
            key.removeprefix(_XLINK): _attribute(key, value, names)
            for key, value in element.attrib.items()
            if (key != "id" or value in names) and not value.startswith("rotate(-0 ")
        }
    font = {"font-family": "system-ui, sans-serif", "font-size": f"{FONT_SIZE:g}"}
    label = {"class": "plot", "role": "img", "aria-label": _legible(alt)}
    root.attrib = label | {"viewBox": root.attrib["viewBox"]} | font
    return ET.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, names: dict[str, str]) -> str:
    if key == "id":
        return names[value]
    value = re.sub(r"#([^)\s]+)", lambda m: f"#{names.get(m[1], m[1])}", value)
    if key in ("d", "x", "y", "transform", "width", "height"):
        value = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), value)
        return " ".join(value.split())
    if key == "style":
        value = re.sub(rf"font-(family:[^;]*|size: {FONT_SIZE:g}px)(; )?", "", value)
        return re.sub(r"#0001([0-9a-f]{2})", lambda m: _css(int(m[1], 16) - 3), value)
    return value


def colour(style: int, *, text: bool = False) -> str:
    """Return a colour that `_attribute` replaces: matplotlib knows no CSS variables."""
    return "#000100" if text else f"#0001{style % 6 + 3 if style >= 0 else style + 3:02x}"


def _css(style: int) -> str:
    return f"var(--c{style % 6 + 1}, {COLOURS[style % 6]})" if style >= 0 else "currentColor"


def shown(text: str, longest: int) -> str:
    """Return text for a plot, cut to a number of characters."""
    text = _legible(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _legible(text: str) -> str:
    """XML cannot hold control characters, escaped or not."""
    return without_bidi(re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+", " ", text))


def _or(values: Sequence[float] | None, default: np.ndarray) -> Sequence[float] | np.ndarray:
    return default if values is None else [math.nan if v is None else v for v in values]
