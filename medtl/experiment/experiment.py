"""The experiment: weights -> source stage -> target stage -> evaluation of every arm.

Every arm runs with every seed on every split. Finished work is not repeated: the same command
resumes where it was stopped.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from medtl import config as configs
from medtl import data, files, plugins
from medtl.config import check, is_cross_validated
from medtl.data import cache, schema
from medtl.data.prepared import Tables, resolved_inputs, with_present
from medtl.errors import UserError
from medtl.evaluation import analysis, flow, predictions
from medtl.evaluation.predictions import Predictions
from medtl.examples import Examples, class_counts
from medtl.experiment import (
    batch_fit,
    domains,
    mistakes,
    planned,
    preflight,
    results,
    run_folder,
    selection,
    source_weights,
    splits,
    trust,
)
from medtl.experiment.arm import Arm, Outcome
from medtl.experiment.provenance import versions
from medtl.experiment.setup import Experiment, reported_splits, uses_source
from medtl.experiment.splits import Split
from medtl.experiment.trials import Trial, trials, with_values
from medtl.profiling.trace import Profile
from medtl.training import hosts, parallel
from medtl.training.factory import Components
from medtl.training.objective import DOMAINS

SplitsBySeed = Mapping[int, Sequence[Split]]


def train(
    config: Any, folder: str | Path, *, command: str = "", profile: bool = False
) -> dict[str, Any]:
    """Run or resume an experiment; write `metrics.json`, `predictions.csv` and `report.html`.

    Args:
      config: as `medtl.config.default` makes it.
      folder: the run folder; made where it is absent.
      command: the command that the report shows for reproducing it; empty: this call.
      profile: trace some steps of the first training stage, into `folder/profile`.

    Returns:
      The content of `metrics.json`; {} in all processes but the first.

    Raises:
      UserError: the config, the data, the weights or the folder is at fault, or a loss became NaN.
    """
    return _run(config, Path(folder), training=True, command=command, profile=profile)


def evaluate(config: Any, folder: str | Path, *, command: str = "") -> dict[str, Any]:
    """Evaluate the checkpoints in `folder` again, without training; otherwise as `train`."""
    return _run(config, Path(folder), training=False, command=command)


def _run(
    config: Any, folder: Path, *, training: bool, command: str, profile: bool = False
) -> dict[str, Any]:
    began = time.monotonic()
    check.check(config)
    if training:
        check.check_installed(config)
    run_folder.check(folder, config)
    config = run_folder.resolved(folder, config)
    experiment, splits_by_seed = open_experiment(config, folder, training=training)
    config = run_folder.with_sizes(config, experiment.config)
    with _opened(folder, config):
        if hosts.is_first():
            if training:
                trust.remember(configs.plugin_strings(config))
            if is_cross_validated(config):
                _write_folds(folder, experiment, splits_by_seed[config.seeds[0]])
            if training:
                planned.write(folder, config)
            if profile:
                experiment = dataclasses.replace(experiment, profile=Profile(folder / "profile"))
        command = command or f"medtl.experiment.experiment.train(config, {str(folder)!r})"
        return _run_arms(experiment, splits_by_seed, began, command)


@contextlib.contextmanager
def _opened(folder: Path, config: Any) -> Iterator[None]:
    """Open the run folder in the first process; refuse it in all of them.

    Raises:
      UserError: as `run_folder.opened`, or another process does not see the folder.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if hosts.is_first():
            try:
                stack.enter_context(run_folder.opened(folder, config))
            except UserError as error:
                problem = str(error)
        problem = hosts.agreed(problem)
        if problem is not None:
            raise UserError(problem)
        if not hosts.everywhere(run_folder.appears(folder)):
            raise UserError(
                f"--workdir={folder} is not seen by all {hosts.count()} processes; give a folder "
                "on a file system that their machines share"
            )
        yield


def _write_folds(folder: Path, experiment: Experiment, made: Sequence[Split]) -> None:
    text = io.StringIO()
    rows = splits.fold_rows(experiment.examples["target"], made)
    csv.writer(text, lineterminator="\n").writerows(
        [files.harmless(cell) if isinstance(cell, str) else cell for cell in row] for row in rows
    )
    files.write_text(folder / "folds.csv", text.getvalue())


def open_experiment(
    config: Any,
    folder: Path,
    *,
    training: bool,
    arms: Sequence[str] | None = None,
    settings: Sequence[Trial] | None = None,
    subsets: bool = True,
) -> tuple[Experiment, SplitsBySeed]:
    """Read data and weights, and print a summary of them; write nothing into the folder.

    Args:
      config: a config that was checked.
      folder: the run folder.
      training: False where nothing may be trained.
      arms: which of the config's will run; None: all.
      settings: that will be tried; None: those of nested selection.
      subsets: with the splits of a learning curve, which train on fewer labels.

    Returns:
      The experiment, and each seed's splits of the target.
    """
    parallel.keep_compiled(cache.folder(config.data.cache_dir) / "compiled")
    _check_devices()
    components = Components.create(config)
    if config.objective.source_weights:
        source_weights.plugin(config)
    tuned = trials(config.evaluation.tune, joint=True)
    for trial in (*tuned, *trials(config.sweep.grid, joint=True)):
        if not trial.is_traced:  # before data is read: a plug-in string may be wrong
            Components.create(with_values(config, trial.values))
    examples = load_data(config)
    config, examples, tables = with_columns(config, examples)
    by_seed = {seed: splits.splits_of(config, examples["target"], seed) for seed in config.seeds}
    if not subsets:
        by_seed = {seed: [s for s in made if s.size is None] for seed, made in by_seed.items()}
    for domain in examples.values():
        print("\n".join([_data_line(domain), *(f"Note: {note}" for note in domain.notes)]))
    experiment = Experiment.create(
        config,
        folder,
        components,
        examples,
        training=training,
        train_size=max(splits.largest_train(made) for made in by_seed.values()),
        tables=tables,
    )
    experiment = batch_fit.fixed(experiment, arms or config.arms)
    every_split = [split for made in by_seed.values() for split in made]
    tried = tuned if settings is None else settings
    preflight.check(experiment, arms or config.arms, tried, every_split)
    for note in _selection_notes(experiment, by_seed):
        print(note)
    shown = [_named("arm", arms or config.arms), _named("seed", config.seeds)]
    print("; ".join([*shown, versions()["device"], str(folder)]))
    for line in splits.summary(config, examples["target"], by_seed[config.seeds[0]]):
        print(line)
    if experiment.loaded is not None:
        print(experiment.loaded.report.summary())
    return experiment, by_seed


def _run_arms(
    experiment: Experiment, splits_by_seed: SplitsBySeed, began: float, command: str
) -> dict[str, Any]:
    config, folder = experiment.config, experiment.folder
    made: list[Predictions] = []
    tuned: list[dict[str, Any]] = []
    unexplained: list[tuple[Arm, Outcome]] = []
    for seed in config.seeds:
        for split in splits_by_seed[seed]:
            for name in config.arms:
                arm = Arm(experiment, split, seed, name)
                outcome = arm.outcome()
                arm.keep(outcome)
                if hosts.is_first() and mistakes.are_due(arm, outcome):
                    unexplained.append((arm, outcome))
                if split.path:  # its predictions are on disk
                    _explain(unexplained)
                made += outcome.predictions
                if outcome.tuned:
                    setting = {"seed": seed, "split": split.path, "arm": name}
                    tuned.append({**setting, **outcome.tuned})
    if experiment.profile is not None:
        experiment.profile.close()
    if not hosts.is_first():
        return {}
    classes = experiment.examples["target"].classes
    # Predictions are on disk before anything that can fail begins.
    predictions.write(folder / "predictions.csv", made, classes)
    _explain(unexplained)
    notes = [*_selection_notes(experiment, splits_by_seed), *source_weights.notes(experiment)]
    provenance = _provenance(experiment, command, tuned, notes)
    provenance["seconds"] = _seconds(experiment, began)
    sources = [arm for arm in config.arms if uses_source(config, arm)]
    summary = results.write(folder, made, classes, config, provenance, sources=sources)
    written = "metrics.json, predictions.csv, report.html, report.md"
    print(f"{summary['seconds']} s; {folder}: {written}")
    return summary


def _explain(unexplained: list[tuple[Arm, Outcome]]) -> None:
    while unexplained:
        mistakes.write(*unexplained.pop())


def _seconds(experiment: Experiment, began: float) -> float:
    """Return the seconds of the run; those of the training run if nothing was trained now."""
    now = round(time.monotonic() - began, 1)
    if experiment.cache.trained:
        return now
    return results.provenance_of(experiment.folder).get("seconds", now)


def _provenance(
    experiment: Experiment,
    command: str,
    tuned: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the origin of the numbers, for the report's data card and model card."""
    e, weights = experiment, None
    if loaded := e.loaded:
        summary = loaded.report.summary()
        weights = {"path": loaded.path, "sha256": loaded.sha256, "summary": summary}
    return {
        "name": e.config.name,
        "command": command,
        "config": e.config.to_dict(),
        "versions": versions(),
        "weights": weights,
        "data": {domain: _data_card(x, e.config) for domain, x in e.examples.items()},
        "training": results.training(e.folder, e.config),
        **({"tuned": list(tuned)} if tuned else {}),
        **({"notes": list(notes)} if notes else {}),
    }


def _selection_notes(experiment: Experiment, splits_by_seed: SplitsBySeed) -> list[str]:
    # Folds are the same for all seeds.
    made = splits_by_seed[experiment.config.seeds[0]]
    return selection.notes(experiment.config, experiment.examples, made, experiment.evaluator.extra)


def _data_card(e: Examples, config: Any) -> dict[str, Any]:
    two = not e.multi_label and len(e.classes) == 2
    positive = config.evaluation.positive
    number = e.classes.index(positive) if positive in e.classes else 1
    return {
        "name": e.name,
        "synthetic": e.synthetic,
        "classes": list(e.classes),
        "splits": {s: class_counts(e.label[e.indices(s)], e.classes) for s in e.splits},
        **({"distribution": {s: _spread(e, s) for s in e.splits}} if e.is_quantity else {}),
        "patients": len(set(e.patient)) if e.patient is not None else None,
        "flow": {s: _flow(e, s, positive=number if two else None) for s in e.splits},
        "fingerprint": e.fingerprint,
        "allowed": [
            *(f"weights: {pattern}" for pattern in config.weights.allow),
            *(f"data: {name}" for name in config.data.allow),
            *(f"column: {name}" for name in config.data.allow_columns),
        ],
        "notes": list(e.notes),
    }


def _spread(e: Examples, split: str) -> dict[str, float]:
    """Describe the numbers of a split that are to be predicted."""
    label = e.label[e.indices(split)]
    numbers = {"mean": label.mean(), "sd": label.std(), "min": label.min(), "max": label.max()}
    return {"examples": len(label), **{name: float(value) for name, value in numbers.items()}}


def _flow(e: Examples, split: str, *, positive: int | None) -> dict[str, Any]:
    """Count the examples of a split as `evaluation.flow` does, and those without a label."""
    rows = e.indices(split)
    patient = None if e.patient is None else e.patient[rows]
    counted = flow.count(e.id[rows], e.label[rows], patient, positive=positive)
    return counted | {"unlabelled": len(rows) - counted["examples"]}


def load_data(config: Any) -> dict[str, Examples]:
    """Load the domains that the arms need, checked and decoded; the target is last.

    Raises:
      UserError: the data are at fault, or do not fit the losses.
    """
    c = config.data
    needs_source = any(uses_source(config, arm) for arm in config.arms)
    examples = {
        domain: domains.load(config, domain)
        for domain in DOMAINS
        if domain == "target" or needs_source
    }
    target = examples["target"]
    shared = data.check_domains(
        examples.get("source"),
        target,
        allow=c.allow,
        all_held_out=is_cross_validated(config),
    )
    examples["target"] = dataclasses.replace(target, notes=(*target.notes, *shared))
    if not reported_splits(target) and not is_cross_validated(config):
        raise UserError(
            "config.data.target has neither a val nor a test split, so nothing could be reported"
        )
    if not target.is_quantity:
        analysis.positive_class(config.evaluation.positive, target.classes)
    for domain, e in examples.items():
        _check_label_kind(config, domain, e)
    return examples


def with_columns(
    config: Any, examples: dict[str, Examples]
) -> tuple[Any, dict[str, Examples], Tables | None]:
    """Show the roles of clinical columns, and lay out the inputs that are made of them.

    Returns:
      The config with the inputs that "auto" means, the examples, and the columns.
    """
    inputs = resolved_inputs(config.data.inputs, examples)
    if "auto" in config.data.inputs:
        config = with_values(config, {"data.inputs": inputs})
    if inputs == ("image",) or all(e.columns is None for e in examples.values()):
        return config, examples, None
    tables = Tables.of(examples, config.data)
    noted = {}
    for domain, e in examples.items():
        if e.columns is not None:
            print("\n".join(schema.lines(e.name, e.columns)))
        notes = domains.column_notes(config, domain, e, tables) if tables else ()
        noted[domain] = dataclasses.replace(with_present(e, inputs), notes=(*e.notes, *notes))
    return config, noted, tables


def _check_label_kind(config: Any, domain: str, examples: Examples) -> None:
    """Refuse one of the two cross-entropies where the labels ask for the other."""
    if examples.is_quantity:  # whose losses the check of the config knows
        return
    right = "sigmoid_binary_cross_entropy" if examples.multi_label else "cross_entropy"
    wrong = "cross_entropy" if examples.multi_label else "sigmoid_binary_cross_entropy"
    for name, loss in config.objective.losses.items():
        spec = plugins.parse(loss.loss, key=f"config.objective.losses.{name}.loss")
        if not spec.module and spec.name == wrong:
            kind = "several diagnoses" if examples.multi_label else "one diagnosis"
            raise UserError(
                f"config.objective.losses.{name}.loss is {loss.loss!r}, but {domain} has {kind} an "
                f"example; use {right!r}"
            )


def _check_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion where jaxlib lacks the platform
        platforms = os.environ.get("JAX_PLATFORMS")
        reason = (
            " ".join(str(error).split()) or f"JAX_PLATFORMS is {platforms!r}; is that installed?"
        )
        raise UserError(f"JAX finds no device: {reason}") from None


def _named(word: str, values: Sequence[Any]) -> str:
    return f"{word}{'s' * (len(values) > 1)} {', '.join(map(str, values))}"


def _data_line(e: Examples) -> str:
    parts = []
    for split in e.splits:
        rows = e.indices(split)
        counts = class_counts(e.label[rows], e.classes)
        shown = ", ".join(f"{name} {n}" for name, n in counts.items())
        if e.is_quantity:
            mean, deviation = e.label[rows].mean(), e.label[rows].std()
            shown = f"{e.classes[0]} {mean:.4g} ± {deviation:.3g}"
        parts.append(f"{split} {len(rows)} ({shown})")
    patients = f", {len(set(e.patient))} patients" if e.patient is not None else ""
    synthetic = " (synthetic)" if e.synthetic else ""
    return f"{e.name}{synthetic}: {'; '.join(parts)}{patients}"
