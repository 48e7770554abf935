"""What the fields of fine-tuning ask of each other and of the rest. Imports no JAX."""

from __future__ import annotations

from ml_collections import ConfigDict

from medtl import plugins
from medtl.errors import UserError

PROBES = "medtl.training.probe"  # the default module of head_start


def check(config: ConfigDict) -> None:
    """Refuse ways of fine-tuning that cannot be combined.

    Raises:
      UserError: names the field, and what would be right.
    """
    for name, stage in config.stages.items():
        key = f"config.stages.{name}"
        if stage.head_start:
            kind = "kernel" if is_kernel(stage.head_start) else "linear"
            what = f"{key}.head_start is {stage.head_start!r}, a {kind} head"
            _check_head(config, what)
            if kind == "kernel":
                _check_kernel(config, name, what)
        if stage.wise and not stage.head_start:
            raise UserError(
                f"{key}.wise goes back to the weights at the start, where the head is random; set "
                "head_start, such as \"LinearProbe(C='cv')\""
            )
        if stage.swa and stage.ema:
            raise UserError(f"{key}: swa and ema are two averages of the weights; set one to 0")
        _check_trainable(stage, key)


def is_kernel(head_start: str) -> bool:
    """Return whether `head_start` names the kernel probe, which brings a head of its own.

    >>> is_kernel("KernelProbe(C='cv')"), is_kernel("LinearProbe"), is_kernel("")
    (True, False, False)
    """
    spec = plugins.parse(head_start, key="head_start") if head_start else None
    return spec is not None and spec.name == "KernelProbe" and spec.module in ("", PROBES)


def beyond_steps(stage: ConfigDict, key: str) -> list[str]:
    """Return the fields that do something before the first step or after the last one."""
    names = [name for name in ("head_start", "swa", "wise") if stage[name]]
    return [f"{key}.{name} is {stage[name]!r}" for name in names]


def _check_head(config: ConfigDict, what: str) -> None:
    if config.model.hidden:
        raise UserError(f"{what}, but config.model.hidden is {config.model.hidden}; set it to ()")
    if config.model.fusion == "late" and len(config.data.inputs) > 1:
        raise UserError(
            f"{what}, but config.model.fusion is 'late', with a head for each input; take 'concat'"
        )


def _check_kernel(config: ConfigDict, name: str, what: str) -> None:
    """Refuse what would train a kernel head, or the features below it, after it is fitted."""
    stage, key = config.stages[name], f"config.stages.{name}"
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
        raise UserError(f"{what} of classes, but config.data.task is {config.data.task!r}")
    for arm in config.arms:
        section = config.arm[arm]
        if not section.estimator and (section.source_stage or section.joint):
            raise UserError(
                f"{what} on frozen features of the target, but the arm {arm!r} trains on the source"
                "; leave it out of config.arms, or give it a command of its own"
            )


def _check_trainable(stage: ConfigDict, key: str) -> None:
    if stage.trainable == "all":
        return
    what = f"{key}.trainable is {stage.trainable!r}"
    if stage.freeze == "backbone":
        raise UserError(f"{what}, but freeze is 'backbone', which leaves nothing; set it to 'none'")
    spec = plugins.parse(stage.trainable, key=f"{key}.trainable")
    if not spec.module and spec.name == "lora" and stage.batch_norm == "batch":
        raise UserError(
            f"{what}, which keeps the backbone as it is, but batch_norm is 'batch', which moves its"
            " statistics; set it to 'frozen'"
        )
