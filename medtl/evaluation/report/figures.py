"""The report's figures: their lines, their captions, and their description for screen readers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import wording
from medtl.evaluation.report import forest, plots
from medtl.evaluation.report.forest import Row
from medtl.evaluation.report.plots import Axis, Series

_UNIT = (0.0, 1.0)
_LINES_WITH_INTERVALS = 2
_OPERATING = {"ROC curve": ("fpr", "tpr"), "Precision-recall curve": ("recall", "precision")}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot and the words around it.

    Attributes:
      svg: of `plots`, escaped.
      title: above the plot.
      legend: (a `plots.swatch`, what it stands for).
      note: below the plot.
    """

    svg: str
    title: str
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


class Figures:
    """Makes the figures of one analysis, with ids unique in the page and a style for each arm."""

    def __init__(self, analysis: Mapping[str, Any]) -> None:
        self.analysis = analysis
        self.style = {arm: i for i, arm in enumerate(analysis["arms"])}
        self.prefix: Iterator[str] = (f"plot{i}" for i in itertools.count(1))
        self.level = f"{wording.percent(analysis['design']['level'])} intervals"

    def learning(self) -> list[Figure]:
        """Draw the main metric, and its differences, by the number of target labels."""
        curve = self.analysis.get("learning_curve")
        if not curve:
            return []
        metric = wording.metric(curve["metric"])
        made = [
            self._by_size(
                curve["arms"], curve["sizes"], metric, f"{metric} by target labels", zero=False
            )
        ]
        if curve.get("differences"):
            against = self.analysis.get("reference") or "the reference"
            title = f"Difference from {against}"
            made.append(
                self._by_size(
                    curve["differences"],
                    curve["sizes"],
                    f"difference in {metric}",
                    title,
                    zero=True,
                )
            )
        return made

    def _by_size(
        self, data: Mapping[str, Any], sizes: Sequence[int], label: str, title: str, *, zero: bool
    ) -> Figure:
        series, described, ends = [], [], []
        shift = (
            max(sizes) / min(sizes)
        ) ** 0.015  # so that the bars of several arms do not hide each other
        for i, (arm, points) in enumerate(data.items()):
            x = [p["size"] * shift ** (i - (len(data) - 1) / 2) for p in points]
            y, low, high = (
                [wording.value(p.get(k)) for p in points] for k in ("value", "low", "high")
            )
            series.append(Series(x, y, self.style.get(arm, i), low, high, bars=True, marker=True))
            ends += [y, low, high]
            described.append(
                f"{arm} "
                + ", ".join(
                    f"{wording.number(v)} at {p['size']}" for v, p in zip(y, points, strict=True)
                )
            )
        ticks = [(float(s), wording.count(s)) for s in sizes]
        note = f"Bars are {self.level}."
        for arm, law in ({} if zero else self.analysis["learning_curve"].get("fit") or {}).items():
            if arm in data and law.get("x"):
                band = (law["low"], law["high"])
                series.append(Series(law["x"], law["y"], self.style.get(arm, 0), *band, faint=True))
                note = f"Bars are {self.level}; lines with bands are inverse power laws."
        if zero:
            series.insert(0, Series([min(sizes), max(sizes)], [0.0, 0.0], plots.GUIDE))
        svg = plots.lines(
            series,
            x=Axis("target labels", (min(sizes) / 1.12, max(sizes) * 1.12), ticks, log=True),
            y=Axis(label, limits_of(ends, zero=zero)),
            alt=f"{title}, with {self.level}: {'; '.join(described)}.",
            prefix=next(self.prefix),
        )
        return Figure(svg, title, self.legend(data, marker=True), note)

    def roc(self) -> list[Figure]:
        """Draw for each class the ROC curve of every arm."""
        chance = Series(_UNIT, _UNIT, plots.GUIDE)
        x = Axis("false-positive rate (1 − specificity)", (-0.01, 1.01))
        return [
            self._curves(
                name,
                "ROC curve",
                [chance],
                x,
                Axis("true-positive rate (sensitivity)", (-0.01, 1.01)),
                curves,
            )
            for name, curves in self._by_class("roc").items()
        ]

    def pr(self) -> list[Figure]:
        """Draw for each class the precision-recall curve of every arm."""
        made = []
        for name, curves in self._by_class("pr").items():
            prevalence = wording.value(next(iter(curves.values())).get("prevalence"))
            guide = Series(_UNIT, [prevalence] * 2, plots.GUIDE)
            x, y = (
                Axis("recall (sensitivity)", (-0.01, 1.01)),
                Axis("precision (PPV)", (-0.01, 1.02)),
            )
            figure = self._curves(name, "Precision-recall curve", [guide], x, y, curves)
            note = f"{figure.note} The dashed line is the prevalence, {wording.number(prevalence)}."
            made.append(dataclasses.replace(figure, note=note))
        return made

    def _by_class(self, kind: str) -> dict[str, dict[str, Any]]:
        """Class -> arm -> curve."""
        data: dict[str, dict[str, Any]] = {}
        for arm, result in self.analysis["arms"].items():
            for curve in (result.get("curves") or {}).get(kind) or ():
                data.setdefault(curve["name"], {})[arm] = curve
        return data

    def _curves(
        self,
        name: str,
        kind: str,
        guides: list[Series],
        x: Axis,
        y: Axis,
        curves: Mapping[str, Any],
    ) -> Figure:
        series, described = list(guides), []
        banded, point = self._banded(curves), _OPERATING[kind]
        for arm, curve in curves.items():
            low, high = (curve.get(k) if arm in banded else None for k in ("low", "high"))
            series.append(Series(curve["x"], curve["y"], self.style[arm], low, high))
            operating = self.analysis["arms"][arm]["curves"].get("operating")
            if operating and wording.is_known(operating.get(point[0])):
                across, up = ([wording.value(operating.get(k))] for k in point)
                series.append(Series(across, up, self.style[arm], marker=True))
            values = ((wording.number(_at(curve, at), 2), at) for at in (0.1, 0.2, 0.5))
            described.append(f"{arm} " + ", ".join(f"{value} at {at:.2f}" for value, at in values))
        alt = f"{kind} of {name}; {y.label} at {x.label}: {'; '.join(described)}."
        svg = plots.lines(series, x=x, y=y, alt=alt, prefix=next(self.prefix))
        note = (
            "Marked: the operating threshold. " if len(series) > len(guides) + len(curves) else ""
        )
        if any(curves[arm].get("low") for arm in banded):
            note += f"Bands: {self.level}."
        return Figure(svg, f"{kind}: {name}", self.legend(curves), note)

    def _banded(self, curves: Mapping[str, Any]) -> list[str]:
        """Return the arms whose bands are drawn; more than two would cover each other."""
        if len(curves) <= _LINES_WITH_INTERVALS:
            return list(curves)
        first = next(iter(self.analysis.get("comparisons") or ()), None)
        return [a for a in (first["arm"], first["reference"]) if a in curves] if first else []

    def reliability(self) -> list[Figure]:
        """Draw for each arm the observed frequency by the predicted probability."""
        made = []
        for arm, result in self.analysis["arms"].items():
            curves: Sequence[Mapping[str, Any]] = (result.get("curves") or {}).get(
                "reliability"
            ) or ()
            series, described, legend = [Series(_UNIT, _UNIT, plots.GUIDE)], [], []
            for i, curve in enumerate(curves):
                style = self.style[arm] if len(curves) == 1 else i
                low, high = (
                    curve.get(k) if len(curves) <= _LINES_WITH_INTERVALS else None
                    for k in ("low", "high")
                )
                bars = low is not None
                series.append(
                    Series(
                        curve["predicted"],
                        curve["observed"],
                        style,
                        low,
                        high,
                        bars=bars,
                        marker=True,
                    )
                )
                described.append(f"{curve['name']} {_bins(curve)}")
                legend.append((plots.swatch(style, marker=True), curve["name"]))
            if not described:
                continue
            svg = plots.lines(
                series,
                x=Axis("predicted probability", (-0.01, 1.01)),
                y=Axis("observed frequency", (-0.01, 1.01)),
                alt=f"Reliability of {arm}, observed frequency by predicted probability: "
                f"{'; '.join(described)}.",
                prefix=next(self.prefix),
            )
            sizes = [wording.value(n) for curve in curves for n in curve.get("n") or ()]
            least, most = (wording.count(end(sizes)) if sizes else "" for end in (min, max))
            note = f"Bars are {self.level}. " if len(curves) <= _LINES_WITH_INTERVALS else ""
            if sizes:
                count = least if least == most else f"{least} to {most}"
                note += f"Each point is of {count} examples."
            title = f"Reliability: {arm}" + (f", {curves[0]['name']}" if len(curves) == 1 else "")
            made.append(Figure(svg, title, legend if len(curves) > 1 else (), note))
        return made

    def decision(self) -> Figure | None:
        """Draw net benefit by threshold probability, against treating all and none."""
        data = {
            a: (r.get("curves") or {}).get("decision") for a, r in self.analysis["arms"].items()
        }
        curves = {arm: curve for arm, curve in data.items() if curve}
        if not curves:
            return None
        first, banded = next(iter(curves.values())), self._banded(curves)
        x = first["threshold"]
        series = [
            Series(x, first["all"], plots.GUIDE),
            Series(x, first["none"], plots.GUIDE_DOTTED),
        ]
        described = []
        for arm, curve in curves.items():
            low, high = (curve.get(k) if arm in banded else None for k in ("low", "high"))
            series.append(Series(curve["threshold"], curve["model"], self.style[arm], low, high))
            pairs = {"x": curve["threshold"], "y": curve["model"]}
            described.append(
                f"{arm} "
                + ", ".join(f"{wording.number(_at(pairs, t))} at {t:.2f}" for t in (0.1, 0.2, 0.5))
            )
        benefits = (v for c in curves.values() for v in (*c["model"], *c["all"]))
        top = max([0.01, *(wording.value(v) for v in benefits if wording.is_known(v))])
        legend = [*self.legend(curves), (plots.swatch(plots.GUIDE), "all are treated")]
        legend.append((plots.swatch(plots.GUIDE_DOTTED), "none is treated"))
        svg = plots.lines(
            series,
            x=Axis("threshold probability", (min(x), max(x))),
            y=Axis("net benefit", (-0.25 * top, 1.08 * top)),
            alt="Decision curve, net benefit at threshold probabilities: "
            f"{'; '.join(described)}; if none is treated 0.",
            prefix=next(self.prefix),
        )
        note = "A model is of use at thresholds where it is above treating all and treating none."
        return Figure(svg, "Decision curve", legend, note)

    def subgroups(self, column: str) -> Figure | None:
        """Draw the main metric of every arm in each group of one column."""
        name = wording.metric(self.analysis["metric"])
        data = {
            a: r["subgroups"][column]["groups"]
            for a, r in self.analysis["arms"].items()
            if column in r.get("subgroups", {})
        }
        rows, described = [], []
        for group in dict.fromkeys(g for groups in data.values() for g in groups):
            points, values = [], []
            for arm, groups in data.items():
                estimate = (
                    groups.get(group, {}).get("metrics", {}).get(self.analysis["metric"]) or {}
                )
                value, low, high = (
                    wording.value(estimate.get(k)) for k in ("value", "low", "high")
                )
                points.append((value, low, high, self.style[arm]))
                values.append(f"{arm} {wording.number(value)}")
            n = next(groups[group]["n"] for groups in data.values() if group in groups)
            rows.append(Row(group, f"n = {wording.count(n)}", points))
            described.append(f"{group} (n = {wording.count(n)}): {', '.join(values)}")
        limits = limits_of(p[:3] for row in rows for p in row.points)
        if limits is None:
            return None
        alt = f"{name} by {wording.column(column)}, with {self.level}. {'; '.join(described)}."
        svg = forest.intervals(rows, axis=Axis(name, limits), alt=alt, prefix=next(self.prefix))
        return Figure(
            svg,
            f"{name} by {wording.column(column)}",
            self.legend(data, marker=True),
            f"Lines are {self.level}.",
        )

    def training(self, record: Mapping[str, Any] | None) -> list[Figure]:
        """Draw the parts of the loss for each arm and stage, then λ and the metrics on val."""
        runs = [run for run in (record or {}).get("training") or () if run.get("steps")]
        made = []
        for (arm, stage), data in _grouped(runs, lambda run: (run["arm"], run["stage"])).items():
            parts = list(
                dict.fromkeys(p for run in data for p in run.get("parts") or {} if p != "lambda")
            )
            lines = [
                (part, run["steps"], run["parts"][part])
                for part in parts
                for run in data
                if part in run["parts"]
            ]
            styles = {part: i for i, part in enumerate(parts)}
            made.append(
                self._over_steps(lines, styles, f"Loss, {arm}, {stage} stage", "loss", len(data))
            )
        lambdas = [
            (run["arm"], run["steps"], run["parts"]["lambda"])
            for run in runs
            if "lambda" in (run.get("parts") or {})
        ]
        made.append(
            self._over_steps(
                lambdas, self.style, "λ, the weight of the target's loss", "λ", len(lambdas)
            )
        )
        names = dict.fromkeys(m for run in runs for m in run.get("val") or {} if m != "steps")
        for name in names:
            on_val = [
                (f"{r['arm']}", r["val"]["steps"], r["val"][name])
                for r in runs
                if r["stage"] != "source" and name in (r.get("val") or {})
            ]
            title = f"{wording.metric(name)} on val"
            made.append(
                self._over_steps(on_val, self.style, title, wording.metric(name), len(on_val))
            )
        return [figure for figure in made if figure]

    def _over_steps(
        self,
        data: Sequence[tuple[str, Any, Any]],
        styles: Mapping[str, int],
        title: str,
        label: str,
        runs: int,
    ) -> Figure | None:
        """Draw lines of (name, steps, values); several of the same name are pale."""
        if not data:
            return None
        names = list(dict.fromkeys(name for name, _, _ in data))
        several = len(data) > len(names)
        series, described = [], []
        for name, steps, values in data:
            y = [wording.value(v) for v in values]
            series.append(Series(steps, y, styles.get(name, 0), marker=len(y) == 1, faint=several))
        for name in names:
            first, last = (
                np.mean([wording.value(v[i]) for n, _, v in data if n == name and v] or [np.nan])
                for i in (0, -1)
            )
            described.append(f"{name} from {wording.number(first)} to {wording.number(last)}")
        alt = f"{title}, by step: {'; '.join(described)}."
        limits = limits_of([s.y for s in series])
        svg = plots.lines(
            series, x=Axis("step"), y=Axis(label, limits), alt=alt, prefix=next(self.prefix)
        )
        note = f"A line for each of {runs} models." if several else ""
        return Figure(
            svg, title, [(plots.swatch(styles.get(name, 0)), name) for name in names], note
        )

    def legend(self, arms: Iterable[str], *, marker: bool = False) -> list[tuple[str, str]]:
        return [
            (plots.swatch(self.style.get(arm, i), marker=marker), arm) for i, arm in enumerate(arms)
        ]


def _grouped(runs: Iterable[Any], key: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def _at(curve: Mapping[str, Any], at: float) -> float:
    """Return the curve's y at an x, on the straight line between points; NaN outside them."""
    x, y = (np.array([wording.value(v) for v in curve[k]]) for k in ("x", "y"))
    order = np.argsort(x, kind="stable")
    if not len(x):
        return float("nan")
    return float(np.interp(at, x[order], y[order], left=np.nan, right=np.nan))


def _bins(curve: Mapping[str, Any]) -> str:
    pairs = zip(curve["predicted"], curve["observed"], strict=True)
    return ", ".join(f"{wording.number(o, 2)} at {wording.number(p, 2)}" for p, o in pairs)


def limits_of(
    groups: Iterable[Iterable[float]], *, zero: bool = False
) -> tuple[float, float] | None:
    """Return limits a little beyond the least and the greatest number; None where there is none."""
    values = [v for group in groups for v in group if np.isfinite(v)] + ([0.0] if zero else [])
    if not values:
        return None
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin
