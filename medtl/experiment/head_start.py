"""The head that a training stage starts with: the minimum of a linear classifier (LP-FT).

Kumar et al. 2022, arXiv:2202.10054: a head at its minimum keeps fine-tuning from distorting the
pretrained features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from medtl import plugins
from medtl.training import own_head, probe

if TYPE_CHECKING:
    from medtl.experiment.stage import Stage, Weights


def is_left_out(start: Weights) -> bool:
    """Return whether a stage keeps its random head, as its encoders have random weights."""
    return start.is_random and bool(jax.tree.leaves(start.variables["params"].get("encoders")))


def variables(stage: Stage) -> Any:
    """Return the stage's variables with the head of `head_start`; without it as they are.

    Random encoders keep their random head, as their features say nothing; the encoder `linear` has
    no parameters, and its model starts at the minimum.

    Args:
      stage: the training stage.

    Raises:
      UserError: the classifier cannot be fitted, or is not linear.
    """
    given, text = stage.start.variables, stage.section.head_start
    if not text or is_left_out(stage.start):
        return given
    e, examples = stage.arm.experiment, stage.arm.examples[stage.name]
    key, rows = f"config.stages.{stage.name}.head_start", examples.indices("train")
    patient = examples.patient
    model = own_head.made(stage.arm.config, stage.name)
    x = e.evaluator.features(
        e.parallel.place(given),
        stage.name,
        examples,
        rows,
        e.replaced(stage.name, encoded=stage.start.is_loaded),
    )
    patient = None if patient is None else patient[rows]
    with plugins.blame("", key=key):
        probe.fit(model, x, examples.label[rows], weight=examples.weight[rows], patient=patient)
    head = probe.head(model, len(examples.classes), key=key)
    if (chosen := getattr(model, "C_", None)) and np.ndim(chosen) == 0:
        width = f", gamma = {model.gamma_:g}" if hasattr(model, "gamma_") else ""
        print(f"{stage.title}: the head starts at the minimum with C = {chosen:g}{width}")
    params = given["params"]
    heads = {**params["heads"], e.model.head_of[stage.name]: head}
    return {**given, "params": {**params, "heads": heads}}
