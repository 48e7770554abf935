"""Which λ, learning rate and weight decay: every combination, in every cell and seed, by one compiled program.

It is a loop over the trainer's own step, batches and number of steps, so a point of the grid gives what a run with its values
gives. The data lie on the device once; what differs between seeds and cells is which rows a step gathers. On the features of a
frozen backbone all heads train at once; a backbone that moves trains for a few seeds, or one, at a time (medtl/heads.py). With
`solver="lbfgs"` linear heads are minimised to convergence instead (medtl/linear.py). Points are compared on val; nothing
looks at test.

Refuses images that are read as a stream, of a backbone that moves; and with "lbfgs" all but a frozen backbone.
"""

from __future__ import annotations

import html
import itertools
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medtl import files
from medtl.config import check
from medtl.errors import UserError
from medtl.evaluation import analysis, bootstrap, metrics, to_json
from medtl.evaluation.report import plots
from medtl.experiment import run_folder
from medtl.experiment.experiment import open_run
from medtl.experiment.provenance import versions
from medtl.sweep.program import Grid
from medtl.sweep.trainer import Place, check_images, frozen, minimised, trained

PATHS = {
    "lambda_": "objective.lambda_",
    "learning_rate": "stages.target.learning_rate",
    "weight_decay": "stages.target.weight_decay",
}
_WORDS = {"lambda_": "λ", "learning_rate": "learning rate", "weight_decay": "weight decay"}


def sweep(config: Any, folder: str | Path, *, command: str = "") -> dict[str, Any]:
    """Trains and compares every point of `config.sweep`, and writes `sweep.json` and, of λ, `sweep.html` into `folder`.

    Args:
      config: as `medtl.config.default` describes.
      folder: the work folder; made where it is absent.
      command: the command line that asked for it, from which the one to launch is made; empty: none is made.

    Returns:
      What `sweep.json` holds.

    Raises:
      UserError: the config, the data, the weights or the folder is at fault, or no point has a score.
    """
    began, folder = time.monotonic(), Path(folder)
    check.check(config)
    check.check_sweep(config)
    run_folder.check(folder, config)
    arm, grid = check.swept_arm(config), grid_of(config)
    run, every = open_run(config, folder, training=True, arms=(arm,), sized=False)
    alone = frozen(run, arm)
    if (
        config.sweep.solver == "lbfgs" and not alone
    ):  # the config was checked: what is left is in the weight file
        raise UserError(
            "config.sweep.solver is 'lbfgs', which needs a backbone that is loaded whole; config.weights.allow leaves a part of it random"
        )
    if not alone:
        check_images(run, arm)
    # A minimum does not depend on where the search began, so other seeds would give the same heads.
    seeds = config.seeds if config.sweep.solver == "train" else config.seeds[:1]
    places = [(seed, run.at(cell)) for seed in seeds for cell in every[seed]]
    for _, at in places:
        if "val" not in at.examples["target"].splits:
            raise UserError(
                f"--mode=sweep compares on val, and {at.cell.path or 'config.data.target'} has no val part"
            )
    run_folder.prepare(folder, config)
    with run_folder.locked(folder):
        found, training = (trained if config.sweep.solver == "train" else minimised)(
            places, arm, grid
        )
        result = _compared(config, arm, grid, places, found) | {
            "command": None,
            "trained": "heads" if alone else "models",
        }
        if command:
            result["command"] = launch_command(command, result["chosen"], folder)
        result |= {
            "seconds": {"training": round(training, 1), "all": round(time.monotonic() - began, 1)}
        }
        result |= {"config": config.to_dict(), "versions": versions()}
        files.write_text(folder / run_folder.SWEEP, to_json(result))
        if result["curve"]:
            files.write_text(folder / "sweep.html", _page(result))
    print(f"\n{table(result)}")
    return result


def grid_of(config: Any) -> Grid:
    """Every combination; λ from small to large and slowest, so that ties go to the smaller one."""
    asked = {name: sorted(map(float, config.sweep[name])) for name in PATHS if config.sweep[name]}
    values = np.array(list(itertools.product(*asked.values())))
    return {name: values[:, i] for i, name in enumerate(asked)}


def _compared(
    config: Any, arm: str, grid: Grid, places: Sequence[Place], found: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Every point's score on val with its interval, and the best."""
    metric, target = config.checkpoint.metric, places[0][1].examples["target"]
    resampled = _resampled(config, places, found)
    points: list[dict[str, Any]] = []
    for h in range(len(found[0])):
        point: dict[str, Any] = {name: float(values[h]) for name, values in grid.items()}
        if str(h) in resampled.value:
            m = resampled.names.index(metric)
            low, high = resampled.interval(str(h))
            of_cells = resampled.by_cell[str(h)][:, m]
            told = of_cells[~np.isnan(of_cells)]
            point |= {
                "value": float(resampled.value[str(h)][m]),
                "low": float(low[m]),
                "high": float(high[m]),
            }
            point["std"] = float(np.std(told, ddof=1)) if len(told) > 1 else None
            point["by_cell"] = of_cells.tolist()
            if reason := resampled.undefined[str(h)].get(metric):
                point["undefined"] = reason
        else:
            point |= {
                "value": math.nan,
                "low": math.nan,
                "high": math.nan,
                "std": None,
                "by_cell": [],
            }
            point["undefined"] = "it diverged: its loss became NaN or infinite"
        points.append(point)
    best = _best(points, metric)
    seeds = sorted({seed for seed, _ in places})
    return {
        "arm": arm,
        "solver": config.sweep.solver,
        "metric": metric,
        "split": "val",
        "design": {
            "cells": len(places) // len(seeds),
            "seeds": seeds,
            "interval": f"{100 * resampled.level:g} % interval, patient bootstrap, {resampled.resamples} resamples of {resampled.patients} patients",
            "resamples": resampled.resamples,
            "patients": resampled.patients if target.patient is not None else None,
        },
        "points": points,
        "curve": _curve(points, metric),
        "best": best,
        "chosen": {PATHS[name]: points[best][name] for name in grid},
        "notes": _notes(config, grid, points, best),
    }


def _resampled(
    config: Any, places: Sequence[Place], found: Sequence[np.ndarray]
) -> bootstrap.Resampled:
    """The bootstrap of all points that did not diverge, by the place's number in the grid."""
    target = places[0][1].examples["target"]
    known = target.patient if target.patient is not None else np.full(len(target), "")
    patient = np.unique([p or f"\0{i}" for i, p in enumerate(known)], return_inverse=True)[1]
    arms: dict[str, list[bootstrap.Cell]] = {}
    for h in range(len(found[0])):
        if all(np.all(np.isfinite(probability[h])) for probability in found):
            val = [at.examples["target"].indices("val") for _, at in places]
            arms[str(h)] = [
                bootstrap.Cell(target.label[rows], of_place[h], patient[rows])
                for rows, of_place in zip(val, found, strict=True)
            ]
    if not arms:
        raise UserError("every point of the sweep diverged; try a lower learning_rate")
    options = bootstrap.Options(
        positive=analysis.positive_class(config.evaluation.positive, target.classes),
        resamples=config.evaluation.resamples,
    )
    return bootstrap.resample(arms, classes=target.classes, options=options)


def _best(points: Sequence[Mapping[str, Any]], metric: str) -> int:
    """The point of the best score; of equals the first, which has the smaller λ."""
    told = [i for i, point in enumerate(points) if not math.isnan(point["value"])]
    if not told:
        raise UserError(
            f"no point of the sweep has a score: {metric} is undefined, {points[0].get('undefined')}"
        )
    return max(told, key=lambda i: (metrics.rank(metric, points[i]["value"]), -i))


def _curve(points: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Of each λ the best of its points; empty where λ is not swept."""
    curve = []
    for value in sorted({point["lambda_"] for point in points if "lambda_" in point}):
        own = [point for point in points if point["lambda_"] == value]
        told = [point for point in own if not math.isnan(point["value"])]
        curve.append(
            {
                k: v
                for k, v in (told[_best(told, metric)] if told else own[0]).items()
                if k != "by_cell"
            }
        )
    return curve


def _notes(config: Any, grid: Grid, points: Sequence[Mapping[str, Any]], best: int) -> list[str]:
    notes = [
        f"The best of {len(points)} points on val: its own score flatters. On test it was not looked at."
    ]
    if len(points) == 1:
        notes = ["On test it was not looked at."]
    for name, values in grid.items():
        chosen = points[best][name]
        if len(set(values)) > 1 and chosen in (values.min(), values.max()) and chosen > 0:
            notes.append(
                f"{_WORDS[name]} {chosen:g} is at the end of its grid: the best may lie beyond."
            )
    if config.sweep.solver == "lbfgs":
        notes.append(
            "Heads are at the minimum of the objective + weight_decay / 2 |W|², where the seed does not matter. The trainer stops "
            "after its epochs and its weight decay is decoupled, so its scores differ; sweep.solver='train' has those."
        )
    return notes


def launch_command(command: str, chosen: Mapping[str, float], folder: Path) -> str:
    """The command line of a sweep, turned into that of a run with the chosen values, beside the sweep's folder."""
    kept, skip = [], False
    for word in shlex.split(command):
        name, equals, _ = word.partition("=")
        name = "--" + name.lstrip("-") if word.startswith("-") else ""
        if skip and not name:
            skip = False
            continue
        field = name.removeprefix("--config.")
        dropped = name in ("--mode", "--workdir") or field.startswith("sweep.") or field in chosen
        skip = dropped and not equals
        if not dropped:
            kept.append(word)
    values = [f"--config.{path}={value!r}" for path, value in chosen.items()]
    return shlex.join([*kept, f"--workdir={folder}_chosen", *values])


def table(result: Mapping[str, Any]) -> str:
    """The result as plain text: a row a point, the best one marked, and what to launch."""
    names = [name for name in PATHS if name in result["points"][0]]
    rows = [["", *names, result["metric"], "95 % interval", "std"]]
    for i, point in enumerate(result["points"]):
        value = [f"{point['value']:.4f}", f"{point['low']:.4f} .. {point['high']:.4f}"]
        if math.isnan(point["value"]):
            value = ["undefined", point["undefined"]]
        std = "" if point["std"] is None else f"{point['std']:.4f}"
        rows.append(
            ["*" if i == result["best"] else "", *(f"{point[n]:g}" for n in names), *value, std]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    design = result["design"]
    over = " and ".join(
        _count(n, word) for n, word in ((design["cells"], "cell"), (len(design["seeds"]), "seed"))
    )
    where = f"{result['arm']} on val: mean over {over}; {design['interval']}"
    number = len(result["points"]) * design["cells"] * len(design["seeds"])
    where += f"; {number} {result['trained']} in {result['seconds']['training']:.0f} s"
    said = [where, "", *lines, "", *result["notes"]]
    if result["command"]:
        said += ["", result["command"]]
    return "\n".join(said)


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def _page(result: Mapping[str, Any]) -> str:
    """The curve over λ, with the table below it."""
    curve, metric = result["curve"], result["metric"]
    ticks = [(float(i), f"{point['lambda_']:g}") for i, point in enumerate(curve)]
    series = plots.Series(
        [place for place, _ in ticks],
        *([point["value"] for point in curve], 0),
        low=[point["low"] for point in curve],
        high=[point["high"] for point in curve],
        bars=True,
        marker=True,
    )
    said = "; ".join(
        f"λ {p['lambda_']:g}: {p['value']:.3f} ({p['low']:.3f} to {p['high']:.3f})" for p in curve
    )
    figure = plots.lines(
        [series],
        x=plots.Axis("λ", ticks=ticks),
        y=plots.Axis(metric),
        alt=f"{metric} on val by λ. {said}",
        prefix="lambda",
    )
    title = html.escape(f"{result['config']['name']}: {metric} on val by λ")
    style = "body{font:15px system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}svg{max-width:40em}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>\n'
        f"<body><h1>{title}</h1>\n{figure}\n<pre>{html.escape(table(result))}</pre></body></html>\n"
    )
