"""What the fields of fine-tuning ask of each other and of the rest. Imports no JAX."""

from __future__ import annotations

from ml_collections import ConfigDict

from medtl import plugins
from medtl.errors import UserError


def check(config: ConfigDict) -> None:
    """Refuse ways of fine-tuning that cannot be combined.

    Raises:
      UserError: names the field, and what would be right.
    """
    for name, stage in config.stages.items():
        key = f"config.stages.{name}"
        if stage.head_start:
            _check_head(config, f"{key}.head_start is {stage.head_start!r}, a head of one layer")
        if stage.wise and not stage.head_start:
            raise UserError(
                f"{key}.wise goes back to the weights at the start, where the head is random; set "
                "head_start, such as \"LinearProbe(C='cv')\""
            )
        if stage.swa and stage.ema:
            raise UserError(f"{key}: swa and ema are two averages of the weights; set one to 0")
        _check_trainable(stage, key)


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
