"""Tables of people rather than metrics: their flow, decisions per 1,000, classes, patients, sites.

As in `tables`, an entry that the analysis lacks has no table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medtl.evaluation import wording
from medtl.evaluation.report.tables import (
    Footnotes,
    Table,
    TableCell,
    estimate_cell,
    interval_words,
    metric_head,
    names_of,
)

_OUTCOMES = {
    "true_positive": "Found",
    "false_negative": "Missed",
    "false_positive": "False alarms",
    "true_negative": "Rightly cleared",
}
_MOVES = {
    "newly_found": "Newly found",
    "newly_missed": "Newly missed",
    "newly_false_alarm": "New false alarms",
    "newly_cleared": "Newly cleared",
}


def flow(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per split, and one per reason of exclusion, in examples and patients."""
    entry = analysis.get("flow")
    if not entry:
        return None
    positive = analysis.get("positive")
    heads = ["Split", "Examples", "Patients", *([f"Patients with {positive}"] if positive else [])]
    rows = []
    for split, counts in entry["splits"].items():
        numbers = [counts["examples"], counts["patients"]]
        numbers += [counts["positive_patients"]] if positive else []
        rows.append((TableCell(split), *map(_people, numbers)))
    for one in entry.get("excluded") or ():
        empty = [TableCell("")] * (len(heads) - 3)
        left_out = TableCell(f"left out: {one['reason']}")
        rows.append((left_out, _people(one["rows"]), _people(one["patients"]), *empty))
    labelled, total = (wording.count(entry[name]) for name in ("labelled", "rows"))
    return Table(f"Flow of participants: {labelled} of {total} examples have a label", heads, rows)


def per_1000(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per arm: what happens to 1,000 patients at the operating threshold."""
    arms = {a: r["per_1000"] for a, r in analysis["arms"].items() if r.get("per_1000")}
    if not arms:
        return None
    notes, rows = Footnotes(), []
    for arm, entry in arms.items():
        people = (_whole(entry.get(name), notes) for name in _OUTCOMES)
        metrics = analysis["arms"][arm]["metrics"]
        values = (estimate_cell(metrics.get(name), notes) for name in ("ppv", "npv"))
        rows.append((TableCell(arm), *people, *values))
    prevalence = wording.percent(round(next(iter(arms.values()))["prevalence"], 3))
    caption = f"Of 1,000 patients, {prevalence} of them with {analysis['positive']}"
    caption += f", at the operating threshold; with {interval_words(analysis)}"
    return Table(caption, ("Arm", *_OUTCOMES.values(), "PPV", "NPV"), rows, notes.all)


def reclassified(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per comparison: whose call changes, per 1,000 patients."""
    items = [c for c in analysis.get("comparisons") or () if c.get("reclassified")]
    if not items:
        return None
    notes = Footnotes()
    rows = [
        (
            TableCell(f"{c['arm']} instead of {c['reference']}"),
            *(_whole(c["reclassified"].get(name), notes) for name in _MOVES),
        )
        for c in items
    ]
    caption = f"Of 1,000 patients, those whose call changes; with {interval_words(analysis)}"
    return Table(caption, ("Arm", *_MOVES.values()), rows, notes.all)


def per_class(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per arm and class: each class against the rest."""
    notes, rows = Footnotes(), []
    names: list[str] = []
    for result in analysis["arms"].values():
        names = names or names_of((result.get("per_class") or {}).values())
    for arm, result in analysis["arms"].items():
        for label, entry in (result.get("per_class") or {}).items():
            cells = (estimate_cell(entry.get(name), notes) for name in names)
            rows.append((TableCell(arm), TableCell(label), *cells))
    heads = ("Arm", "Class", *map(metric_head, names))
    caption = f"Each class against the rest, with {interval_words(analysis)}"
    return Table(caption, heads, rows, notes.all) if rows else None


def calibration_by_class(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per arm and class: slope, intercept, O:E ratio and calibration index."""
    notes, rows = Footnotes(), []
    parts = {"slope": "Slope", "intercept": "Intercept", "o_e": "Observed : expected", "ici": "ICI"}
    for arm, result in analysis["arms"].items():
        calibration = result.get("calibration") or {}
        by_class = calibration.get("per_class") or {}
        if not by_class and calibration.get("o_e"):
            metrics = result["metrics"]
            line = {k: metrics.get(f"calibration_{k}") for k in ("slope", "intercept")}
            of_all = {k: calibration.get(k) for k in ("o_e", "ici")}
            by_class = {analysis.get("positive") or "all": line | of_all}
        for label, entry in by_class.items():
            cells = (estimate_cell(entry.get(part), notes) for part in parts)
            rows.append((TableCell(arm), TableCell(label), *cells))
    caption = f"Calibration as trained, with {interval_words(analysis)}"
    heads = ("Arm", "Class", *parts.values())
    return Table(caption, heads, rows, notes.all) if rows else None


def per_patient(analysis: Mapping[str, Any]) -> Table | None:
    """Make a row per arm: the main metrics of images beside those of patients."""
    entry = analysis.get("per_patient")
    if not entry:
        return None
    notes, rows = Footnotes(), []
    names = [n for n in wording.main_metrics(analysis) if not n.startswith("calibration_")]
    for arm, metrics in entry["arms"].items():
        by_image = analysis["arms"][arm]["metrics"]
        for unit, values in (("image", by_image), ("patient", metrics)):
            cells = (estimate_cell(values.get(name), notes) for name in names)
            rows.append((TableCell(arm), TableCell(f"per {unit}"), *cells))
    left = entry.get("left_out")
    caption = f"Per image, and per patient by the {entry['rule']} of the patient's images"
    caption += f": {wording.count(entry['n'])} patients"
    caption += f", {wording.count(left)} of mixed labels left out" if left else ""
    return Table(caption, ("Arm", "Unit", *map(metric_head, names)), rows, notes.all)


def group_differences(analysis: Mapping[str, Any], column: str) -> Table | None:
    """Make a row per group, a column per arm: the difference from the reference in it."""
    entry = (analysis.get("subgroups") or {}).get(column) or {}
    differences = entry.get("differences") or {}
    if not differences:
        return None
    notes = Footnotes()
    rows = []
    for group in names_of(differences.values()):
        by_arm = (of_arm.get(group) for of_arm in differences.values())
        rows.append((TableCell(group), *(estimate_cell(e, notes, sign=True) for e in by_arm)))
    heads = ("Group", *(f"{arm} − {entry.get('reference')}" for arm in differences))
    name = wording.metric(analysis["metric"])
    caption = f"Differences in {name} by {wording.column(column)}, with simultaneous intervals"
    return Table(caption, heads, rows, notes.all)


def data(domain: str, card: Mapping[str, Any]) -> Table:
    """Make the counts of one domain: a row per split, a column per class."""
    classes = list(card.get("classes") or ())
    rows: list[Sequence[TableCell]] = []
    if distribution := card.get("distribution"):
        for split, d in distribution.items():
            values = [wording.number(d[name]) for name in ("mean", "sd", "min", "max")]
            numbers = [wording.count(d["examples"]), *values]
            rows.append((TableCell(split), *(TableCell(n, numeric=True) for n in numbers)))
        caption = f"{domain}: {card.get('name', '')}, {wording.listed(classes)}"
        return Table(caption, ("Split", "Examples", "Mean", "SD", "Min", "Max"), rows)
    for split, counts in (card.get("splits") or {}).items():
        names = classes or list(counts)
        cells = [TableCell(wording.count(counts.get(name, 0)), numeric=True) for name in names]
        rows.append((TableCell(split), *cells))
    return Table(f"{domain}: {card.get('name', '')}", ("Split", *classes), rows)


def _people(count: Any) -> TableCell:
    return TableCell("unknown" if count is None else wording.count(count), numeric=True)


def _whole(estimate: Mapping[str, Any] | None, notes: Footnotes) -> TableCell:
    """Show an estimate per 1,000 in whole people."""
    if estimate is None or not wording.is_known(estimate.get("value")):
        return estimate_cell(estimate, notes)
    low, high = (wording.value(estimate.get(end)) for end in ("low", "high"))
    is_known = wording.is_known(low) and wording.is_known(high)
    small = f"{low:,.0f} to {high:,.0f}" if is_known else ""
    return TableCell(f"{estimate['value']:,.0f}", small=small, numeric=True)
