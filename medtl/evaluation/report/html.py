"""The report of an experiment: one HTML file that needs nothing else, and a short form in Markdown.

Both show an analysis and compute nothing, so the report, `metrics.json` and the terminal cannot
disagree. Names of arms, classes, examples and settings are text of strangers: all are escaped, and
the page forbids scripts and the network. A section without data is left out. Refuses images that
are not `data:` URIs.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medtl.evaluation import wording
from medtl.evaluation.report import (
    checklist,
    figures_decisions,
    figures_quantities,
    pack,
    statement,
    tables,
    tables_decisions,
)
from medtl.evaluation.report.figures import Figures
from medtl.evaluation.report.methods import methods
from medtl.files import write_text
from medtl.terminal import without_bidi

_TEMPLATES = Path(__file__).parent / "templates"
_ID = re.compile(r'<h[23] id="(\w+)"')
IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+")


def html(analysis: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    """Write the report as one HTML page; the same input gives the same bytes.

    Args:
      analysis: of `analysis.analyse`, or "evaluation" of metrics.json: NaN and None both mean
        undefined.
      record: where the numbers come from: "name", "command", "config", "versions", "weights",
        "seconds", "data", "training", and "hardware" in words; any may be missing. None where the
        predictions are another tool's.

    Raises:
      ValueError: an image is not a `data:` URI of a PNG, JPEG, GIF or WebP.
    """
    context = _context(analysis, record)
    return legible(template("report.html").render(context))


def template(name: str) -> Any:
    """Return a template of the package, which escapes every value."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = markupsafe.Markup  # of `plots`, which escapes what it draws
    return environment.get_template(name)


def markdown(analysis: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    """Write the short form for a pull request: verdict, arms, differences, data, command.

    Args:
      analysis: as in `html`.
      record: as in `html`.
    """
    parts = [f"# {_md(_title(analysis, record))}"]
    parts += [f"> **Warning:** {_md(warning)}" for warning in analysis.get("warnings") or ()]
    parts.append(f"**{_md(analysis['verdict']['headline'])}**")
    parts += [_md(sentence) for _, sentence in _sentences(analysis)]
    shown = [
        tables.arms(analysis),
        tables.comparisons(analysis),
        tables_decisions.per_1000(analysis),
        tables_decisions.reclassified(analysis),
        tables_decisions.flow(analysis),
    ]
    parts += [_md_table(table) for table in shown if table]
    design = analysis["design"].get("words")
    parts.append(
        f"Data: {_md(_counts(analysis))}" + (f"  \nDesign: {_md(design)}" if design else "")
    )
    parts += [f"- {_md(note)}" for note in analysis.get("notes") or ()]
    command = (record or {}).get("command")
    if command:
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", command))])
        parts.append(f"{fence}sh\n{legible(command)}\n{fence}")
    return "\n\n".join(parts) + "\n"


def write(
    folder: str | os.PathLike[str], analysis: Mapping[str, Any], record: Mapping[str, Any] | None
) -> None:
    """Write report.html, report.md and the figure pack into a folder, each file atomically.

    Args:
      folder: exists.
      analysis: as in `html`.
      record: as in `html`.

    Raises:
      OSError: the folder cannot be written.
      ValueError: as `html`.
    """
    for name, text in (
        ("report.html", html(analysis, record)),
        ("report.md", markdown(analysis, record)),
    ):
        write_text(Path(folder) / name, text)
    pack.write(Path(folder), _context(analysis, record))


def _context(analysis: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the template's values, section by section; None and empty ones are left out."""
    run, figures = record or {}, Figures(analysis)
    return {
        "a": analysis,
        "record": run,
        "wording": wording,
        "title": _title(analysis, record),
        "asked": _asked(analysis),
        **_first_screen(analysis, figures),
        "thresholds": _thresholds(analysis),
        **_figures(analysis, figures),
        "subgroups": [_subgroup(analysis, column, figures) for column in _columns(analysis)],
        "training": figures.training(record),
        "errors": [_error(error) for error in analysis.get("errors") or ()],
        "config": list(_flat(run.get("config") or {})),
        "methods": methods(analysis),
        "cards": [
            (card, tables_decisions.data(domain, card))
            for domain, card in (run.get("data") or {}).items()
        ],
        "tables": {
            "all_metrics": tables.all_metrics(analysis),
            "comparisons": tables.comparisons(analysis),
            "tests": tables.tests(analysis),
            "all_differences": tables.all_differences(analysis),
            "learning": tables.learning(analysis),
            "calibration": tables.calibration(analysis),
            "calibration_by_class": tables_decisions.calibration_by_class(analysis),
            "conformal": tables.conformal(analysis),
            "conformal_by_class": tables.conformal_by_class(analysis),
            "confusion": tables.confusion(analysis),
            "per_class": tables_decisions.per_class(analysis),
            "per_patient": tables_decisions.per_patient(analysis),
        },
        "checklists": _checklists(analysis, record),
        "sources": checklist.SOURCES,
        "places": set(_ID.findall((_TEMPLATES / "report.html").read_text(encoding="utf-8"))),
        "statement": statement.statement(analysis, record),
    }


def _first_screen(analysis: Mapping[str, Any], figures: Figures) -> dict[str, Any]:
    """Return what answers the question: verdict, zones, people, main metrics."""
    return {
        "sentences": _sentences(analysis),
        "zones": figures_decisions.zones(figures),
        "arms": tables.arms(analysis),
        "per_1000": tables_decisions.per_1000(analysis),
        "reclassified": tables_decisions.reclassified(analysis),
        "flow": tables_decisions.flow(analysis),
    }


def _figures(analysis: Mapping[str, Any], figures: Figures) -> dict[str, Any]:
    """Return the figures of the details."""
    pairs = itertools.zip_longest(figures.roc(), figures.pr())
    benefit = figures_decisions.net_benefit(figures)
    return {
        "seeds": figures_decisions.seeds(figures),
        "curves": [figure for pair in pairs for figure in pair if figure],
        "calibration": figures_decisions.calibration(figures),
        "reliability": figures.reliability(),
        "decision": [figure for figure in (figures.decision(), benefit) if figure],
        "learning_figures": figures.learning(),
        "sites": figures_decisions.sites(figures),
        "agreement": figures_quantities.agreement(figures),
    }


def _asked(analysis: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was asked: (name, value)."""
    design = analysis["design"].get("words") or ""
    facts = [("Examples", _counts(analysis)), ("Design", design)]
    if analysis.get("positive"):
        facts.append(("Positive class", analysis["positive"]))
    facts.append(("Metric", wording.metric(analysis["metric"])))
    if len(analysis["arms"]) > 1:
        facts.append(("Reference", analysis.get("reference") or ""))
        if margin := analysis.get("margin"):
            facts.append(("Margin of equivalence", f"±{margin:.3g}"))
    return [(name, value) for name, value in facts if value]


def _checklists(
    analysis: Mapping[str, Any], record: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Return guideline -> its items, and how many are in each state."""
    made: dict[str, dict[str, Any]] = {}
    for item in checklist.checklist(analysis, record):
        entry = made.setdefault(item.guideline, {"items": [], "counts": collections.Counter()})
        entry["items"].append(item)
        entry["counts"][item.state] += 1
    return made


def _title(analysis: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    name = (record or {}).get("name") or wording.listed(list(analysis["arms"]))
    return f"{name}: evaluation on {analysis['split']}"


def _sentences(analysis: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (verdict, sentence) of what the headline does not say, each once."""
    verdict = analysis["verdict"]
    kinds = {c["sentence"]: c["verdict"] for c in analysis.get("comparisons") or ()}
    sentences = dict.fromkeys([*(verdict.get("sentences") or ()), *kinds])
    return [(kinds.get(s, ""), s) for s in sentences if s not in verdict["headline"]]


def _counts(analysis: Mapping[str, Any]) -> str:
    """Write how many examples of how many patients there are, and of which classes."""
    n, patients = analysis["n"], analysis.get("patients")
    who = f"{wording.count(n)} example{'s' if n != 1 else ''}"
    if patients is None:
        who += ", patients unknown"
    else:
        who += f" of {wording.count(patients)} patient{'s' if patients != 1 else ''}"
    classes = ", ".join(
        f"{name} {wording.count(c)}" for name, c in analysis["class_counts"].items()
    )
    return f"{who}, split {analysis['split']}{f': {classes}' if classes else ''}."


def _thresholds(analysis: Mapping[str, Any]) -> list[str]:
    """Describe the operating thresholds; arms of equal descriptions share a sentence."""
    arms: dict[str, list[str]] = {}
    for arm, result in analysis["arms"].items():
        threshold = result.get("threshold")
        if threshold:
            why = f" ({threshold['words']})" if threshold.get("words") else ""
            arms.setdefault(wording.number(threshold.get("value")) + why, []).append(arm)
    return [
        f"Operating threshold of {wording.listed(names)}: {text}" for text, names in arms.items()
    ]


def _columns(analysis: Mapping[str, Any]) -> list[str]:
    return list(
        dict.fromkeys(c for arm in analysis["arms"].values() for c in arm.get("subgroups") or ())
    )


def _subgroup(analysis: Mapping[str, Any], column: str, figures: Figures) -> dict[str, Any]:
    return {
        "column": wording.column(column),
        "figure": figures.subgroups(column),
        "table": tables.subgroup(analysis, column),
        "differences": tables_decisions.group_differences(analysis, column),
        "sentences": ((analysis.get("subgroups") or {}).get(column) or {}).get("sentences") or (),
        "all": tables.subgroup_metrics(analysis, column),
    }


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    """Add the alternative text of its images to an example of `analysis["errors"]`."""
    what = f"example {error['id']}, labelled {error['label']}"
    images = []
    for key, alt in (
        ("image", f"Image of {what}"),
        ("saliency", f"{error.get('method') or 'Saliency'} of {what}"),
    ):
        source = error.get(key)
        if source:
            if not IMAGE.fullmatch(source):
                raise ValueError(
                    f"errors: the {key} of {error['id']!r} is not a data: URI of an image in base64"
                )
            images.append((source, alt))
    return {**error, "images": images}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (field, value as JSON) of nested settings."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield (
            prefix,
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str),
        )


def legible(text: str) -> str:
    """Replace control characters, which HTML cannot hold, escaped or not; write out those of order.

    A bidirectional control, such as U+202E, would show what follows it backwards.
    """
    legible = re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+", " ", text
    )
    return without_bidi(legible)


def _md(text: str) -> str:
    """Escape text so that Markdown shows it as it is, also in a table."""
    text = " ".join(legible(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|\[\]~#!$])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


def _md_table(table: tables.Table) -> str:
    def cell(one: tables.TableCell) -> str:
        small = f" ({_md(one.small)})" if one.small else ""
        return f"{_md(one.text)}{f' [{one.mark}]' if one.mark else ''}{small}"

    rows = [[_md(head) for head in table.head], ["---", *["---:"] * (len(table.head) - 1)]]
    rows += [[cell(one) for one in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [f"[{mark}] {_md(reason)}  " for mark, reason in table.footnotes]
    return "\n".join(
        [f"{_md(table.caption)}:", "", *lines, *([""] if notes else []), *notes]
    ).rstrip()
