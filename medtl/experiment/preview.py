"""`--mode=check`: what a config will train, before anything is trained.

Resolves every plug-in, loads data and weights, compiles the step of each training stage and runs it
on a state that is thrown away, to measure memory and time.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medtl import config as configs
from medtl.config import check
from medtl.evaluation.wording import text_table
from medtl.experiment import batch_fit
from medtl.experiment.arm import Arm
from medtl.experiment.experiment import open_experiment
from medtl.experiment.setup import Experiment
from medtl.experiment.stage import Stage
from medtl.training import memory
from medtl.training.loop import CHUNK
from medtl.training.progress import Progress, duration


def preview(config: Any) -> list[dict[str, Any]]:
    """Print and return shapes, parameter counts, steps, and estimates of memory and time.

    Args:
      config: as `medtl.config.default` makes it.

    Returns:
      For each training stage a dict with `arm`, `stage`, `steps`, `trained` and `parameters`
      (numbers of parameters), `terms`, `memory` (bytes of a step on a device; None where XLA does
      not say) and `seconds` (of training alone).

    Raises:
      UserError: the config cannot run.
    """
    check.check(config)
    with tempfile.TemporaryDirectory() as folder:
        experiment, by_seed = open_experiment(config, Path(folder), training=False)
        _print_inputs(experiment)
        for writer in experiment.components.make_loggers(Path(folder), config):
            writer.close()
        split, seed = by_seed[config.seeds[0]][0], config.seeds[0]
        stages = []
        for name in config.arms:
            arm = Arm(experiment, split, seed, name)
            if arm.section.estimator:
                print(f"arm {name}: {arm.section.estimator}")
                continue
            weights = arm.initial()
            for stage_name in experiment.stages(name):
                stage = Stage(arm, stage_name, weights)
                stages.append(_facts(stage))
                weights = stage.hand_on(weights.variables)
    rows = [["arm", "stage", "steps", "trained", "of", "terms", "memory", "time"]]
    for s in stages:
        needs = "unknown" if s["memory"] is None else memory.shown(s["memory"])
        numbers = [f"{s['steps']}", f"{s['trained']:,}", f"{s['parameters']:,}"]
        terms = ", ".join(s["terms"]) or "-"
        rows.append([s["arm"], s["stage"], *numbers, terms, needs, duration(s["seconds"])])
    print("\n".join(text_table(rows, left=2)))
    runs = len(config.seeds) * len(by_seed[config.seeds[0]])
    total = runs * sum(s["seconds"] for s in stages)
    print(
        f"About {duration(total)} of training for {runs} "
        f"run{'s' * (runs > 1)} of each arm, without compiling, evaluation and nested selection. "
        "Nothing was trained."
    )
    return stages


def _print_inputs(experiment: Experiment) -> None:
    for key, text in configs.plugin_strings(experiment.config).items():
        if ":" in text:
            print(f"{key}: {text}")
    for name, spec in experiment.inputs.items():
        shape = ", ".join(map(str, spec.shape[1:]))
        print(f"input {name}: {spec.dtype}[B, {shape}]")
    print(f"features: float32[B, {experiment.feature_width}]")
    for domain, head in experiment.model.head_of.items():
        n = len(experiment.examples[domain].classes)
        print(f"head of {domain}: {head}, logits float32[B, {n}]")


def _facts(stage: Stage) -> dict[str, Any]:
    """Return the facts about a training stage; its step runs a few times, on a state of its own."""
    sizes = {path: np.size(x) for path, x in _flat(stage.state().params).items()}
    step = stage.compiled.step
    return {
        "arm": stage.arm.name,
        "stage": stage.name,
        "steps": stage.steps,
        "parameters": sum(sizes.values()),
        "trained": sum(sizes[path] for path in step.trained),
        "terms": [term.name for term in step.objective.terms],
        "memory": batch_fit.needed(stage),
        "seconds": _seconds_per_step(stage) * stage.steps,
    }


def _seconds_per_step(stage: Stage) -> float:
    """Run a few steps of a copy of the state, and time those after the first, which compiles."""
    feed = stage.feed(0, Progress("", 0, stream=io.StringIO()))
    try:
        state = feed(stage.arm.experiment.parallel.place(stage.state()), 1).state
        jax.block_until_ready(state)
        began, steps = time.monotonic(), 0
        while steps < 3:
            taken = feed(state, CHUNK)
            state, steps = taken.state, steps + taken.steps
        jax.block_until_ready(state)
        return (time.monotonic() - began) / steps
    finally:
        feed.close()


def _flat(params: Any) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}
