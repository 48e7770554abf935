"""Figures of what a difference means: its zones, net benefit, calibration, seeds and sites.

Each function takes the `Figures` of the page, which gives styles and ids, and returns None or
nothing where the analysis lacks the entry.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from medtl.evaluation import wording
from medtl.evaluation.metrics import LOWER_IS_BETTER
from medtl.evaluation.report import forest, plots
from medtl.evaluation.report.figures import Figure, Figures, limits_of
from medtl.evaluation.report.forest import Row
from medtl.evaluation.report.plots import GUIDE, Axis, Series


def zones(figures: Figures) -> Figure | None:
    """Draw each arm's difference from the reference in the zones worse, equivalent and better."""
    analysis = figures.analysis
    data = [
        c
        for c in analysis.get("comparisons") or ()
        if wording.is_known(c["difference"].get("value"))
    ]
    if not data:
        return None
    metric, margin = data[0]["metric"], wording.value(analysis.get("margin") or 0.0)
    rows, described = [], []
    for c in data:
        value, low, high = (wording.value(c["difference"].get(k)) for k in ("value", "low", "high"))
        between = wording.interval(low, high, sign=True)
        text = wording.signed(value) + (f" ({between})" if between else "")
        point = (value, low, high, figures.style.get(c["arm"], 0))
        rows.append(Row(wording.difference_name(c), text, [point]))
        described.append(f"{wording.difference_name(c)} {text}")
    ends = [[v for r in rows for p in r.points for v in p[:3] if v == v]]
    widest = max([2 * margin, *map(abs, ends[0])])
    ends.append([-0.4 * widest, 0.4 * widest])  # room for the words at both sides
    sides = ("better", "worse") if metric in LOWER_IS_BETTER else ("worse", "better")
    name = wording.metric(metric)
    svg = forest.intervals(
        rows,
        axis=Axis(f"difference in {name}", limits_of(ends, zero=True)),
        center=0.0,
        zone=(margin, sides),
        alt=f"Differences in {name} with {figures.level}; differences within {margin:g} either way "
        f"are equivalent: {'; '.join(described)}.",
        prefix=next(figures.prefix),
    )
    note = f"{figures.level[0].upper()}{figures.level[1:]}."
    if margin:
        note += f" Shaded: within the margin of ±{margin:g}, evaluation.margin."
    return Figure(svg, f"Differences in {name}", note=note)


def seeds(figures: Figures) -> Figure | None:
    """Draw the main metric of each trained model as a point, an arm per row."""
    metric = figures.analysis["metric"]
    by_arm = {
        arm: [wording.value(v) for v in r["metrics"].get(metric, {}).get("models") or ()]
        for arm, r in figures.analysis["arms"].items()
    }
    rows, described = [], []
    for arm, values in by_arm.items():
        known = [v for v in values if v == v]
        if len(known) < 2:
            continue
        nan = float("nan")
        points = [(v, nan, nan, figures.style[arm]) for v in known]
        text = f"{wording.number(min(known))} to {wording.number(max(known))}"
        rows.append(Row(arm, text, points, on_one_line=True))
        described.append(f"{arm} {', '.join(map(wording.number, known))}")
    if not rows:
        return None
    name = wording.metric(metric)
    svg = forest.intervals(
        rows,
        axis=Axis(name, limits_of([[p[0] for r in rows for p in r.points]])),
        alt=f"{name} of each trained model: {'; '.join(described)}.",
        prefix=next(figures.prefix),
    )
    return Figure(svg, f"{name} of each trained model")


def calibration(figures: Figures) -> list[Figure]:
    """Draw for each arm the smooth calibration curve, with the risks of both outcomes below it."""
    made = []
    for arm, result in figures.analysis["arms"].items():
        entry = result.get("calibration") or {}
        curves, histograms = (entry.get(k) or () for k in ("smooth", "histogram"))
        for curve, histogram in itertools.zip_longest(curves, histograms):
            if not curve or "undefined" in curve:
                continue
            series = [Series((0.0, 1.0), (0.0, 1.0), GUIDE)]
            ends = [curve.get("low"), curve.get("high")]
            series.append(Series(curve["x"], curve["y"], figures.style[arm], *ends))
            bars = ((histogram or {}).get(side) for side in ("positive", "negative"))
            edges = (histogram or {}).get("edges")
            svg = plots.calibration(
                series,
                edges,
                *bars,
                style=figures.style[arm],
                alt=f"Calibration of {arm} for {curve['name']}: observed frequency by predicted "
                f"probability, smooth: {_points(curve)}.",
                prefix=next(figures.prefix),
            )
            note = f"Band: {figures.level}."
            if edges:
                note += f" Below: examples by predicted probability; up {curve['name']}, down not,"
                note += " each in shares of its own."
            made.append(Figure(svg, f"Calibration: {arm}, {curve['name']}", note=note))
    return made


def net_benefit(figures: Figures) -> Figure | None:
    """Draw the difference in net benefit from the reference by threshold probability."""
    items = [
        c
        for c in figures.analysis.get("comparisons") or ()
        if c.get("net_benefit") and "undefined" not in c["net_benefit"]
    ]
    if not items:
        return None
    first = items[0]["net_benefit"]["threshold"]
    series = [Series((first[0], first[-1]), (0.0, 0.0), GUIDE)]
    described, ends = [], []
    for c in items:
        entry, style = c["net_benefit"], figures.style.get(c["arm"], 0)
        is_banded = len(items) < 3
        band = [entry["low"], entry["high"]] if is_banded else []
        series.append(Series(entry["threshold"], entry["difference"], style, *band))
        ends += [entry["difference"], *band]
        points = _points(entry, "threshold", "difference")
        described.append(f"{wording.difference_name(c)} {points}")
    svg = plots.lines(
        series,
        x=Axis("threshold probability", (first[0], first[-1])),
        y=Axis("difference in net benefit", limits_of(map(_known, ends), zero=True)),
        alt=f"Difference in net benefit by threshold probability: {'; '.join(described)}.",
        prefix=next(figures.prefix),
    )
    against = figures.analysis.get("reference")
    note = f"Above 0 the arm is of more use than {against}. Bands: {figures.level}, pointwise."
    legend = figures.legend(c["arm"] for c in items)
    return Figure(svg, f"Net benefit against {against}", legend, note)


def sites(figures: Figures) -> list[Figure]:
    """Draw for each arm the main metric of every site, the mean, and the range of a new site."""
    entry = figures.analysis.get("sites") or {}
    name, made = wording.metric(figures.analysis["metric"]), []
    for arm, of_arm in (entry.get("arms") or {}).items():
        style, rows, described = figures.style[arm], [], []
        parts = [*of_arm["per_site"].items(), ("Mean over sites", of_arm["pooled"])]
        if wording.is_known(of_arm["prediction"].get("low")):
            middle = {"value": of_arm["pooled"].get("value")}
            parts.append(("A new site (prediction interval)", middle | of_arm["prediction"]))
        for title, estimate in parts:
            value, low, high = (wording.value(estimate.get(k)) for k in ("value", "low", "high"))
            if value != value:
                continue
            between = wording.interval(low, high)
            text = wording.number(value) + (f" ({between})" if between else "")
            rows.append(Row(title, text, [(value, low, high, style)]))
            described.append(f"{title} {text}")
        if len(rows) < 2:
            continue
        svg = forest.intervals(
            rows,
            axis=Axis(name, limits_of(p[:3] for r in rows for p in r.points)),
            alt=f"{name} of {arm} by site: {'; '.join(described)}.",
            prefix=next(figures.prefix),
        )
        made.append(Figure(svg, f"{name} by {wording.column(entry['column'])}: {arm}"))
    return made


def _points(curve: Mapping[str, Any], x: str = "x", y: str = "y") -> str:
    """Describe a curve by at most five of its points."""
    n = len(curve[x])
    rows = sorted({round(i * (n - 1) / 4) for i in range(5)})
    return ", ".join(f"{wording.number(curve[y][i])} at {curve[x][i]:.2f}" for i in rows)


def _known(values: Sequence[Any]) -> list[float]:
    return [wording.value(v) for v in values if wording.is_known(v)]
