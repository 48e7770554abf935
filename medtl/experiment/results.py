"""Writes `metrics.json` and the report from predictions, and prints the table. Imports no JAX.

Refuses to put the report of foreign predictions into the folder of a run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl import config as configs
from medtl import files
from medtl.errors import UserError, damaged, quoted
from medtl.evaluation import (
    analysis,
    arm_results,
    caveats,
    ensembles,
    flow,
    label_shift,
    metrics,
    mistakes,
    operating,
    plain,
    predictions,
    summarize,
    table,
    to_json,
)
from medtl.evaluation.predictions import Predictions
from medtl.evaluation.report import html
from medtl.examples import is_quantity
from medtl.experiment import planned, run_folder

# What a report computes again from predictions.csv.
_COMPUTED = ("arms", "std", "seeds", "splits", "cells", "evaluation")
_DEFAULT_METRIC = analysis.Settings.metric
ERRORS = "errors.json"  # an arm's most confident mistakes, beside its predictions of a split


def write(
    folder: Path,
    rows: Sequence[Predictions],
    classes: Sequence[str],
    config: Any,
    provenance: Mapping[str, Any],
    *,
    sources: Sequence[str] | None = None,
    name: str = "predictions.csv",
) -> dict[str, Any]:
    """Write `metrics.json`, `report.html` and `report.md`; print the table and the verdict.

    Args:
      folder: where to write them.
      rows: every arm's predictions of every reported split.
      classes: the K names.
      config: its sections `evaluation` and `checkpoint.metric` are used.
      provenance: further entries of `metrics.json`; if "config" is among them, the report shows
        where the numbers come from.
      sources: the arms that learn from the source; None: unknown.
      name: of the predictions' file, for errors.

    Returns:
      The content of `metrics.json`.
    """
    settings = settings_of(config, rows)
    rows = [*rows, *(ensembles.of_seeds(rows) if config.evaluation.ensembles else ())]
    shifted, shifts = label_shift.arms(rows, config.evaluation.label_shift)
    rows += shifted
    if sources is not None:
        sources = [arm for arm in {p.arm: 0 for p in rows} if ensembles.base(arm) in sources]
    report = analysis.analyse(
        rows, classes, settings, sources=sources, errors=_errors(folder), name=name
    )
    if not any(p.fold is not None or p.repeat is not None for p in rows):
        card = provenance.get("data", {}).get("target")
        report["flow"] = flow.with_data(report["flow"], card)
    report["notes"] += [*ensembles.notes(rows), *label_shift.notes(shifts, classes)]
    report["label_shift"] = shifts
    report["notes"] += provenance.get("notes", [])
    report["notes"] += caveats.accepted(provenance.get("data", {}).values())
    if "config" in provenance:
        _add_of_run(report, folder, config)
    summary = {
        **_summary(rows, classes, settings, report["split"]),
        "evaluation": {**report, "errors": mistakes.without_pictures(report["errors"])},
        **provenance,
        "digest": files.digest(plain(provenance)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir={folder} cannot be made: {error.strerror}; give another folder"
        ) from None
    files.write_text(folder / "metrics.json", to_json(summary))
    html.write(folder, report, provenance if "config" in provenance else None)
    print(table.render(summary))
    return summary


def settings_of(config: Any, rows: Sequence[Predictions]) -> analysis.Settings:
    """Return how predictions are evaluated; those of numbers and of grades in their own metrics."""
    metric = config.checkpoint.metric
    is_number = any(is_quantity(p.label) for p in rows)
    if is_number and metric == _DEFAULT_METRIC:
        metric = "mae"  # of another tool, whose config names no task
    settings = analysis.Settings.of(config.evaluation, metric=metric)
    if is_number:
        return dataclasses.replace(settings, positive="", prevalence=0.0, ordinal=False)
    is_ordinal = settings.ordinal or config.data.task == "ordinal"
    return dataclasses.replace(settings, ordinal=is_ordinal)


def _add_of_run(report: dict[str, Any], folder: Path, config: Any) -> None:
    """Add what only a run's folder tells: what was planned, and what chose the checkpoint."""
    report["planned"] = planned.compare(folder, config)
    changed = (report["planned"] or {}).get("changed")
    if changed:
        text = f"Changed after results were seen: {'; '.join(changed)}."
        report["warnings"].insert(0, text)
    chooses = config.checkpoint.select == "best" or bool(configs.paths(config.evaluation.tune))
    report["warnings"] += caveats.best_on_val(report["split"], val_chooses=chooses)


def rebuild(folder: Path, config: Any, *, file: Path | None = None) -> dict[str, Any]:
    """Build the report again from predictions alone, those of a run or of any other tool.

    Args:
      folder: of the run; or where the report of other predictions goes.
      config: as in `write`.
      file: the predictions; None: `predictions.csv` in `folder`.

    Returns:
      The content of `metrics.json`.

    Raises:
      UserError: the predictions are malformed, see `evaluation.predictions`; or `folder` is that of
        another run.
    """
    of_run = folder / "predictions.csv"
    is_run = (folder / run_folder.CONFIG).exists()
    if file is not None and is_run and file.resolve() != of_run.resolve():
        raise UserError(
            f"--workdir={folder} holds a run, whose report is not of {file}; give another folder"
        )
    path = file or of_run
    if not path.is_file():
        raise UserError(
            f"there is no {path}; give --predictions=FILE, or the --workdir of a run that is done"
        )
    rows, classes = predictions.read(path, multi_label=config.data.target.multi_label or None)
    provenance = provenance_of(folder) if is_run else {}
    if (named := provenance.get("data", {}).get("target", {}).get("classes")) and len(named) == 1:
        classes = tuple(named)  # a quantity's name, which predictions.csv does not hold
    sources = (
        [name for name, arm in config.arm.items() if arm.source_stage or arm.joint]
        if is_run
        else None
    )
    summary = write(folder, rows, classes, config, provenance, sources=sources, name=str(path))
    print(f"{folder}: metrics.json, report.html, report.md")
    return summary


def provenance_of(folder: Path) -> dict[str, Any]:
    """Return what the run itself wrote into `metrics.json` beside its numbers, if it is there.

    Raises:
      UserError: the file is damaged.
    """
    path = folder / "metrics.json"
    if not path.exists():
        return {}
    with damaged(f"{path} is damaged; delete it, and the report is made from predictions.csv"):
        written = json.loads(path.read_text(encoding="utf-8"))
        digest = written.pop("digest", None)  # older versions have none
        provenance = {name: value for name, value in written.items() if name not in _COMPUTED}
        if digest is not None and digest != files.digest(provenance):
            raise ValueError("it has changed since it was written")
        return provenance


def _summary(
    rows: Sequence[Predictions],
    classes: Sequence[str],
    settings: analysis.Settings,
    evaluated: str,
) -> dict[str, Any]:
    """Compute means over the seeds, or over a cross-validation's splits; smaller sizes left out.

    Two classes are told apart at the operating threshold that val chose for the evaluated split.
    """
    positive = analysis.positive_class(settings.positive, classes)
    val = {(p.arm, p.model): p for p in rows if p.split == "val" != evaluated}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    of_all = arm_results.of_all_labels(rows)
    crossed = any(p.fold is not None or p.repeat is not None for p in of_all)
    for p in of_all:
        parts = (("seed", p.seed), ("repeat", p.repeat), ("fold", p.fold))
        split = ", ".join(f"{name} {value}" for name, value in parts if value is not None)
        run = split if crossed else str(p.seed or 0)
        entry = metrics.describe(
            p.label,
            p.probability,
            classes=classes,
            positive=settings.positive,
            extra=settings.extra,
            threshold=operating.choose(val.get((p.arm, p.model)), settings.threshold, positive),
        )
        results.setdefault(run, {}).setdefault(p.arm, {})[p.split] = entry
    return summarize(results, runs="splits" if crossed else "seeds")


def _errors(folder: Path) -> list[dict[str, Any]]:
    """Read the mistakes that a run folder keeps, the most confident first."""
    entries: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"seed_*/**/{ERRORS}")):
        with damaged(f"{path} is damaged; delete it, and the report is made without it"):
            of_arm = [_whole_mistake(entry) for entry in json.loads(path.read_text())]
            entries += sorted(of_arm, key=lambda entry: -entry["probability"])
    return sorted(entries, key=lambda entry: -entry["probability"])[: mistakes.MOST]


def _whole_mistake(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a mistake as it is; raise ValueError where the report could not show it."""
    if absent := {"id", "arm", "predicted", "label", "probability"} - entry.keys():
        raise ValueError(f"an entry has no {min(absent)}")
    if type(entry["probability"]) not in (int, float) or not 0 <= entry["probability"] <= 1:
        raise ValueError(f"a probability is {quoted(str(entry['probability']))}")
    pictures = [entry[name] for name in ("image", "saliency") if entry.get(name)]
    if not all(html.IMAGE.fullmatch(picture) for picture in pictures):
        raise ValueError("a picture is no data: URI of an image")
    return entry


def training(folder: Path, config: Any) -> list[dict[str, Any]]:
    """Read the logged training of every arm's stages, of the first seed and split."""
    logged = []
    for arm in config.arms:
        for stage in ("source", "target") if config.arm[arm].source_stage else ("target",):
            of_arm = folder / f"seed_{config.seeds[0]}" / arm
            logs = sorted(of_arm.glob(f"{stage}/log.jsonl")) or sorted(
                of_arm.glob(f"**/{stage}/log.jsonl")
            )
            if logs:
                run = {"arm": arm, "seed": config.seeds[0], "stage": stage}
                advice = "delete it, and the report is made without it"
                with damaged(f"{logs[0]} is damaged; {advice}"):
                    logged.append(run | _logged(logs[0]))
    return logged


def _logged(path: Path, points: int = 200) -> dict[str, Any]:
    """Read the loss parts and λ at up to `points` steps, the metrics on val, and findings."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line for line in lines if "val" not in line and "note" not in line]
    steps = steps[:: -(-len(steps) // points)] if steps else []
    names = [
        name for name in (steps[0] if steps else ()) if "/" in name or name in ("loss", "lambda")
    ]
    val = [line for line in lines if "val" in line]
    of_val = sorted({name for line in val for name in line["val"]})
    return {
        "steps": [line["step"] for line in steps],
        "parts": {name: [line.get(name) for line in steps] for name in names},
        "val": {
            "steps": [line["step"] for line in val],
            **{name: [line["val"].get(name) for line in val] for name in of_val},
        },
        "notes": [line["note"] for line in lines if "note" in line],
    }
