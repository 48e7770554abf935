"""Whether a config makes sense: each field by itself, and what the fields ask of each other.

Refuses at once what would otherwise fail after minutes, or train something other than what was
meant. What only Optax and the user's modules know (an optimizer's name, a loss's options) is
checked where they are imported, still before anything is trained. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from medtl import data, plugins, weights
from medtl.config import fields, methods, recipes, tasks, tuning_check
from medtl.config.lookup import GRIDS, is_cross_validated, no_such_field, node_at, paths
from medtl.config.rules import NAME, UNIQUE, Entries, Field, Grid, Node, choose
from medtl.errors import UserError
from medtl.evaluation.metrics.names import ALL_NAMES, NAMES, QUANTITY_CRITERIA
from medtl.examples import RESERVED, is_input
from medtl.models import architectures

LAMBDA, DECAY = "objective.lambda_", "stages.target.weight_decay"
_SAME_DATA = "all values are compared on the same examples"
_SAME_NETWORK = "the network is made and its weights are loaded once for all values"
_SAME_RULES = "it says how values are compared"
_SAME_RUNS = "it says which models are compared"
_NOTHING_LEARNED = "it does not change what is learned"
_NOT_TRIED: Mapping[str, str] = {
    "data": _SAME_DATA,
    **dict.fromkeys(("weights", "model.name", "model.last_layer", "model.encoders"), _SAME_NETWORK),
    **dict.fromkeys(("model.dtype", "model.heads"), _SAME_NETWORK),
    **dict.fromkeys(("sweep", "evaluation", "checkpoint"), _SAME_RULES),
    **dict.fromkeys(("name", "seeds", "arms", "arm"), _SAME_RUNS),
    **dict.fromkeys(("parallel", "loggers", "plan"), _NOTHING_LEARNED),
    "recipe": "it sets other fields, which can be tried",
}


def check(config: ConfigDict) -> None:
    """Refuse a config that cannot run.

    Raises:
      UserError: names the first field at fault, its value, and what it can be.
    """
    _check_node(config, fields.SCHEMA, "config", config)
    recipes.check(config.recipe)
    _check_between(config)
    for name in GRIDS:
        _check_grid(config, name)
    _check_evaluation(config, arms=config.arms)
    for domain in domains(config):
        rules, inputs = data.FileRules.of(config.data), config.data.inputs
        data.check(config.data[domain], key=f"config.data.{domain}", rules=rules, inputs=inputs)
    if config.weights.path:
        weights.check(config.weights.path, sha256=config.weights.sha256)


def check_installed(config: ConfigDict) -> None:
    """Refuse metric writers whose library is not installed; only training needs it.

    Raises:
      UserError: names the library and the extra.
    """
    field = fields.SCHEMA["loggers"]
    assert isinstance(field, Field) and field.plugin is not None
    field.plugin.check_installed(config.loggers, "config.loggers")


def check_fields(config: ConfigDict) -> None:
    """Refuse fields that do not exist and values that a field cannot have; reads no file.

    Raises:
      UserError: as `check`.
    """
    _check_node(config, fields.SCHEMA, "config", config)


def check_evaluation(config: ConfigDict) -> None:
    """Refuse a section `evaluation` that cannot be used, for predictions of any tool.

    Raises:
      UserError: as `check`.
    """
    section = config.evaluation
    _check_node(section, fields.SCHEMA["evaluation"], "config.evaluation", config)
    _check_evaluation(config, arms=None)


def check_plan(config: ConfigDict) -> None:
    """Refuse sections `plan` and `seeds` that `--mode=plan` cannot use.

    Raises:
      UserError: as `check`.
    """
    for name in ("plan", "seeds"):
        _check_node(config.get(name), fields.SCHEMA[name], f"config.{name}", config)


def _check_node(value: Any, node: Node, key: str, config: ConfigDict) -> None:
    """Check names, types and values of a field or section."""
    if isinstance(node, Field):
        node.check(value, key)
        return
    if not isinstance(value, ConfigDict):
        names = f" with the fields {', '.join(sorted(node))}" if isinstance(node, dict) else ""
        raise UserError(f"{key} is {value!r}; it must be a section{names}")
    if isinstance(node, Grid):
        return
    if isinstance(node, Entries):
        if node.least and not value:
            raise UserError(f"{key} is {{}}; it must be {node.least}")
        for name in value:
            if not NAME.fits(name):
                raise UserError(f"{key} has an entry {name!r}; its name must be {NAME.words}")
        node = dict.fromkeys(value, node.entry)
    for name in value:
        if name not in node:
            raise no_such_field(f"{key}.{name}", config)
    for name, inner in node.items():
        if name not in value:
            raise UserError(
                f"{key}.{name} is missing; start from medtl.config.default(), or give the section "
                "all its fields"
            )
        _check_node(value[name], inner, f"{key}.{name}", config)


def _check_between(config: ConfigDict) -> None:
    """Check what the fields outside evaluation and sweep ask of each other."""
    for name in config.arms:
        choose(name, config.arm, "config.arms")
    tasks.check(config)
    _check_inputs(config)
    layers = _check_model(config)
    _check_objective(config)
    tuning_check.check(config)
    for name, stage in config.stages.items():
        key = f"config.stages.{name}"
        if layers is None:
            if not stage.freeze.isidentifier():
                raise UserError(f"{key}.freeze is {stage.freeze!r}; it must be the name of a layer")
        else:
            choose(stage.freeze, ("none", "backbone", *layers), f"{key}.freeze")
        if stage.accumulate > stage.batch_size != fields.AUTO:
            raise UserError(
                f"{key}.accumulate is {stage.accumulate}; it must be at most the batch size, "
                f"{stage.batch_size}"
            )
        if stage.sampler != "shuffled" and config.objective.reduction == "sum":
            raise UserError(
                f"{key}.sampler is {stage.sampler!r}, but config.objective.reduction is 'sum', "
                "which assumes that every example is equally likely; use 'shuffled' or 'mean'"
            )
    if config.weights.sha256 and not config.weights.path:
        raise UserError(
            "config.weights.sha256 is given, but config.weights.path names no file; give both or "
            "neither"
        )


def _check_inputs(config: ConfigDict) -> None:
    """Check that arms, encoders and weights ask for inputs that the data give."""
    inputs = config.data.inputs
    if inputs == ("auto",):
        return
    extra = config.model.encoders if inputs == ("image",) else ()
    for arm in config.arms:
        for name in config.arm[arm].inputs:
            choose(name, (*inputs, *extra), f"config.arm.{arm}.inputs")
    if inputs == ("image",):
        return
    for name in config.model.encoders:
        choose(name, inputs, "the input of config.model.encoders")
    if config.weights.path and "image" not in inputs:
        raise UserError(
            "config.weights.path is given, but config.data.inputs has no image, which it encodes"
        )


def _check_model(config: ConfigDict) -> tuple[str, ...] | None:
    """Return the layers that can be frozen, None where only the user's module knows them."""
    model = config.model
    for name in model.encoders:
        key = f"config.model.encoders.{name}"
        if name == "image":
            raise UserError(f"{key}: the encoder of the input 'image' is config.model.name")
        if not is_input(name):
            raise UserError(
                f"{key}: an input has a name like a variable's, other than {', '.join(RESERVED)}"
            )
    architecture = architectures.parse(model.name)
    if architecture is not None:
        return tuple(architecture.groups(model.last_layer))
    if model.last_layer and not model.last_layer.isidentifier():
        raise UserError(
            f"config.model.last_layer is {model.last_layer!r}; it must be the name of a layer"
        )
    return None


def _check_objective(config: ConfigDict) -> None:
    objective = config.objective
    for name, entry in objective.losses.items():
        key = f"config.objective.losses.{name}.loss"
        spec = plugins.parse(entry.loss, key=key)
        for domain in domains(config):
            is_single = not spec.module and spec.name in tasks.ONE_DIAGNOSIS
            if is_single and config.data[domain].multi_label:
                raise UserError(
                    f"{key} is {entry.loss!r}, which takes one diagnosis an example, but "
                    f"config.data.{domain}.multi_label is True; use "
                    "'sigmoid_binary_cross_entropy', 'sigmoid_focal' or 'asymmetric'"
                )
    if objective.gradients != "sum" and not any(config.arm[name].joint for name in config.arms):
        raise UserError(
            f"config.objective.gradients is {objective.gradients!r}, which compares the source's "
            f"gradient with the target's, but none of the arms {', '.join(config.arms)} is joint"
        )
    methods.check_objective(config)
    methods.check_batch_norm(config)
    for name in objective.terms:
        if name in objective.losses:
            raise UserError(
                f"config.objective.terms.{name}: a loss has that name, too; give the term another"
            )


def _check_evaluation(config: ConfigDict, *, arms: Collection[str] | None) -> None:
    """Check what the fields of `evaluation` ask; `arms` is None for other tools' predictions."""
    c = config.evaluation
    if c.folds and c.leave_out:
        raise UserError(
            f"config.evaluation.folds is {c.folds} and leave_out is {c.leave_out!r}; give one of "
            "them: leave_out makes a fold of each value"
        )
    if c.repeats > 1 and not c.folds:
        raise UserError(
            f"config.evaluation.repeats is {c.repeats}, but folds is 0; only random folds are "
            "repeated"
        )
    if c.size_repeats > 1 and (c.folds or not c.target_sizes):
        why = "each fold and repeat has subsets of its own" if c.folds else "target_sizes is empty"
        raise UserError(
            f"config.evaluation.size_repeats is {c.size_repeats}, but {why}; set it to 1"
        )
    if arms is not None:
        methods.check_arms(config)
        if config.evaluation.label_shift and is_cross_validated(config):
            _check_val(config, "config.evaluation.label_shift compares")
    if c.reference and arms is not None:
        choose(c.reference, arms, "config.evaluation.reference")
    for name in c.metrics:
        if name in ALL_NAMES:
            raise UserError(
                f"config.evaluation.metrics.{name}: medtl has a metric of that name; give yours "
                "another"
            )
    # The predictions of another tool tell what they are of: either kind of metric may fit them.
    names: tuple[str, ...] = NAMES if config.data.task != "regression" else QUANTITY_CRITERIA
    names = (*NAMES, *QUANTITY_CRITERIA) if arms is None else names
    choose(config.checkpoint.metric, (*names, *c.metrics), "config.checkpoint.metric")
    if paths(c.tune) and is_cross_validated(config):
        _check_val(config, "config.evaluation.tune chooses")


def _check_val(config: ConfigDict, who: str) -> None:
    if not data.fractions(config.data.target, key="config.data.target")[1]:
        raise UserError(
            f"{who} on val, but the second fraction of config.data.target.split is 0; give val some"
        )


def _check_grid(config: ConfigDict, name: str) -> None:
    """Check the paths of `sweep.grid` or `evaluation.tune`, and each value in the config."""
    for path, values in paths(_value(config, name)).items():
        key = f"config.{name}.{path}"
        excluded = next((p for p in _NOT_TRIED if f"{path}.".startswith(f"{p}.")), None)
        if excluded:
            raise UserError(f"{key}: {path} cannot be tried; {_NOT_TRIED[excluded]}")
        field = node_at(path)
        if _value(config, path) is None:
            raise UserError(f"{key}: {no_such_field(f'config.{path}', config)}")
        if not isinstance(field, Field):
            raise UserError(f"{key} is a section of the config; name one of its fields")
        if type(values) is not tuple:
            raise UserError(f"{key} is {values!r}; it must be a tuple of the values to try")
        if path == LAMBDA and config.objective.lambda_schedule:
            raise UserError(
                f"{key} tries what config.objective.lambda_schedule sets; give one of them"
            )
        for value in values:
            field.check(value, key)
        if path.endswith(".batch_size") and fields.AUTO in values:
            raise UserError(f"{key} tries 0, which is 'auto'; give numbers")
        UNIQUE.check(values, key)
        for value in values:
            try:
                _check_between(_with(config, path, value))
            except UserError as error:
                raise UserError(f"{key} tries {value!r}: {error}") from None


def _value(config: ConfigDict, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, ConfigDict) else None
    return value


def _with(config: ConfigDict, path: str, value: Any) -> ConfigDict:
    changed = ConfigDict(config.to_dict())
    section, (*parents, name) = changed, path.split(".")
    for parent in parents:
        section = section[parent]
    with section.ignore_type():
        section[name] = value
    return changed


def swept_arm(config: ConfigDict) -> str:
    """Return the arm of `--mode=sweep`.

    It is the one that `sweep.arm` names, else the first joint one without a source stage, else the
    first joint one, else the first.
    """
    joint = [name for name in config.arms if config.arm[name].joint]
    pooled = [name for name in joint if not config.arm[name].source_stage]
    return config.sweep.arm or [*pooled, *joint, *config.arms][0]


def check_sweep(config: ConfigDict) -> None:
    """Refuse a config that passed `check` but that `--mode=sweep` cannot run.

    Raises:
      UserError: as `check`.
    """
    c, tried = config.sweep, paths(config.sweep.grid)
    tasks.check_sweep(config)
    if c.arm:
        choose(c.arm, config.arms, "config.sweep.arm")
    if not tried:
        raise UserError(
            "--mode=sweep has nothing to try: give values, such as "
            f"--config.sweep.grid.{LAMBDA}=0.1,1"
        )
    arm = swept_arm(config)
    if config.arm[arm].estimator:
        raise UserError(f"config.sweep.arm: {arm} is a classifier of scikit-learn; name another")
    if LAMBDA in tried and not config.arm[arm].joint:
        raise UserError(
            f"config.sweep.grid.{LAMBDA} weighs the target of a joint arm, but {arm} is not joint; "
            "config.sweep.arm names another"
        )
    if config.objective.source_weights:
        raise UserError(
            "--mode=sweep compares settings on equal weights, but config.objective.source_weights "
            "differs between splits; set it to '' there, or use config.evaluation.tune"
        )
    if config.objective.balance != "fixed":
        raise UserError(
            f"--mode=sweep compares values of λ, but config.objective.balance is "
            f"{config.objective.balance!r}; set it to 'fixed'"
        )
    for path in paths(config.evaluation.tune):
        raise UserError(
            f"--mode=sweep tries the values of config.sweep.grid; config.evaluation.tune.{path} "
            "would try others afterwards; leave it out"
        )
    if is_cross_validated(config):
        _check_val(config, "--mode=sweep compares")
    if c.solver == "lbfgs":
        if reasons := moving_parts(config, arm):
            raise UserError(
                "config.sweep.solver is 'lbfgs', which trains heads on the features of a frozen "
                f"backbone, but {'; '.join(reasons[:2])}\n"
                "  config.sweep.solver='train' tries values on whatever trains"
            )
        _check_linear(config, tried)


def moving_parts(config: ConfigDict, arm: str) -> list[str]:
    """Return why the arm's features change from step to step; empty where its heads alone train."""
    reasons = []
    if config.arm[arm].init != "weights" or not config.weights.path:
        reasons.append(f"the backbone of {arm} starts from random weights")
    for stage in fields.DOMAINS if config.arm[arm].source_stage else ("target",):
        for field, wanted in (("freeze", "backbone"), ("batch_norm", "frozen")):
            value = config.stages[stage][field]
            if value != wanted:
                reasons.append(f"config.stages.{stage}.{field} is {value!r}, not {wanted!r}")
    reasons += tuning_check.beyond_steps(config.stages.target, "config.stages.target")
    others = [name for name in config.data.inputs if name != "image"]
    for name in {**dict.fromkeys(others), **config.model.encoders}:
        reasons.append(f"config.model.encoders.{name} trains with the heads")
    off: Mapping[str, Any] = {"crop": 1.0, "extra": (), "mix": ""}
    return reasons + [
        f"config.augment.{name} is {value}"
        for name, value in config.augment.items()
        if value != off.get(name, 0)
    ]


def _check_linear(config: ConfigDict, tried: Mapping[str, tuple[Any, ...]]) -> None:
    """Check that the objective has one minimum: a linear head, a convex loss, a penalty."""
    key = "config.sweep.solver is 'lbfgs', which"
    for path in tried:
        if path not in (LAMBDA, DECAY):
            raise UserError(
                f"{key} tries {LAMBDA} and {DECAY} alone; leave config.sweep.grid.{path} out"
            )
    if config.model.hidden:
        raise UserError(
            f"{key} takes linear heads, but config.model.hidden is {config.model.hidden}"
        )
    if config.objective.lambda_schedule:
        raise UserError(
            f"{key} has no steps, but config.objective.lambda_schedule changes λ with them"
        )
    if config.objective.gradients != "sum":
        raise UserError(
            f"{key} has no steps, but config.objective.gradients changes their gradient"
        )
    if config.objective.terms:
        raise UserError(f"{key} takes one loss, but config.objective.terms adds others")
    if config.stages.target.sampler != "shuffled":
        raise UserError(
            f"{key} takes every example once, so config.stages.target.sampler has no use"
        )
    losses = list(config.objective.losses.items())
    for name, entry in losses:
        spec = plugins.parse(entry.loss, key=f"config.objective.losses.{name}.loss")
        is_convex = spec.name in ("cross_entropy", "sigmoid_binary_cross_entropy")
        if len(losses) > 1 or spec.module or not is_convex:
            raise UserError(
                f"{key} takes one loss, cross_entropy or sigmoid_binary_cross_entropy; there is "
                f"{name}: {entry.loss!r}"
            )
    if min(tried.get(DECAY, (config.stages.target.weight_decay,))) <= 0:
        raise UserError(
            f"{key} needs weight decay above 0: without it, classes that can be separated have no "
            "minimum"
        )


def domains(config: ConfigDict) -> tuple[str, ...]:
    """Return the domains that the running arms read."""
    arms = [config.arm[name] for name in config.arms]
    return fields.DOMAINS if any(a.source_stage or a.joint for a in arms) else ("target",)
