"""Whether a config makes sense: every field's name, type and range, and what the fields ask of each other. Imports no JAX.

Refuses at once what would otherwise fail after minutes, or worse, train something other than what was meant. What only Optax
and the user's own modules know (an optimizer's name, a loss's options) is checked where they are imported, still before
anything is trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from medtl import config as configs
from medtl import data, plugins, weights
from medtl.errors import UserError, nearest
from medtl.evaluation import metrics
from medtl.examples import NORMALIZATIONS
from medtl.models import architectures

_LOSS = {"loss": "cross_entropy", "weight": 1.0}
_FOLDER = re.compile(r"[A-Za-z0-9][\w.+-]*")
_SCHEDULES = ("constant", "cosine", "linear")


def check(config: ConfigDict) -> None:
    """Accepts a config that can be run.

    Raises:
      UserError: names the first field at fault, its value, and what it can be.
    """
    _check_fields(config)
    _check_arms(config)
    _check_model(config)
    _check_objective(config)
    for name in ("source", "target"):
        _check_stage(config, name)
    _check_run(config)
    _check_augment(config)
    _check_data(config)
    if config.weights.path:
        weights.check(config.weights.path, sha256=config.weights.sha256)


def fields(config: Mapping[str, Any], prefix: str = "config") -> Iterator[str]:
    """The dotted path of every field, sections included: "config.stages", "config.stages.target.epochs", ..."""
    for name, value in config.items():
        yield f"{prefix}.{name}"
        if isinstance(value, Mapping | ConfigDict):
            yield from fields(value, f"{prefix}.{name}")


def no_such_field(path: str, config: Mapping[str, Any]) -> UserError:
    """The error for a field that `config` does not have, with the nearest one that it has; `path` starts with "config."."""
    near = nearest(path, fields(config))
    if not near.startswith("; did you mean"):
        near = nearest(path.removeprefix("config."), list(config))
    return UserError(f"{path}: there is no such field{near}")


def _check_fields(config: ConfigDict) -> None:
    """Names and types, against the embedded config; `arm` and `objective.losses` may hold entries of other names."""
    expected = configs.default()
    if isinstance(arms := config.get("arm"), ConfigDict):
        expected.arm = ConfigDict(
            {name: configs.arm("weights", source_stage=True, joint=True) for name in arms}
        )
    if isinstance(objective := config.get("objective"), ConfigDict) and isinstance(
        losses := objective.get("losses"), ConfigDict
    ):
        expected.objective.losses = ConfigDict(dict.fromkeys(losses, _LOSS))
    _compare(config, expected, "config", expected)


def _compare(found: Any, expected: Any, path: str, root: ConfigDict) -> None:
    if isinstance(expected, ConfigDict):
        if not isinstance(found, ConfigDict):
            raise UserError(
                f"{path} is {found!r}; it must be a section with the fields {', '.join(expected)}"
            )
        for name in found:
            if name not in expected:
                raise no_such_field(f"{path}.{name}", root)
        for name in expected:
            if name not in found:
                raise UserError(
                    f"{path}.{name} is missing; start from medtl.config.default(), or give the section all its fields"
                )
            _compare(found[name], expected[name], f"{path}.{name}", root)
        return
    wanted = type(expected)
    fits = type(found) in (int, float) if wanted is float else type(found) is wanted
    if not fits:
        raise UserError(f"{path} is {found!r}; it must be {KINDS[wanted]}")
    if wanted is float and not math.isfinite(found):
        raise UserError(f"{path} is {found!r}; it must be a finite number")


KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a tuple, on the command line values joined by commas",
    ConfigDict: "a dict literal",
}


def _check_arms(config: ConfigDict) -> None:
    _require(
        config,
        "name",
        lambda v: _FOLDER.fullmatch(v),
        "letters, digits, '_', '-' and '.', since it names a folder",
    )
    for name, arm in config.arm.items():
        _require_that(
            _FOLDER.fullmatch(name),
            f"config.arm.{name}",
            "this name",
            "letters, digits, '_', '-' and '.', since it names a folder",
        )
        _choose(arm.init, ("weights", "random"), f"config.arm.{name}.init")
    _require(config, "arms", len, "at least one of those in config.arm")
    for name in config.arms:
        _choose(name, config.arm, "config.arms")
    _require(config, "arms", _unique, "without repetition")
    _require(config, "seeds", len, "at least one whole number")
    _require(
        config,
        "seeds",
        lambda v: all(type(s) is int and 0 <= s < 2**32 for s in v),
        "whole numbers in 0 .. 2**32 - 1",
    )
    _require(config, "seeds", _unique, "without repetition")


def _check_model(config: ConfigDict) -> None:
    model = config.model
    architectures.check(model.name, model.stages, model.stride_in, classifier=model.classifier)
    _choose(model.dtype, ("float32", "bfloat16"), "config.model.dtype")
    _require(
        config,
        "model.hidden",
        lambda v: all(type(w) is int and w >= 1 for w in v),
        "widths of at least 1",
    )
    _require(config, "model.dropout", lambda v: 0 <= v < 1, "at least 0 and below 1")
    _choose(model.heads, ("auto", "shared", "separate"), "config.model.heads")
    _choose(config.weights.normalization, ("auto", *NORMALIZATIONS), "config.weights.normalization")
    _require(
        config,
        "weights.sha256",
        lambda v: re.fullmatch("([0-9a-fA-F]{64})?", v),
        "empty, or 64 hexadecimal digits",
    )
    _require(
        config, "weights.allow", lambda v: all(type(p) is str and p for p in v), "patterns of names"
    )
    if config.weights.sha256 and not config.weights.path:
        raise UserError(
            "config.weights.sha256 is given, but config.weights.path names no file; give both or neither"
        )


def _check_objective(config: ConfigDict) -> None:
    objective = config.objective
    _require(config, "objective.lambda_", lambda v: v >= 0, "at least 0")
    if objective.lambda_schedule:
        plugins.parse(objective.lambda_schedule, key="config.objective.lambda_schedule")
    _choose(objective.reduction, ("mean", "sum"), "config.objective.reduction")
    _require(config, "objective.losses", len, "at least one loss")
    for name, term in objective.losses.items():
        key = f"config.objective.losses.{name}"
        called = plugins.parse(term.loss, key=f"{key}.loss")
        _require(config, f"objective.losses.{name}.weight", lambda v: v >= 0, "at least 0")
        for domain in _domains(config):
            if config.data[domain].multi_label and (called.module, called.name) == (
                "",
                "cross_entropy",
            ):
                raise UserError(
                    f"{key}.loss is {term.loss!r}, which takes one diagnosis an example, but config.data.{domain}.multi_label"
                    " is True; use 'sigmoid_binary_cross_entropy'"
                )


def _check_stage(config: ConfigDict, name: str) -> None:
    section, stage = f"stages.{name}", config.stages[name]
    for field, least in (
        ("epochs", 0),
        ("batch_size", 1),
        ("source_batch_size", 0),
        ("accumulate", 1),
    ):
        _at_least(config, f"{section}.{field}", least)
    for field in ("learning_rate", "weight_decay", "clip_norm"):
        _at_least(config, f"{section}.{field}", 0)
    for field in ("warmup", "ema"):
        _require(config, f"{section}.{field}", lambda v: 0 <= v < 1, "at least 0 and below 1")
    depth = config.model.stages or len(architectures.architecture(config.model.name).depths)
    _choose(
        stage.freeze,
        ("none", "backbone", *map(str, range(1, depth + 1))),
        f"config.{section}.freeze",
    )
    _choose(stage.batch_norm, ("batch", "frozen"), f"config.{section}.batch_norm")
    plugins.parse(stage.optimizer, key=f"config.{section}.optimizer")
    schedule = plugins.parse(stage.schedule, key=f"config.{section}.schedule")
    if (
        not (schedule.module or schedule.args or schedule.kwargs)
        and schedule.name not in _SCHEDULES
    ):
        raise UserError(
            f"config.{section}.schedule is {stage.schedule!r}{nearest(schedule.name, _SCHEDULES)},"
            " or an Optax schedule with its options"
        )
    if stage.accumulate > stage.batch_size:
        raise UserError(
            f"config.{section}.accumulate is {stage.accumulate}; it must be at most the batch size, {stage.batch_size}"
        )


def _check_run(config: ConfigDict) -> None:
    _choose(config.parallel, ("pmap", "mesh", "none"), "config.parallel")
    _choose(config.checkpoint.select, ("best", "last"), "config.checkpoint.select")
    _choose(config.checkpoint.metric, metrics.NAMES, "config.checkpoint.metric")
    _at_least(config, "checkpoint.every_steps", 0)
    _at_least(config, "evaluation.batch_size", 1)
    _at_least(config, "evaluation.times", 1)
    check_evaluation(config, arms=config.arms)


def check_evaluation(config: ConfigDict, *, arms: Collection[str] | None = None) -> None:
    """Accepts a section `evaluation` that can be used; raises as `check`. Of other tools' predictions `arms` are not known."""
    c = config.evaluation
    _require(
        config,
        "evaluation.folds",
        lambda v: v == 0 or v >= 2,
        "0 (the data's own split) or at least 2",
    )
    _at_least(config, "evaluation.repeats", 1)
    _at_least(config, "evaluation.resamples", 100)
    if c.repeats > 1 and not c.folds:
        raise UserError(
            f"config.evaluation.repeats is {c.repeats}, but folds is 0; repeats are of a cross-validation"
        )
    for field in ("sensitivity", "specificity", "coverage"):
        _require(config, f"evaluation.{field}", lambda v: 0 < v < 1, "above 0 and below 1")
    _require(config, "evaluation.prevalence", lambda v: 0 <= v < 1, "at least 0 and below 1")
    if c.reference and arms is not None:
        _choose(c.reference, arms, "config.evaluation.reference")
    if not _THRESHOLD.fullmatch(c.threshold):
        raise UserError(
            f"config.evaluation.threshold is {c.threshold!r}; it must be 'youden', 'sensitivity=0.95', 'specificity=0.9' or a "
            "number from 0 to 1"
        )
    for name in c.tune:
        _require(
            config,
            f"evaluation.tune.{name}",
            _is_grid,
            "different numbers of at least 0",
        )
    if c.tune.lambda_ and config.objective.lambda_schedule:
        raise UserError(
            "config.evaluation.tune.lambda_ tunes what config.objective.lambda_schedule sets; give one of them"
        )
    if c.folds and not config.data.target.split[1] and any(c.tune[name] for name in c.tune):
        raise UserError(
            "config.evaluation.tune chooses on val, but the second fraction of config.data.target.split is 0; give val some"
        )
    _require(
        config,
        "evaluation.target_sizes",
        lambda v: (
            all(size == "all" or (str(size).isdecimal() and int(size) >= 1) for size in v)
            and _unique(v)
        ),
        "different numbers of labels of at least 1, or 'all'",
    )


_THRESHOLD = re.compile(r"youden|(?:(?:sensitivity|specificity)=)?(?:0|1|0?\.\d+|1\.0+)")


def swept_arm(config: ConfigDict) -> str:
    """The arm of `--mode=sweep`: the one named, else the first joint one without a source stage, else the first joint one."""
    joint = [name for name in config.arms if config.arm[name].joint]
    pooled = [name for name in joint if not config.arm[name].source_stage]
    return config.sweep.arm or [*pooled, *joint, *config.arms][0]


def check_sweep(config: ConfigDict) -> None:
    """Accepts a config, checked before, that `--mode=sweep` can run; raises as `check`."""
    c = config.sweep
    if c.arm:
        _choose(c.arm, config.arms, "config.sweep.arm")
    _choose(c.solver, ("train", "lbfgs"), "config.sweep.solver")
    names = ("lambda_", "learning_rate", "weight_decay")
    for name in names:
        _require(config, f"sweep.{name}", _is_grid, "different numbers of at least 0")
    if not any(c[name] for name in names):
        raise UserError(
            f"--mode=sweep has nothing to try: give {', '.join(f'config.sweep.{name}' for name in names[:-1])} or "
            f"config.sweep.{names[-1]}"
        )
    arm = swept_arm(config)
    if c.lambda_ and not config.arm[arm].joint:
        raise UserError(
            f"config.sweep.lambda_ weighs the target of a joint arm, but {arm} is not joint; config.sweep.arm names another"
        )
    if tuned := [name for name in config.evaluation.tune if config.evaluation.tune[name]]:
        raise UserError(
            f"--mode=sweep tries the values of config.sweep; config.evaluation.tune.{tuned[0]} would try others afterwards; leave it out"
        )
    if c.lambda_ and config.objective.lambda_schedule:
        raise UserError(
            "config.sweep.lambda_ sets what config.objective.lambda_schedule sets; give one of them"
        )
    if config.evaluation.folds and not config.data.target.split[1]:
        raise UserError(
            "--mode=sweep compares on val, but the second fraction of config.data.target.split is 0; give val some"
        )
    if c.solver == "lbfgs":
        if moving := moving_parts(config, arm):
            raise UserError(
                f"config.sweep.solver is 'lbfgs', which trains heads on the features of a frozen backbone, but {'; '.join(moving[:2])}\n"
                "  config.sweep.solver='train' tries values on whatever trains"
            )
        _check_linear(config)


def moving_parts(config: ConfigDict, arm: str) -> list[str]:
    """Why the features of the arm's backbone change from step to step, in words; empty where its heads alone train."""
    reasons = []
    if config.arm[arm].init != "weights" or not config.weights.path:
        reasons.append(f"the backbone of {arm} starts from random weights")
    for stage in ("source", "target") if config.arm[arm].source_stage else ("target",):
        for field, wanted in (("freeze", "backbone"), ("batch_norm", "frozen")):
            if config.stages[stage][field] != wanted:
                reasons.append(
                    f"config.stages.{stage}.{field} is {config.stages[stage][field]!r}, not {wanted!r}"
                )
    off = {"crop": 1.0}
    return reasons + [
        f"config.augment.{k} is {v}" for k, v in config.augment.items() if v != off.get(k, 0)
    ]


def _check_linear(config: ConfigDict) -> None:
    """Whether the objective has one minimum: a linear head, a convex loss, a penalty."""
    key = "config.sweep.solver is 'lbfgs', which"
    if config.sweep.learning_rate:
        raise UserError(f"{key} has no learning rate; leave config.sweep.learning_rate empty")
    if config.model.hidden:
        raise UserError(
            f"{key} takes linear heads, but config.model.hidden is {config.model.hidden}"
        )
    if config.objective.lambda_schedule:
        raise UserError(
            f"{key} has no steps, but config.objective.lambda_schedule changes λ with them"
        )
    losses = list(config.objective.losses.items())
    for name, term in losses:
        called = plugins.parse(term.loss, key=f"config.objective.losses.{name}.loss")
        if (
            len(losses) > 1
            or called.module
            or called.name not in ("cross_entropy", "sigmoid_binary_cross_entropy")
        ):
            raise UserError(
                f"{key} takes one loss, cross_entropy or sigmoid_binary_cross_entropy; there is {name}: {term.loss!r}"
            )
    if min(config.sweep.weight_decay or (config.stages.target.weight_decay,)) <= 0:
        raise UserError(
            f"{key} needs weight decay above 0: where classes can be separated there is no minimum without"
        )


def _check_augment(config: ConfigDict) -> None:
    _require(config, "augment.crop", lambda v: 0 < v <= 1, "above 0 and at most 1")
    _require(config, "augment.rotation", lambda v: 0 <= v <= 180, "in 0 .. 180 degrees")
    for field in ("brightness", "contrast", "noise"):
        _require(config, f"augment.{field}", lambda v: 0 <= v <= 1, "in 0 .. 1")


def _check_data(config: ConfigDict) -> None:
    _at_least(config, "data.image_size", 1)
    _choose(config.data.channels, (1, 3), "config.data.channels")
    _choose(config.data.resize, ("squash", "crop", "pad"), "config.data.resize")
    _choose(config.data.cache, ("auto", "memory", "disk", "stream"), "config.data.cache")
    _choose(config.data.resident, ("auto", "always", "never"), "config.data.resident")
    _at_least(config, "data.workers", 0)
    for domain in _domains(config):
        section = f"data.{domain}"
        _require(
            config,
            f"{section}.split",
            _is_split,
            "three fractions (train, val, test) that sum to 1, with train above 0",
        )
        data.check(config.data[domain], key=f"config.{section}")


def _domains(config: ConfigDict) -> tuple[str, ...]:
    """The domains that the running arms read."""
    needs_source = any(
        config.arm[name].source_stage or config.arm[name].joint for name in config.arms
    )
    return ("source", "target") if needs_source else ("target",)


def _is_split(value: tuple[Any, ...]) -> bool:
    numbers = len(value) == 3 and all(type(f) in (int, float) for f in value)
    return (
        numbers and min(value) >= 0 and value[0] > 0 and math.isclose(sum(value), 1.0, abs_tol=1e-6)
    )


def _is_grid(values: tuple[Any, ...]) -> bool:
    return all(type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in values) and _unique(
        values
    )


def _unique(values: Collection[Any]) -> bool:
    return len(set(values)) == len(values)


def _choose(value: Any, choices: Collection[Any], key: str) -> None:
    if value not in choices:
        raise UserError(f"{key} is {value!r}{nearest(str(value), map(str, choices))}")


def _at_least(config: ConfigDict, path: str, least: int) -> None:
    _require(config, path, lambda v: v >= least, f"at least {least}")


def _require(config: ConfigDict, path: str, fits: Callable[[Any], Any], wanted: str) -> None:
    value: Any = config
    for part in path.split("."):
        value = value[part]
    shown = dict(value) if isinstance(value, ConfigDict) else value
    _require_that(fits(value), f"config.{path}", repr(shown), wanted)


def _require_that(fits: Any, key: str, shown: str, wanted: str) -> None:
    if not fits:
        raise UserError(f"{key} is {shown}; it must be {wanted}")
