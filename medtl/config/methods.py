"""What methods for two domains, and arms made of others, ask of a config. Imports no JAX."""

from __future__ import annotations

from ml_collections import ConfigDict

from medtl.config.lookup import is_cross_validated, paths
from medtl.errors import UserError


def check_objective(config: ConfigDict) -> None:
    """Check what weights of the source ask.

    Raises:
      UserError: names the field at fault.
    """
    c, arms = config.objective, [config.arm[name] for name in config.arms]
    if c.source_weights and not any(arm.joint or arm.source_stage for arm in arms):
        raise UserError(
            f"config.objective.source_weights is {c.source_weights!r}, but none of the arms "
            f"{', '.join(config.arms)} learns from the source"
        )
    if c.balance != "fixed":
        _check_balance(config)


def _check_balance(config: ConfigDict) -> None:
    c = config.objective
    key = f"config.objective.balance is {c.balance!r}"
    if not any(config.arm[name].joint for name in config.arms):
        raise UserError(f"{key}, but none of the arms {', '.join(config.arms)} is joint")
    tried = {*paths(config.evaluation.tune), *paths(config.sweep.grid)}
    chooses = c.balance != "reweight"
    for is_wrong, why in (
        (chooses and c.lambda_ <= 0, f"lambda_, at which it begins, is {c.lambda_}"),
        (chooses and c.lambda_schedule, f"lambda_schedule is {c.lambda_schedule!r}"),
        (chooses and "objective.lambda_" in tried, "values of lambda_ are tried"),
        (chooses and c.gradients != "sum", f"gradients is {c.gradients!r}"),
        (c.reduction != "mean", f"reduction is {c.reduction!r}, whose sums count all examples"),
        (
            c.balance != "uncertainty" and config.stages.target.sam > 0,
            f"stages.target.sam is {config.stages.target.sam}, whose gradient is that of other "
            "weights",
        ),
        ("balance" in c.terms, "a term has the name of its parameters, 'balance'"),
        (
            c.balance != "uncertainty" and config.stages.target.accumulate > 1,
            f"stages.target.accumulate is {config.stages.target.accumulate}, which divides the "
            "batch that it compares",
        ),
    ):
        if is_wrong:
            raise UserError(f"{key}, but {why}; change one of them")


def check_batch_norm(config: ConfigDict) -> None:
    """Check what BatchNorm of each domain's own asks.

    Raises:
      UserError: names the field at fault.
    """
    key = "config.stages.%s.batch_norm is 'domain'"
    if config.stages.source.batch_norm == "domain":
        raise UserError(
            f"{key % 'source'}, but that stage has one domain; set it for the target stage"
        )
    is_joint = any(config.arm[name].joint for name in config.arms)
    if config.stages.target.batch_norm == "domain" and not is_joint:
        raise UserError(
            f"{key % 'target'}, but none of the arms {', '.join(config.arms)} is joint, so that "
            "there is one domain; set it to 'batch'"
        )


def check_arms(config: ConfigDict) -> None:
    """Check what arms that are made of others, and kept folds, ask of a run."""
    c = config.evaluation
    if c.ensembles and len(config.seeds) < 2:
        raise UserError(
            f"config.evaluation.ensembles is True, but config.seeds is {config.seeds}; an ensemble "
            "needs at least 2 seeds"
        )
    if c.test_time and config.data.inputs != ("auto",) and "image" not in config.data.inputs:
        raise UserError(
            f"config.evaluation.test_time is {c.test_time}, but config.data.inputs has no image"
        )
    if c.label_shift and config.data.target.multi_label:
        raise UserError(
            f"config.evaluation.label_shift is {c.label_shift}, which takes one diagnosis an "
            "example, but config.data.target.multi_label is True"
        )
    if config.checkpoint.keep_folds and not is_cross_validated(config):
        raise UserError(
            "config.checkpoint.keep_folds is True, but there are no folds: evaluation.folds is 0 "
            "and leave_out is ''"
        )
    if config.checkpoint.keep_folds and paths(c.tune):
        raise UserError(
            "config.checkpoint.keep_folds is True, but evaluation.tune leaves a fold several "
            "trained models; leave one of them out"
        )
