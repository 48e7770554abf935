"""What a run leaves for its reader: `metrics.json`, the report, the table on the terminal; from predictions, and without JAX.

Refuses to put the report of foreign predictions into the folder of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl import files
from medtl.errors import UserError
from medtl.evaluation import analysis, details, metrics, predictions, summarize, table, to_json
from medtl.evaluation.predictions import Predictions
from medtl.evaluation.report import html
from medtl.experiment import run_folder

ERRORS = "errors.json"  # an arm's most confident mistakes, beside what it did in a cell


def write(
    folder: Path,
    said: Sequence[Predictions],
    classes: Sequence[str],
    config: Any,
    provenance: Mapping[str, Any],
    *,
    sources: Sequence[str] | None = None,
    name: str = "predictions.csv",
) -> dict[str, Any]:
    """Writes `metrics.json`, `html.html` and `html.md`, and prints the table and the verdict.

    Args:
      folder: where to.
      said: every arm's predictions of every reported split.
      classes: the K names.
      config: its sections `evaluation` and `checkpoint.metric` are used.
      provenance: what else `metrics.json` holds; with a "config" among it the report shows where the numbers come from.
      sources: the arms that learn from the source; None: not known.
      name: of the predictions' file, for errors.

    Returns:
      What `metrics.json` holds.
    """
    found = analysis.analyse(
        said,
        classes,
        analysis.Settings.of(config.evaluation, metric=config.checkpoint.metric),
        sources=sources,
        errors=_errors(folder),
        name=name,
    )
    summary = {
        **_summary(said, classes),
        "evaluation": {**found, "errors": _without_images(found["errors"])},
        **provenance,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir={folder} cannot be made: {error.strerror}; give another folder"
        ) from None
    files.write_text(folder / "metrics.json", to_json(summary))
    html.write(folder, found, provenance if "config" in provenance else None)
    print(table.render(summary))
    return summary


def rebuild(folder: Path, config: Any, *, file: Path | None = None) -> dict[str, Any]:
    """Builds the report again from predictions alone, those of a run or of any other tool.

    Args:
      folder: of the run; or where the report of other predictions goes.
      config: as in `write`.
      file: the predictions; None: `predictions.csv` in `folder`.

    Returns:
      What `metrics.json` holds.

    Raises:
      UserError: the predictions are not as `evaluation.predictions` wants them; or `folder` is that of another run.
    """
    own = folder / "predictions.csv"
    is_run = (folder / run_folder.CONFIG).exists()
    if file is not None and is_run and file.resolve() != own.resolve():
        raise UserError(
            f"--workdir={folder} holds a run, whose report is not of {file}; give another folder"
        )
    path = file or own
    if not path.is_file():
        raise UserError(
            f"there is no {path}; give --predictions=FILE, or the --workdir of a run that is done"
        )
    said, classes = predictions.read(path, multi_label=config.data.target.multi_label or None)
    known = _provenance(folder) if is_run else {}
    sources = (
        [name for name, arm in config.arm.items() if arm.source_stage or arm.joint]
        if is_run
        else None
    )
    summary = write(folder, said, classes, config, known, sources=sources, name=str(path))
    print(f"{folder}: metrics.json, html.html, html.md")
    return summary


def _provenance(folder: Path) -> dict[str, Any]:
    """What the run itself wrote into `metrics.json` beside its figures."""
    try:
        written = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {
        name: value
        for name, value in written.items()
        if name not in ("arms", "std", "seeds", "cells", "evaluation")
    }


def _summary(said: Sequence[Predictions], classes: Sequence[str]) -> dict[str, Any]:
    """Means and standard deviations over the seeds, or over the cells of a cross-validation; without smaller subsets."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    folded = any(p.fold is not None or p.repeat is not None for p in said)
    for p in details.whole(said):
        named = (("seed", p.seed), ("repeat", p.repeat), ("fold", p.fold))
        cell = ", ".join(f"{name} {value}" for name, value in named if value is not None)
        cell = cell if folded else str(p.seed or 0)
        scores = metrics.compute(p.label, p.probability, classes=classes).as_dict()
        results.setdefault(cell, {}).setdefault(p.arm, {})[p.split] = scores
    return summarize(results, runs="cells" if folded else "seeds")


def _without_images(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in entry.items() if k not in ("image", "saliency", "method")}
        for entry in errors
    ]


def _errors(folder: Path) -> list[dict[str, Any]]:
    """The most confident mistakes that a run folder keeps, the most confident first."""
    every = [
        entry
        for path in sorted(folder.glob(f"seed_*/**/{ERRORS}"))
        for entry in json.loads(path.read_text())
    ]
    return sorted(every, key=lambda entry: -entry["probability"])[: details.MISTAKES]


def training(folder: Path, config: Any) -> list[dict[str, Any]]:
    """The logged training of every arm's stages, in the first seed and cell."""
    found = []
    for arm in config.arms:
        for stage in ("source", "target") if config.arm[arm].source_stage else ("target",):
            place = folder / f"seed_{config.seeds[0]}" / arm
            logs = sorted(place.glob(f"{stage}/log.jsonl")) or sorted(
                place.glob(f"**/{stage}/log.jsonl")
            )
            if logs:
                found.append(
                    {"arm": arm, "seed": config.seeds[0], "stage": stage, **_logged(logs[0])}
                )
    return found


def _logged(path: Path, points: int = 200) -> dict[str, Any]:
    """The loss parts and λ at up to `points` steps, and the metrics on val."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line for line in lines if "val" not in line]
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
    }
