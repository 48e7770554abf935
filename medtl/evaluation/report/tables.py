"""The report's tables, as rows of cells that a template or Markdown only has to set.

A cell whose number is undefined says so and carries a mark; its reason is below the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medtl.evaluation import wording
from medtl.evaluation.arm_calibration import CALIBRATED, LINE
from medtl.evaluation.metrics import LOWER_IS_BETTER

_CALIBRATIONS = {
    "before": "as trained",
    "temperature": "temperature",
    "platt": "Platt",
    "vector": "vector",
    "isotonic": "isotonic",
}
_CONFORMAL = {"class_conditional": "class-conditional", "split": "overall"}


@dataclasses.dataclass(frozen=True)
class TableCell:
    """One cell of a table.

    Attributes:
      text: the number or the word.
      small: below it, such as its interval.
      mark: letters of the footnotes.
      shade: 0..1, how dark the cell is; None: not at all.
      numeric: set to the right.
    """

    text: str
    small: str = ""
    mark: str = ""
    shade: float | None = None
    numeric: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A caption, the heads of the columns, rows that begin with their head, and the footnotes."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    footnotes: Sequence[tuple[str, str]] = ()


class Footnotes:
    """Gives each reason a letter, equal ones the same."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def mark(self, reason: str) -> str:
        n = len(self._marks)
        letter = chr(ord("a") + n % 26) * (n // 26 + 1)
        return self._marks.setdefault(reason, letter)

    @property
    def all(self) -> tuple[tuple[str, str], ...]:
        return tuple((mark, reason) for reason, mark in self._marks.items())


def _number(x: Any, notes: Footnotes, reason: str) -> TableCell:
    if wording.is_known(x):
        return TableCell(wording.number(x), numeric=True)
    return TableCell(wording.UNDEFINED, mark=notes.mark(reason), numeric=True)


def _estimate(
    estimate: Mapping[str, Any] | None, notes: Footnotes, *, sign: bool = False
) -> TableCell:
    if estimate is None:
        return TableCell("–", numeric=True)
    if not wording.is_known(estimate.get("value")):
        reason = estimate.get("undefined") or wording.NO_REASON
        return TableCell(wording.UNDEFINED, mark=notes.mark(reason), numeric=True)
    text = (wording.signed if sign else wording.number)(estimate["value"])
    small = wording.interval(estimate.get("low"), estimate.get("high"), sign=sign)
    mark = "" if small else notes.mark(estimate.get("undefined") or wording.NO_INTERVAL)
    return TableCell(text, small=small, mark=mark, numeric=True)


def arms(analysis: Mapping[str, Any]) -> Table:
    """Make a row per arm, a column per main metric."""
    notes, names = Footnotes(), wording.main_metrics(analysis)
    rows = []
    for arm, result in analysis["arms"].items():
        small = (
            "reference" if arm == analysis.get("reference") and len(analysis["arms"]) > 1 else ""
        )
        rows.append(
            (
                TableCell(arm, small=small),
                *(_estimate(result["metrics"].get(m), notes) for m in names),
            )
        )
    return Table(
        f"Main metrics, with {_interval(analysis)}", ("Arm", *map(_head, names)), rows, notes.all
    )


def all_metrics(analysis: Mapping[str, Any]) -> Table:
    """Make a row per metric, a column per arm; below each number its interval and spread."""
    notes, items = Footnotes(), analysis["arms"]
    names = _names(result["metrics"] for result in items.values())
    rows = []
    for name in names:
        cells = []
        for result in items.values():
            estimate = result["metrics"].get(name)
            cell = _estimate(estimate, notes)
            if estimate and wording.is_known(estimate.get("std")):
                cell = dataclasses.replace(
                    cell, small=f"{cell.small}; SD {wording.number(estimate['std'])}".lstrip("; ")
                )
            cells.append(cell)
        rows.append((TableCell(_head(name)), *cells))
    spread = (
        ", and the standard deviation over the models"
        if analysis["design"].get("models", 1) > 1
        else ""
    )
    return Table(
        f"All metrics, with {_interval(analysis)}{spread}", ("Metric", *items), rows, notes.all
    )


def comparisons(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per comparison in the main metric."""
    items, notes = analysis.get("comparisons") or (), Footnotes()
    if not items:
        return None
    several = len(items) > 1
    rows = []
    for c in items:
        adjusted = TableCell(wording.p_value(c.get("p_adjusted")), numeric=True)
        rows.append(
            (
                TableCell(wording.difference_name(c)),
                _estimate(c["difference"], notes, sign=True),
                TableCell(wording.p_value(c.get("p")), numeric=True),
                *((adjusted,) if several else ()),
                TableCell(wording.VERDICTS.get(c["verdict"], c["verdict"])),
            )
        )
    name = wording.metric(items[0]["metric"])
    adjusted_head = ("p, adjusted",) if several else ()
    head = ("Difference", name, "p", *adjusted_head, "First arm")
    methods = wording.listed(list(dict.fromkeys(c["method"] for c in items if c.get("method"))))
    caption = f"Differences in {name}, with {_interval(analysis)}" + (
        f", by {methods}" if methods else ""
    )
    caption += ", simultaneous over the arms" if several else ""
    return Table(caption, head, rows, notes.all)


def tests(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per comparison and test."""
    rows = []
    for c in analysis.get("comparisons") or ():
        for test in c.get("tests") or ():
            d = test.get("difference")
            interval = wording.interval(test.get("low"), test.get("high"), sign=True)
            rows.append(
                (
                    TableCell(wording.difference_name(c)),
                    TableCell(test["name"]),
                    TableCell(wording.signed(d) if wording.is_known(d) else "–", numeric=True),
                    TableCell(interval or "–", numeric=True),
                    TableCell(wording.p_value(test.get("p")), numeric=True),
                    TableCell(test.get("note") or ""),
                )
            )
    level = wording.percent(analysis["design"]["level"])
    head = ("Difference", "Test", "Estimate", f"{level} interval", "p", "Note")
    caption = "Every test of every difference; the verdict follows the first of each"
    return Table(caption, head, rows) if rows else None


def all_differences(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per metric, a column per comparison."""
    items = [c for c in analysis.get("comparisons") or () if c.get("all_metrics")]
    if not items:
        return None
    notes = Footnotes()
    rows = [
        (
            TableCell(_head(name)),
            *(_estimate(c["all_metrics"].get(name), notes, sign=True) for c in items),
        )
        for name in _names(c["all_metrics"] for c in items)
    ]
    head = ("Metric", *map(wording.difference_name, items))
    methods = wording.listed(list(dict.fromkeys(c["method"] for c in items if c.get("method"))))
    caption = f"Differences in all metrics, with {_interval(analysis)}"
    caption += f", by {methods}" if methods else ""
    return Table(caption, head, rows, notes.all)


def learning(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per number of target labels, a column per arm and per difference."""
    curve, notes = analysis.get("learning_curve"), Footnotes()
    if not curve:
        return None
    columns = [(arm, points, False) for arm, points in curve["arms"].items()]
    reference = analysis.get("reference") or "reference"
    columns += [
        (f"{arm} − {reference}", points, True)
        for arm, points in (curve.get("differences") or {}).items()
    ]
    rows = []
    for size in curve["sizes"]:
        at = [next((p for p in points if p["size"] == size), None) for _, points, _ in columns]
        cells = [_estimate(p, notes, sign=c[2]) for p, c in zip(at, columns, strict=True)]
        rows.append((TableCell(wording.count(size)), *cells))
    caption = (
        f"{wording.metric(curve['metric'])} by number of target labels, with {_interval(analysis)}"
    )
    return Table(caption, ("Labels", *(name for name, _, _ in columns)), rows, notes.all)


def calibration(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per arm and way of recalibrating."""
    notes, rows = Footnotes(), []
    # The calibration line of several classes is in a table of its own: it has none as a whole.
    two = analysis["task"] == "two_class"
    shown = [m for m in CALIBRATED if two or m not in LINE]
    for arm, result in analysis["arms"].items():
        items = result.get("calibration") or {}
        if "undefined" in items:
            mark = notes.mark(items["undefined"])
            empty = [TableCell("")] * (len(shown) + 1)
            rows.append((TableCell(arm), TableCell(wording.UNDEFINED, mark=mark), *empty))
            continue
        for kind, name in _CALIBRATIONS.items():
            if kind not in items:
                continue
            rows.append((TableCell(arm), *_calibration_row(name, items[kind], shown, notes)))
    head = ("Arm", "Scaling", *map(_head, shown), "Fitted on val")
    # With one map for each of several models there are no parameters to show.
    if not any(row[-1].text for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return Table("Calibration before and after scaling", head, rows, notes.all) if rows else None


def _calibration_row(
    name: str, entry: Mapping[str, Any], shown: Sequence[str], notes: Footnotes
) -> tuple[TableCell, ...]:
    reason = entry.get("undefined") or wording.NO_REASON
    if not any(m in entry for m in shown):
        undefined = TableCell(wording.UNDEFINED, mark=notes.mark(reason))
        return (TableCell(name), undefined, *[TableCell("")] * len(shown))
    left = "; ".join(entry.get("left_as_it_was") or ())
    mark = notes.mark(f"left as it was: {left}") if left else ""
    figures = [_number(entry.get(m), notes, reason) for m in shown]
    if "ece_if_calibrated" in entry:
        by_chance = f"if calibrated {wording.number(entry['ece_if_calibrated'])}"
        ece = list(shown).index("ece")
        figures[ece] = dataclasses.replace(figures[ece], small=by_chance)
    return (TableCell(name, mark=mark), *figures, TableCell(_parameters(entry.get("parameters"))))


def conformal(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per arm and way of making prediction sets."""
    notes, rows = Footnotes(), []
    for arm, result in analysis["arms"].items():
        items = result.get("conformal") or {}
        if "undefined" in items:
            mark = notes.mark(items["undefined"])
            rows.append(
                (TableCell(arm), TableCell(wording.UNDEFINED, mark=mark), *[TableCell("")] * 4)
            )
            continue
        rows += [
            _conformal_row(arm, name, items[kind], notes)
            for kind, name in _CONFORMAL.items()
            if kind in items
        ]
    head = ("Arm", "Sets", "Nominal", "Measured coverage, per patient", "Mean size", "n")
    return Table("Conformal prediction sets", head, rows, notes.all) if rows else None


def conformal_by_class(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per arm, sets and class: the coverage that the overall one can hide."""
    notes, rows = Footnotes(), []
    for arm, result in analysis["arms"].items():
        for kind, name in _CONFORMAL.items():
            entry = (result.get("conformal") or {}).get(kind) or {}
            for label, one in (entry.get("by_class") or {}).items():
                shown = _conformal_row(arm, name, {"level": entry.get("level")} | one, notes)
                rows.append((shown[0], shown[1], TableCell(label), *shown[3:]))
    head = ("Arm", "Sets", "Class", "Measured coverage, per patient", "Mean size", "n")
    return Table("Coverage within each class", head, rows, notes.all) if rows else None


def _conformal_row(
    arm: str, name: str, entry: Mapping[str, Any], notes: Footnotes
) -> tuple[TableCell, ...]:
    reason = entry.get("undefined") or wording.NO_REASON
    coverage = {"value": entry.get("coverage"), "undefined": reason}
    note = "; ".join(entry.get("notes") or ())
    return (
        TableCell(arm),
        TableCell(name, mark=notes.mark(note) if note else ""),
        TableCell(wording.percent(entry["level"]), numeric=True),
        _estimate(coverage | {k: entry.get(k) for k in ("low", "high")}, notes),
        _number(entry.get("size"), notes, reason),
        TableCell(wording.count(entry.get("n")), numeric=True),
    )


def confusion(analysis: Mapping[str, Any]) -> list[Table]:
    """Make one table per arm: a row per label, or per diagnosis where there are several."""
    classes, made = list(analysis["classes"]), []
    for arm, result in analysis["arms"].items():
        matrix = result.get("confusion")
        if not matrix:
            continue
        if analysis["task"] == "multi_label":
            head = ("Diagnosis", "true −", "false +", "false −", "true +")
            rows = [[c for row in one for c in row] for one in matrix]
        else:
            head = ("Label", *classes)
            rows = matrix
        cells = [(TableCell(name), *_shaded(row)) for name, row in zip(classes, rows, strict=True)]
        made.append(Table(arm, head, cells))
    return made


def _shaded(row: Sequence[Any]) -> list[TableCell]:
    """Show the counts of a row, each with its share of them; a row of zeros has no shares."""
    counts = [wording.value(x) for x in row]
    total = sum(x for x in counts if x == x)
    cells = []
    for x in counts:
        share = x / total if total and x == x else None
        small = f"{100 * share:.0f} %" if share is not None else ""
        cells.append(
            TableCell(wording.count(x), small=small, shade=round(share or 0.0, 3), numeric=True)
        )
    return cells


def subgroup(analysis: Mapping[str, Any], column: str) -> Table:
    """Make a row per group, a column per arm, in the main metric; then worst group and gap."""
    notes, metric = Footnotes(), analysis["metric"]
    items = {
        arm: r["subgroups"][column]
        for arm, r in analysis["arms"].items()
        if column in r.get("subgroups", {})
    }
    rows: list[tuple[TableCell, ...]] = []
    for group in _names(entry["groups"] for entry in items.values()):
        entries = [entry["groups"].get(group) for entry in items.values()]
        known = next(e for e in entries if e)
        small = f"n = {wording.count(known['n'])}"
        if known.get("patients") is not None:
            small += f", {wording.count(known['patients'])} patients"
        mark = notes.mark(known["small"]) if known.get("small") else ""
        cells = (_estimate((e or {"metrics": {}})["metrics"].get(metric), notes) for e in entries)
        rows.append((TableCell(group, small=small, mark=mark), *cells))
    worst, gaps = [], []
    for entry in items.values():
        w, g = entry.get("worst"), entry.get("gap")
        none = TableCell("–", numeric=True)
        shown = w and TableCell(w["group"], small=wording.number(w["value"]), numeric=True)
        worst.append(shown or none)
        gap = _estimate(g, notes) if g else none
        if g and g.get("between"):
            gap = dataclasses.replace(
                gap, small=f"{gap.small}; {' and '.join(g['between'])}".lstrip("; ")
            )
        gaps.append(gap)
    if any(entry.get("worst") for entry in items.values()):
        rows.append((TableCell("Worst group"), *worst))
    if any(entry.get("gap") for entry in items.values()):
        rows.append((TableCell("Gap", small="between the best and the worst"), *gaps))
    caption = f"{wording.metric(metric)} by {wording.column(column)}, with {_interval(analysis)}"
    remarks = dict.fromkeys(entry["note"] for entry in items.values() if entry.get("note"))
    caption += "".join(f". {remark}" for remark in remarks)
    return Table(caption, ("Group", *items), rows, notes.all)


def subgroup_metrics(analysis: Mapping[str, Any], column: str) -> list[Table]:
    """Make for each arm a table of every metric in every group."""
    made = []
    for arm, result in analysis["arms"].items():
        if column not in result.get("subgroups", {}):
            continue
        notes, groups = Footnotes(), result["subgroups"][column]["groups"]
        rows = [
            (
                TableCell(_head(name)),
                *(_estimate(g["metrics"].get(name), notes) for g in groups.values()),
            )
            for name in _names(g["metrics"] for g in groups.values())
        ]
        made.append(
            Table(
                f"{arm}: all metrics by {wording.column(column)}",
                ("Metric", *groups),
                rows,
                notes.all,
            )
        )
    return made


def data(domain: str, card: Mapping[str, Any]) -> Table:
    """Make the counts of one domain: a row per split, a column per class."""
    classes = list(card.get("classes") or ())
    rows = []
    for split, counts in (card.get("splits") or {}).items():
        names = classes or list(counts)
        cells = [TableCell(wording.count(counts.get(name, 0)), numeric=True) for name in names]
        rows.append((TableCell(split), *cells))
    return Table(f"{domain}: {card.get('name', '')}", ("Split", *classes), rows)


def _parameters(parameters: Any) -> str:
    if not isinstance(parameters, Mapping):
        return ""
    shown = []
    for name, x in parameters.items():
        values = x if isinstance(x, list | tuple) else [x]
        if all(isinstance(v, int | float) for v in values) and len(values) <= 8:
            shown.append(f"{name} {', '.join(wording.number(v, 2) for v in values)}")
    return "; ".join(shown)


def _head(metric: str) -> str:
    return f"{wording.metric(metric)} ↓" if metric in LOWER_IS_BETTER else wording.metric(metric)


def _interval(analysis: Mapping[str, Any]) -> str:
    return f"{wording.percent(analysis['design']['level'])} intervals"


def _names(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys of all mappings, each once, in the order in which they come."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))
