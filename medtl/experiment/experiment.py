"""The story: weights -> source stage -> target stage -> evaluation, for each cell, seed and arm; then the comparison of the arms.

What is done is not done again: the same command resumes where it was stopped.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medtl import data, files
from medtl.config import check
from medtl.data import cache
from medtl.errors import UserError
from medtl.evaluation import analysis, predictions
from medtl.evaluation.predictions import Predictions
from medtl.examples import Examples, class_counts
from medtl.experiment import mistakes, results, run_folder, splits
from medtl.experiment.arm import Run, reported, uses_source
from medtl.experiment.provenance import versions
from medtl.profiling.trace import Profile
from medtl.training import factory, parallel
from medtl.training.step import DOMAINS


def train(
    config: Any, folder: str | Path, *, command: str = "", profile: bool = False
) -> dict[str, Any]:
    """Runs or resumes an experiment and writes `metrics.json`, `predictions.csv` and `report.html` into `folder`.

    Args:
      config: as `medtl.config.default` describes.
      folder: the work folder; made where it is absent.
      command: what the report says reproduces it; empty: this call.
      profile: trace some steps of the first stage that trains, into `folder/profile`.

    Returns:
      What `metrics.json` holds.

    Raises:
      UserError: the config, the data, the weights or the folder is at fault, or a loss became NaN.
    """
    return _run(config, Path(folder), training=True, command=command, profile=profile)


def evaluate(config: Any, folder: str | Path, *, command: str = "") -> dict[str, Any]:
    """Evaluates the checkpoints in `folder` again, without training; otherwise as `train`."""
    return _run(config, Path(folder), training=False, command=command)


def _run(
    config: Any, folder: Path, *, training: bool, command: str, profile: bool = False
) -> dict[str, Any]:
    began = time.monotonic()
    check.check(config)
    run_folder.check(folder, config)
    run, every = open_run(config, folder, training=training, arms=config.arms)
    run_folder.prepare(folder, config)
    with run_folder.locked(folder):
        if config.evaluation.folds:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(
                splits.table(run.examples["target"], every[config.seeds[0]])
            )
            files.write_text(folder / "folds.csv", text.getvalue())
        if profile:
            run = dataclasses.replace(run, profile=Profile(folder / "profile"))
        return _run_arms(
            run, every, began, command or f"medtl.experiment.train(config, {str(folder)!r})"
        )


def open_run(
    config: Any, folder: Path, *, training: bool, arms: Sequence[str], sized: bool = True
) -> tuple[Run, dict[int, list[splits.Cell]]]:
    """Reads data and weights and says what there is; writes nothing into the folder.

    Args:
      config: one that was checked.
      folder: the work folder.
      training: False where nothing may be trained.
      arms: which of the config's will be run.
      sized: with the cells of a learning curve, which train on fewer labels.

    Returns:
      The run, and each seed's cells.
    """
    parallel.keep_compiled(cache.place(config.data.cache_dir) / "compiled")
    _check_devices()
    factory.check(config)
    examples = load_data(config)
    every = {seed: splits.cells(config, examples["target"], seed) for seed in config.seeds}
    if not sized:
        every = {
            seed: [cell for cell in found if cell.size is None] for seed, found in every.items()
        }
    for domain in examples.values():
        print(_data_line(domain))
    largest = max(splits.largest(found) for found in every.values())
    run = Run.create(config, folder, examples, training=training, train_size=largest)
    named = [
        f"{word}{'s' * (len(of) > 1)} {', '.join(map(str, of))}"
        for word, of in (("arm", arms), ("seed", config.seeds))
    ]
    print("; ".join([*named, versions()["device"], str(folder)]))
    if config.evaluation.folds:
        sizes = ", ".join(
            f"{np.sum(every[config.seeds[0]][0].split == s)} {s}" for s in ("train", "val", "test")
        )
        print(
            f"{config.evaluation.folds} folds x {config.evaluation.repeats} repeats; in the first {sizes} examples"
        )
    if run.loaded is not None:
        print(run.loaded.report.summary())
    return run, every


def _run_arms(
    run: Run, every: Mapping[int, Sequence[splits.Cell]], began: float, command: str
) -> dict[str, Any]:
    config, folder, target = run.config, run.folder, run.examples["target"]
    said: list[Predictions] = []
    tuned = []
    for seed in config.seeds:
        for cell in every[seed]:
            at = run.at(cell)
            for arm in config.arms:
                outcome = at.outcome(seed, arm)
                mistakes.mistakes(at, seed, arm, outcome)
                at.keep(seed, arm, outcome)
                said += outcome.said
                if outcome.tuned:
                    tuned.append({"seed": seed, "cell": cell.path, "arm": arm, **outcome.tuned})
    if run.profile is not None:
        run.profile.close()
    predictions.write(folder / "predictions.csv", said, target.classes)
    provenance = _provenance(run, command, tuned) | {"seconds": _seconds(run, began)}
    sources = [arm for arm in config.arms if uses_source(config, arm)]
    summary = results.write(folder, said, target.classes, config, provenance, sources=sources)
    if config.checkpoint.select == "best" and summary["evaluation"]["split"] == "val":
        print(
            "The checkpoints were chosen on val, which is also what is reported, so it flatters; a test split would not."
        )
    print(
        f"{summary['seconds']} s; {folder}: metrics.json, predictions.csv, report.html, report.md"
    )
    return summary


def _seconds(run: Run, began: float) -> float:
    """How long the run took; of one that was done before, and only evaluated again, what it took then."""
    metrics_file = run.folder / "metrics.json"
    if not run.trained and metrics_file.exists():
        return json.loads(metrics_file.read_text())["seconds"]
    return round(time.monotonic() - began, 1)


def _provenance(run: Run, command: str, tuned: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the numbers come from: what the report's data card and model card show."""
    loaded = run.loaded
    weights = (
        {"path": loaded.path, "sha256": loaded.sha256, "summary": loaded.report.summary()}
        if loaded
        else None
    )
    return {
        "name": run.config.name,
        "command": command,
        "config": run.config.to_dict(),
        "versions": versions(),
        "weights": weights,
        "data": {domain: _data_card(e, run.config) for domain, e in run.examples.items()},
        "training": results.training(run.folder, run.config),
        **({"tuned": list(tuned)} if tuned else {}),
    }


def _data_card(e: Examples, config: Any) -> dict[str, Any]:
    return {
        "name": e.name,
        "synthetic": e.synthetic,
        "classes": list(e.classes),
        "splits": {split: class_counts(e.label[e.indices(split)], e.classes) for split in e.splits},
        "patients": len(set(e.patient)) if e.patient is not None else None,
        "fingerprint": e.fingerprint,
        "allowed": [f"weights: {pattern}" for pattern in config.weights.allow],
    }


def load_data(config: Any) -> dict[str, Examples]:
    """The domains that the arms need, checked and decoded; the target always, last."""
    c = config.data
    needed = [
        d for d in DOMAINS if d == "target" or any(uses_source(config, arm) for arm in config.arms)
    ]
    found = {
        domain: data.load(
            c[domain],
            image_size=c.image_size,
            channels=c.channels,
            resize=c.resize,
            cache=c.cache,
            cache_dir=c.cache_dir,
            key=f"config.data.{domain}",
        )
        for domain in needed
    }
    data.check_domains(
        found.get("source"), found["target"], all_held_out=config.evaluation.folds > 0
    )
    if not reported(found["target"]) and not config.evaluation.folds:
        raise UserError(
            "config.data.target has neither a val nor a test split, so nothing could be reported"
        )
    analysis.positive_class(config.evaluation.positive, found["target"].classes)
    for domain, e in found.items():
        for name, term in config.objective.losses.items():
            if (
                e.multi_label != ("sigmoid" in term.loss)
                and term.loss.split("(")[0] in _LABEL_KINDS
            ):
                kind = (
                    "several diagnoses an example" if e.multi_label else "one diagnosis an example"
                )
                right = "sigmoid_binary_cross_entropy" if e.multi_label else "cross_entropy"
                raise UserError(
                    f"config.objective.losses.{name}.loss is {term.loss!r}, but {domain} has {kind}; use {right!r}"
                )
    return found


_LABEL_KINDS = ("cross_entropy", "sigmoid_binary_cross_entropy")


def _check_devices() -> None:
    try:
        jax.devices()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # an assertion where JAX_PLATFORMS names what jaxlib lacks
        said = (
            " ".join(str(error).split())
            or f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS')!r}; is that installed?"
        )
        raise UserError(f"JAX finds no device: {said}") from None


def _data_line(e: Examples) -> str:
    parts = []
    for split in e.splits:
        rows = e.indices(split)
        shown = ", ".join(
            f"{name} {n}" for name, n in class_counts(e.label[rows], e.classes).items()
        )
        parts.append(f"{split} {len(rows)} ({shown})")
    patients = f", {len(set(e.patient))} patients" if e.patient is not None else ""
    return f"{e.name}{' (synthetic)' if e.synthetic else ''}: {'; '.join(parts)}{patients}"
