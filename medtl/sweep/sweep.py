"""Which values of a config's fields are best on val: every combination, for every seed and split.

One compiled program trains all heads on the features of a frozen backbone; λ, learning rate and
weight decay are its arguments. Other settings are trained one after the other. With
`solver="lbfgs"` linear heads are minimized to convergence instead. Settings are compared on val;
test is not used.
"""

from __future__ import annotations

import html
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medtl import config as configs
from medtl import files
from medtl.config import check
from medtl.errors import UserError
from medtl.evaluation import analysis, bootstrap, metrics, to_json
from medtl.evaluation.intervals import number_patients
from medtl.evaluation.report import plots
from medtl.evaluation.wording import text_table
from medtl.experiment import run_folder, trust
from medtl.experiment.arm import Arm
from medtl.experiment.experiment import open_experiment
from medtl.experiment.provenance import versions
from medtl.experiment.trials import Trial, combinations
from medtl.sweep import trainer

LAMBDA = "objective.lambda_"
_WORDS = {
    LAMBDA: "λ",
    "stages.target.learning_rate": "learning rate",
    "stages.target.weight_decay": "weight decay",
}


def sweep(config: Any, folder: str | Path, *, command: str = "") -> dict[str, Any]:
    """Train and compare every setting of `config.sweep.grid`; write `sweep.json`.

    With λ among the fields it also writes `sweep.html`, the curve over λ.

    Args:
      config: as `medtl.config.default` makes it.
      folder: the run folder; made where it is absent.
      command: the command line of the sweep, from which that of the run with the best setting is
        made; empty: none is made.

    Returns:
      The content of `sweep.json`.

    Raises:
      UserError: the config, the data, the weights or the folder is at fault, or no setting has a
        score.
    """
    began, folder = time.monotonic(), Path(folder)
    check.check(config)
    check.check_sweep(config)
    run_folder.check(folder, config)
    config = run_folder.resolved(folder, config)
    name, trials = check.swept_arm(config), settings(config)
    experiment, by_seed = open_experiment(
        config, folder, training=True, arms=(name,), settings=trials, subsets=False
    )
    config = run_folder.with_sizes(config, experiment.config)
    # A minimum does not depend on where the search began: other seeds would give the same heads.
    uses_seeds = config.sweep.solver == "train"
    seeds = config.seeds if uses_seeds else config.seeds[:1]
    arms = [Arm(experiment, split, seed, name) for seed in seeds for split in by_seed[seed]]
    heads_alone = trainer.trains_heads_alone(arms[0])
    if not uses_seeds and not heads_alone:  # the config was checked: the weight file is the reason
        raise UserError(
            "config.sweep.solver is 'lbfgs', which needs a backbone that is loaded in full; "
            "config.weights.allow leaves a part of it random"
        )
    for arm in arms:
        if "val" not in arm.examples["target"].splits:
            where = arm.split.path or "config.data.target"
            raise UserError(f"--mode=sweep compares on val, and {where} has no val part")
    with run_folder.opened(folder, config):
        trust.remember(configs.plugin_strings(config))
        trained = (trainer.train if uses_seeds else trainer.minimize)(arms, trials)
        result = _compared(arms, trials, trained.probabilities)
        result["trained"] = "heads" if heads_alone else "models"
        result["command"] = launch_command(command, result["chosen"], folder) if command else None
        seconds = {"training": trained.seconds, "all": time.monotonic() - began}
        result["seconds"] = {k: round(v, 1) for k, v in seconds.items()}
        result |= {"config": config.to_dict(), "versions": versions()}
        files.write_text(folder / run_folder.SWEEP, to_json(result))
        if result["curve"]:
            files.write_text(folder / "sweep.html", _page(result))
    print(f"\n{table(result)}")
    return result


def settings(config: Any) -> list[Trial]:
    """Return every combination; λ rises slowest, so that ties go to the smaller one."""
    grid = configs.paths(config.sweep.grid)
    grid = {path: grid[path] for path in sorted(grid, key=lambda path: path != LAMBDA)}
    for path, values in grid.items():
        if all(type(v) in (int, float) for v in values):
            grid[path] = tuple(sorted(values))
    return combinations(grid)


def _compared(
    arms: Sequence[Arm], trials: Sequence[Trial], probabilities: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Return every setting's score on val with its interval, and the best."""
    config, target = arms[0].config, arms[0].examples["target"]
    ranked = _criterion(arms)
    metric = ranked.metric
    resampled = _resampled(arms, probabilities, present_only=ranked.present_only)
    points = [
        {**trial.values, **_score(resampled, str(h), metric)} for h, trial in enumerate(trials)
    ]
    best = _best(points, metric)
    seeds = sorted({arm.seed for arm in arms})
    return {
        "arm": arms[0].name,
        "solver": config.sweep.solver,
        "metric": metric,
        "split": "val",
        "fields": list(trials[0].values),
        "design": {
            "splits": len(arms) // len(seeds),
            "seeds": seeds,
            "interval": (
                f"{100 * resampled.level:g} % interval, patient bootstrap, "
                f"{resampled.resamples} resamples of {resampled.patients} patients"
            ),
            "resamples": resampled.resamples,
            "patients": resampled.patients if target.patient is not None else None,
        },
        "points": points,
        "curve": _curve(points, metric),
        "best": best,
        "chosen": dict(trials[best].values),
        "notes": [
            *_notes(config, points, best, list(trials[0].values)),
            *([f"Val has {ranked.note}."] if ranked.note else []),
        ],
    }


def _score(resampled: bootstrap.Resampled, name: str, metric: str) -> dict[str, Any]:
    if name not in resampled.value:
        undefined = "it diverged: its loss became NaN or infinite"
        nan = dict.fromkeys(("value", "low", "high"), math.nan)
        return {**nan, "std": None, "by_split": [], "undefined": undefined}
    m = resampled.names.index(metric)
    low, high = resampled.interval(name)
    by_split = resampled.by_split[name][:, m]
    defined = by_split[~np.isnan(by_split)]
    score = {
        "value": float(resampled.value[name][m]),
        "low": float(low[m]),
        "high": float(high[m]),
        "std": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "by_split": by_split.tolist(),
    }
    reason = resampled.undefined[name].get(metric)
    return score | ({"undefined": reason} if reason else {})


def _criterion(arms: Sequence[Arm]) -> metrics.Criterion:
    """Return what ranks the settings: the metric, or what replaces it on the vals of all splits."""
    evaluator = arms[0].experiment.evaluator
    targets = [arm.examples["target"] for arm in arms]
    criteria = [evaluator.criterion(e, e.indices("val")) for e in targets]
    # One criterion for all splits, since their mean is compared; the loss is the most general.
    return max(criteria, key=lambda c: (bool(c.note), not c.present_only))


def _resampled(
    arms: Sequence[Arm], probabilities: Sequence[np.ndarray], *, present_only: bool
) -> bootstrap.Resampled:
    """Return the bootstrap of all settings that did not diverge, by their number."""
    config, target = arms[0].config, arms[0].examples["target"]
    names = target.patient if target.patient is not None else np.full(len(target), "")
    _, [patient] = number_patients([names])
    val = [arm.examples["target"].indices("val") for arm in arms]
    sets: dict[str, list[metrics.EvaluationSet]] = {}
    for h in range(len(probabilities[0])):
        if all(np.all(np.isfinite(of_run[h])) for of_run in probabilities):
            sets[str(h)] = [
                metrics.EvaluationSet(target.label[rows], of_run[h], patient[rows])
                for rows, of_run in zip(val, probabilities, strict=True)
            ]
    if not sets:
        raise UserError("every setting of the sweep diverged; try a lower learning_rate")
    options = metrics.Options(
        positive=analysis.positive_class(config.evaluation.positive, target.classes),
        resamples=config.evaluation.resamples,
        present_only=present_only,
        extra=arms[0].experiment.evaluator.extra,
    )
    return bootstrap.resample(sets, classes=target.classes, options=options)


def _best(points: Sequence[Mapping[str, Any]], metric: str) -> int:
    """Return the point with the best score; among equals the first, which has the smaller λ."""
    defined = [i for i, point in enumerate(points) if not math.isnan(point["value"])]
    if not defined:
        reason = points[0].get("undefined")
        raise UserError(f"no setting of the sweep has a score: {metric} is undefined, {reason}")
    return max(defined, key=lambda i: (metrics.rank(metric, points[i]["value"]), -i))


def _curve(points: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return for each λ the best of its points; nothing where λ is not swept."""
    curve = []
    for value in sorted({point[LAMBDA] for point in points if LAMBDA in point}):
        same = [point for point in points if point[LAMBDA] == value]
        defined = [point for point in same if not math.isnan(point["value"])]
        best = defined[_best(defined, metric)] if defined else same[0]
        curve.append({k: v for k, v in best.items() if k != "by_split"})
    return curve


def _notes(
    config: Any, points: Sequence[Mapping[str, Any]], best: int, fields: Sequence[str]
) -> list[str]:
    notes = ["The test split was not used."]
    if len(points) > 1:
        notes = [
            f"The best score is optimistic (best of {len(points)} on val). The test split was not "
            "used."
        ]
    for path in fields:
        values = {point[path] for point in points}
        chosen = points[best][path]
        is_number = all(isinstance(v, int | float) for v in values)
        if is_number and len(values) > 1 and chosen in (min(values), max(values)) and chosen > 0:
            name = _WORDS.get(path, path)
            notes.append(f"{name} {chosen:g} is at the end of its grid: the best may lie beyond.")
    if config.sweep.solver == "lbfgs":
        notes.append(
            "Heads are at the minimum of the objective + weight_decay / 2 |W|², where the seed "
            "does not matter. The trainer stops after its epochs and its weight decay is "
            "decoupled, so its scores differ; sweep.solver='train' gives those."
        )
    return notes


def launch_command(command: str, chosen: Mapping[str, Any], folder: Path) -> str:
    """Turn the command line of a sweep into that of a run with the chosen values.

    The run gets a folder beside the sweep's.

    >>> launch_command("launch.py --mode=sweep --workdir=runs/s", {"seeds": 1}, Path("runs/s"))
    'launch.py --workdir=runs/s_chosen --config.seeds=1'
    """
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
    """Return the result as text: a row for each setting, the best marked, and the next command."""
    fields = result["fields"]
    rows = [["", *fields, result["metric"], "95 % interval", "std"]]
    for i, point in enumerate(result["points"]):
        value = [f"{point['value']:.4f}", f"{point['low']:.4f} .. {point['high']:.4f}"]
        if math.isnan(point["value"]):
            value = ["undefined", point["undefined"]]
        std = "" if point["std"] is None else f"{point['std']:.4f}"
        mark = "*" if i == result["best"] else ""
        rows.append([mark, *(_shown(point[path]) for path in fields), *value, std])
    design = result["design"]
    splits, seeds = design["splits"], len(design["seeds"])
    number = len(result["points"]) * splits * seeds
    where = (
        f"{result['arm']} on val: mean over {_count(splits, 'split')} and {_count(seeds, 'seed')}; "
        f"{design['interval']}; {number} {result['trained']} in "
        f"{result['seconds']['training']:.0f} s"
    )
    command = ["", result["command"]] if result["command"] else []
    return "\n".join([where, "", *text_table(rows, left=0), "", *result["notes"], *command])


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def _page(result: Mapping[str, Any]) -> str:
    """Return the curve over λ, with the table below it, as HTML."""
    curve, metric = result["curve"], result["metric"]
    ticks = [(float(i), f"{point[LAMBDA]:g}") for i, point in enumerate(curve)]
    series = plots.Series(
        [position for position, _ in ticks],
        *([point["value"] for point in curve], 0),
        low=[point["low"] for point in curve],
        high=[point["high"] for point in curve],
        bars=True,
        marker=True,
    )
    values = "; ".join(
        f"λ {p[LAMBDA]:g}: {p['value']:.3f} ({p['low']:.3f} to {p['high']:.3f})" for p in curve
    )
    figure = plots.lines(
        [series],
        x=plots.Axis("λ", ticks=ticks),
        y=plots.Axis(metric),
        alt=f"{metric} on val by λ. {values}",
        prefix="lambda",
    )
    title = html.escape(f"{result['config']['name']}: {metric} on val by λ")
    style = (
        "body{font:15px system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "svg{max-width:40em}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{style}</style></head>\n"
        f"<body><h1>{title}</h1>\n{figure}\n<pre>{html.escape(table(result))}</pre></body></html>\n"
    )
