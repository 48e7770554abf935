"""Classifiers that bring a head of their own, as a `head_start` of the target stage.

Such a classifier has, beside `fit` and `predict_proba` of scikit-learn,

- `head_module(classes)`: the Linen module f32[B, D] -> f32[B, K] that becomes the head of the
  target; its shapes must not depend on the train examples;
- `head()`: after `fit`, the parameters of that module.

`probe.KernelProbe` is one. A classifier without them gives kernel and bias of a linear head.
"""

from __future__ import annotations

from typing import Any

from medtl import config as configs
from medtl import plugins
from medtl.errors import UserError


def of(config: Any) -> Any | None:
    """Return the classifier that brings the head of the target, None where none does.

    Raises:
      UserError: `head_start` names nothing, or cannot be made.
    """
    classifier = made(config, "target")
    return classifier if is_own(classifier) else None


def made(config: Any, name: str) -> Any:
    """Return a new classifier of a stage's `head_start`; None where it is empty.

    Raises:
      UserError: as `of`.
    """
    path, text = f"stages.{name}.head_start", config.stages[name].head_start
    if not text:
        return None
    return plugins.resolve(text, configs.default_module(path), key=f"config.{path}")()


def is_own(classifier: Any) -> bool:
    """Return whether a classifier brings a head of its own."""
    return callable(getattr(classifier, "head_module", None))


def check(config: Any, name: str) -> None:
    """Refuse what would train a head of its own, or the features below it, after it is fitted.

    Args:
      config: of the run.
      name: the stage.

    Raises:
      UserError: as `of`; or names the field, and what would be right.
    """
    if not is_own(made(config, name)):
        return
    stage, key = config.stages[name], f"config.stages.{name}"
    what = f"{key}.head_start is {stage.head_start!r}, a head of its own"
    if name != "target":
        raise UserError(f"{what}, which no stage after it can train; take 'LinearProbe'")
    if stage.epochs:
        raise UserError(
            f"{what}, which does not train further, but epochs is {stage.epochs}; set "
            f"{key}.epochs=0"
        )
    if stage.adapt_batch_norm:
        raise UserError(
            f"{what}, but adapt_batch_norm is True, which moves the features that it is"
            " fitted on; set it to False"
        )
    if config.data.task != "classification":
        raise UserError(f"{what} for classes, but config.data.task is {config.data.task!r}")
    for arm in config.arms:
        section = config.arm[arm]
        if not section.estimator and (section.source_stage or section.joint):
            raise UserError(
                f"{what} on frozen features of the target, but the arm {arm!r} trains on the source"
                "; leave it out of config.arms, or give it a command of its own"
            )
