"""What `data.task` asks of the other fields; part of `medtl.config.check`. Imports no JAX."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from medtl import plugins
from medtl.errors import UserError
from medtl.evaluation.metrics.names import ALL_NAMES, QUANTITY_CRITERIA, QUANTITY_NAMES

# Losses of medtl that take one class for each example.
ONE_DIAGNOSIS = (
    "balanced_softmax",
    "class_weighted",
    "cross_entropy",
    "focal",
    "generalized_cross_entropy",
    "ldam",
    "logit_adjusted",
    "symmetric_cross_entropy",
)
QUANTITY_LOSSES = ("mean_squared_error_regression", "huber", "absolute_error")
_GRADES_LOSS = "cumulative_link"
_TERMS_OF_CLASSES = ("contrastive", "soft_f1", "auc_margin")
_SHUFFLED = "shuffled"


def check(config: ConfigDict) -> None:
    """Refuse losses, metrics and other fields that make no sense for the task.

    Raises:
      UserError: names every change that the task needs, so that one attempt suffices.
    """
    task = config.data.task
    for domain in ("source", "target"):
        if config.data[domain].multi_label and task != "classification":
            raise UserError(
                f"config.data.task is {task!r}, but config.data.{domain}.multi_label is True: "
                "several diagnoses have neither an order nor a value"
            )
    if config.data.grades and task != "ordinal":
        raise UserError(f"config.data.grades orders labels, but config.data.task is {task!r}")
    if task == "regression":
        _check_quantity(config)
    for key, name in _losses(config):
        if name in QUANTITY_LOSSES and task != "regression":
            raise UserError(
                f"{key} is {name!r}, which takes a number, but config.data.task is {task!r}"
            )
        if name == _GRADES_LOSS and task != "ordinal":
            raise UserError(
                f"{key} is {name!r}, which takes ordered grades, but config.data.task is {task!r}; "
                "set it to 'ordinal'"
            )


def check_sweep(config: ConfigDict) -> None:
    """Refuse a sweep that the task does not allow.

    Raises:
      UserError: names the task.
    """
    task = config.data.task
    if task == "regression":
        raise UserError(
            "--mode=sweep compares settings of classifiers, but config.data.task is 'regression'; "
            "config.evaluation.tune tries settings there"
        )
    if task == "ordinal" and config.sweep.solver == "lbfgs":
        raise UserError(
            "config.sweep.solver is 'lbfgs', which trains linear heads of classes, but "
            "config.data.task is 'ordinal'; config.sweep.solver='train' tries values there"
        )


def _check_quantity(config: ConfigDict) -> None:
    """Refuse what is for classes."""
    wrong = []
    for key, name in _losses(config):
        if name and name not in QUANTITY_LOSSES:
            wrong.append(f"{key}={QUANTITY_LOSSES[0]} (or {' or '.join(QUANTITY_LOSSES[1:])})")
    metric, own = config.checkpoint.metric, config.evaluation.metrics
    if metric not in (*QUANTITY_CRITERIA, *own):
        names = " or ".join(QUANTITY_CRITERIA[1:])
        wrong.append(f"config.checkpoint.metric={QUANTITY_CRITERIA[0]} (or {names})")
    off: dict[str, Any] = {"model.prior_bias": False, "evaluation.ordinal": False}
    off |= {"evaluation.positive": "", "evaluation.prevalence": 0.0}
    off |= {"evaluation.label_shift": (), "evaluation.test_time": ()}
    off |= {f"stages.{name}.head_start": "" for name in config.stages}
    off |= {f"stages.{name}.sampler": _SHUFFLED for name in config.stages}
    for path, value in off.items():
        section: Any = config
        for part in path.split("."):
            section = section[part]
        if section == value or (":" in str(section) and path.endswith("sampler")):
            continue
        wrong.append(f"config.{path}={value!r}")
    if wrong:
        changes = "\n  --".join(wrong)
        raise UserError(
            f"config.data.task is 'regression', which predicts a number; it needs\n  --{changes}"
        )
    for name, entry in config.objective.terms.items():
        key = f"config.objective.terms.{name}.term"
        spec = plugins.parse(entry.term, key=key)
        if not spec.module and spec.name in _TERMS_OF_CLASSES:
            raise UserError(f"{key} is {entry.term!r}, which compares classes; leave it out")
    for name in own:
        if name in QUANTITY_NAMES and name not in ALL_NAMES:
            raise UserError(
                f"config.evaluation.metrics.{name}: medtl has a metric of that name; give yours "
                "another"
            )


def _losses(config: ConfigDict) -> list[tuple[str, str]]:
    """Return (config key, name) of each loss; the name of a user's own is empty."""
    found = []
    for entry, loss in config.objective.losses.items():
        key = f"config.objective.losses.{entry}.loss"
        spec = plugins.parse(loss.loss, key=key)
        found.append((key, "" if spec.module else spec.name))
    return found
