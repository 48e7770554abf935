"""The figures of a predicted number: predictions against labels, and Bland and Altman's plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medtl.evaluation import wording
from medtl.evaluation.report import plots
from medtl.evaluation.report.figures import Figure, Figures, limits_of
from medtl.evaluation.report.plots import GUIDE, GUIDE_DOTTED, Axis, Series

_UNIT = (0.0, 1.0)


def agreement(figures: Figures) -> list[Figure]:
    """Draw for each arm the predictions against the labels, and their differences."""
    made = []
    for arm, result in figures.analysis["arms"].items():
        if points := result.get("agreement"):
            made += [_scatter(figures, arm, points), _bland_altman(figures, arm, points)]
    return made


def _scatter(figures: Figures, arm: str, points: Mapping[str, Any]) -> Figure:
    label, predicted = points["label"], points["predicted"]
    limits = limits_of([label, predicted]) or _UNIT
    shown = f"{points['n']:,} examples" + (f", {points['of']}" if points["of"] else "")
    if len(label) < points["n"]:
        shown = f"{len(label):,} of {shown}, evenly spaced by their labels"
    metrics = figures.analysis["arms"][arm]["metrics"]
    numbers = ", ".join(
        f"{wording.metric(name)} {wording.number(metrics[name]['value'])}"
        for name in ("mae", "r2", "calibration_slope")
        if name in metrics
    )
    svg = _points(
        label,
        predicted,
        [Series(limits, limits, GUIDE)],
        style=figures.style[arm],
        axes=(Axis("label", limits), Axis("prediction", limits)),
        alt=f"Predictions of {arm} against the labels of {shown}; {numbers}.",
        prefix=next(figures.prefix),
    )
    note = f"{shown[0].upper()}{shown[1:]}. Dashed: prediction = label."
    return Figure(svg, f"Predicted against true: {arm}", (), note)


def _bland_altman(figures: Figures, arm: str, points: Mapping[str, Any]) -> Figure:
    pairs = list(zip(points["label"], points["predicted"], strict=True))
    middle = [(y + p) / 2 for y, p in pairs]
    difference = [p - y for y, p in pairs]
    mean, low, high = (wording.value(points[k]) for k in ("mean_difference", "low", "high"))
    across = limits_of([middle]) or _UNIT
    guides = [Series(across, [end, end], GUIDE_DOTTED) for end in (low, high)]
    guides.append(Series(across, [mean, mean], GUIDE))
    words = f"mean difference {wording.signed(mean)}, limits of agreement "
    words += f"{wording.signed(low)} to {wording.signed(high)}"
    svg = _points(
        middle,
        difference,
        guides,
        style=figures.style[arm],
        axes=(
            Axis("mean of label and prediction", across),
            Axis("prediction − label", limits_of([difference, [low, high]])),
        ),
        alt=f"Differences of {arm} by the mean of label and prediction: {words}.",
        prefix=next(figures.prefix),
    )
    return Figure(svg, f"Differences: {arm}", (), f"{words[0].upper()}{words[1:]}.")


def _points(
    x: Sequence[float],
    y: Sequence[float],
    guides: Sequence[Series],
    *,
    style: int,
    axes: tuple[Axis, Axis],
    alt: str,
    prefix: str,
) -> str:
    """Draw points over guides; returns SVG as `plots.lines`."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    width, height = plots.WIDTH, plots.HEIGHT
    with matplotlib.rc_context():
        plots.set_style()
        canvas = Canvas(figsize=(width / 72, height / 72), dpi=72)
        size = ((width - 64) / width, (height - 50) / height)
        one = canvas.add_axes((52 / width, 40 / height, *size))
        one.grid(True)
        colour = plots.colour(style)
        one.plot(x, y, "o", color=colour, markersize=3, alpha=0.55, markeredgewidth=0)
        for guide in guides:
            plots.draw(one, guide)
        plots.apply(one.xaxis, one.set_xlim, one.set_xscale, axes[0])
        plots.apply(one.yaxis, one.set_ylim, one.set_yscale, axes[1])
        return plots.inline(canvas, alt, prefix)
