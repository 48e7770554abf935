"""Every field of an experiment: its default, its meaning, and the values it can take.

The check of a config, the command line and the documentation read them here. A config file starts
from `default()` and changes what differs. The default is the embedded experiment: synthetic
phantoms, so that a run needs nothing but Python. Imports no JAX.
"""

from __future__ import annotations

import re
from typing import Any

from ml_collections import ConfigDict

from medtl.config.comparison_fields import COMPARISON
from medtl.config.data_fields import DATA, DATASET, Section
from medtl.config.image_fields import AUGMENT
from medtl.config.objective_fields import OBJECTIVE
from medtl.config.plan_fields import PLAN
from medtl.config.rules import (
    GROUPS,
    INSIDE,
    NAME,
    NORMALIZATION,
    SHARE,
    SIZES,
    UNIQUE,
    Entries,
    Field,
    Grid,
    Node,
    PluginString,
    Rule,
    at_least,
    build,
    changed,
    each,
    one_of,
)
from medtl.config.tuning_fields import TUNING
from medtl.data import samplers
from medtl.evaluation.metrics.names import NAMES, QUANTITY_CRITERIA
from medtl.models import DTYPES, FUSIONS

DOMAINS = ("source", "target")
PARALLEL = ("pmap", "mesh", "fsdp", "none")
AUTO = 0  # the batch_size of a training stage that is "auto"
# Metric writer -> the module that it imports and the extra that brings it.
WRITERS = {
    "tensorboard": ("tensorboardX", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}


def default() -> ConfigDict:
    """Return the embedded experiment, with every field that `--config.FIELD=VALUE` can set.

    >>> default().stages.target.epochs
    10
    """
    return ConfigDict(build(SCHEMA))


def dataset(kind: str = "manifest", **fields: Any) -> ConfigDict:
    """Return one domain's section, `config.data.DOMAIN`.

    Args:
      kind: the reader and its options, a plug-in string.
      fields: other fields of the section, e.g. path="manifest.csv".

    >>> dataset(path="hospital.csv").label
    'diagnosis'
    """
    return _section(DATASET, kind=kind, **fields)


def stage(**fields: Any) -> ConfigDict:
    """Return a training stage's section, `config.stages.STAGE`, with some fields changed.

    >>> stage(epochs=3).optimizer, stage(batch_size="auto").batch_size
    ('adam', 0)
    """
    if fields.get("batch_size") == "auto":
        fields["batch_size"] = AUTO
    return _section(STAGE, **fields)


def arm(init: str, source_stage: bool, joint: bool, **fields: Any) -> ConfigDict:
    """Return one of the arms that are compared, `config.arm.NAME`.

    Every arm takes the same number of optimizer steps: one without a source stage spends those on
    the target.

    Args:
      init: "weights" (random where the config names no weight file) or "random".
      source_stage: whether the source stage comes first.
      joint: whether the target stage minimizes mean_source + lambda_ * mean_target, or mean_target
        alone.
      fields: other fields of the section, e.g. inputs=("table",).
    """
    return _section(ARM, init=init, source_stage=source_stage, joint=joint, **fields)


def _section(node: Node, **fields: Any) -> ConfigDict:
    section = ConfigDict(build(node))
    section.update(fields)
    return section


STAGE: Section = {
    "epochs": Field(
        10, "Passes over the stage's domain, each of ceil(n / batch_size) steps.", at_least(0)
    ),
    "batch_size": Field(
        32,
        'Examples of the stage\'s domain in a step, all devices. 0 or "auto": the largest power of'
        " two that fits the device's memory and leaves an epoch 8 steps; the run keeps it.",
        at_least(0),
    ),
    "source_batch_size": Field(
        0, "Joint target stage: source examples in a step (0: as many as batch_size).", at_least(0)
    ),
    "sampler": Field(
        "shuffled",
        "The order and frequency in which an epoch takes the examples.",
        PluginString("medtl.data.samplers", samplers.NAMES),
    ),
    "freeze": Field(
        "none",
        '"none", "backbone", or a layer such as "layer2": the stem and the layers up to it. Frozen'
        " parameters keep their loaded values; a network with random weights is never frozen.",
    ),
    "batch_norm": Field(
        "batch",
        "Normalize by the statistics of the global batch, by the frozen running statistics, or in a"
        " joint target stage by statistics and affine parameters of each domain's own."
        " Independent of freeze; a network with random weights always uses the batch's.",
        one_of("batch", "frozen", "domain"),
    ),
    "adapt_batch_norm": Field(
        False,
        "AdaBN: after the stage, estimate the running statistics of BatchNorm anew on the train"
        " images of the target, at least 32.",
    ),
    "optimizer": Field(
        "adam", 'An Optax optimizer, e.g. "sgd(momentum=0.9)".', PluginString("optax")
    ),
    "learning_rate": Field(
        1e-4, "The learning rate, or its highest in the schedule; stage() has 1e-4.", at_least(0)
    ),
    "schedule": Field(
        "constant",
        "The learning rate over steps. An Optax schedule takes learning_rate as its init_value.",
        PluginString("optax", ("constant", "cosine", "linear")),
    ),
    "warmup": Field(0.0, "The fraction of steps with a learning rate rising from 0.", SHARE),
    "weight_decay": Field(0.0, "Decoupled weight decay; not of norms and biases.", at_least(0)),
    "clip_norm": Field(0.0, "The highest global norm of the gradient (0: no limit).", at_least(0)),
    "ema": Field(
        0.0,
        "Decay of the exponential moving average of the parameters that evaluation uses, with the"
        " BatchNorm statistics of the last step (0: no average).",
        SHARE,
    ),
    "accumulate": Field(
        1,
        "Number of micro-batches whose gradients are added, in the memory of one (on CPUs from JAX"
        " 0.12). BatchNorm then uses the statistics of each micro-batch. On CPUs each micro-batch"
        " adds to the time to compile.",
        at_least(1),
    ),
    **TUNING,
}

ARM: Section = {
    "init": Field(
        "weights",
        'The initial weights: "weights" of the file, or random where the config names none.',
        one_of("weights", "random"),
    ),
    "source_stage": Field(False, "Train on the source first."),
    "joint": Field(
        False,
        "The target stage minimizes mean_source + lambda_ * mean_target, not the latter only.",
    ),
    "inputs": Field(
        (),
        "The inputs that the arm reads, some of data.inputs; () is all.",
        UNIQUE,
    ),
    "estimator": Field(
        "",
        "A scikit-learn classifier (of a number: regressor) in place of the network, such as"
        ' "sklearn.linear_model:LogisticRegression(C=1.0)", or LinearProbe; it is fitted on the'
        " inputs as"
        " preprocessed, of the target's train part, and with source_stage or joint also of the"
        " source's.",
        PluginString("medtl.training.probe", optional=True),
    ),
}

_MODEL: Section = {
    "name": Field(
        "cifar_resnet20",
        "The backbone with its options; it encodes the input `image`.",
        PluginString("medtl.models"),
    ),
    "last_layer": Field("", 'The last layer of the backbone to keep, e.g. "layer3"; empty: all.'),
    "encoders": Entries(
        Field(
            "",
            "The encoder of another input: linear (the input itself), mlp, dense, or a module of"
            " your own. Default: mlp for a table, dense for text, linear for features.",
            PluginString("medtl.models.encoders"),
        ),
        word="INPUT",
    ),
    "fusion": Field(
        "concat",
        "The features of several inputs: concatenated, their gated sum, or a head for each input"
        " and the average of the logits.",
        one_of(*FUSIONS),
    ),
    "modality_dropout": Field(
        0.0, "Hide each input of a training example at this rate, but never all.", SHARE
    ),
    "dtype": Field("float32", "The dtype of computation; parameters are float32.", one_of(*DTYPES)),
    "remat": Field(False, "Recompute blocks in the backward pass: less memory, more time."),
    "hidden": Field(
        (),
        "Widths of the head's hidden layers.",
        each("widths of at least 1", lambda width: type(width) is int and width >= 1),
    ),
    "dropout": Field(0.0, "Dropout rate in front of each layer of the head.", SHARE),
    "prior_bias": Field(False, "Start the last bias at the log frequencies of train's classes."),
    "heads": Field(
        "auto",
        "One head for both domains, or one for each. auto: shared where the classes are equal.",
        one_of("auto", "shared", "separate"),
    ),
}

_WEIGHTS: Section = {
    "path": Field(
        "",
        "Pretrained weights: .safetensors, .npz, .pth, .th, .h5, hf://org/repo/file; empty: none.",
    ),
    "sha256": Field(
        "",
        "Refuse a file with another digest.",
        Rule("empty, or 64 hexadecimal digits", re.compile("([0-9a-fA-F]{64})?").fullmatch),
    ),
    "normalization": Field(
        "auto",
        "The input's normalization. auto: as the file states, or as is usual in its format. Numbers"
        " are in units of 0..255, one or one a channel.",
        NORMALIZATION,
    ),
    "allow": Field(
        (),
        "Patterns of parameter names that may be missing, unused or of another shape.",
        each("patterns of names", lambda name: type(name) is str and name),
    ),
}

_CHECKPOINT: Section = {
    "select": Field(
        "best",
        "The checkpoint that a stage hands on: the best on val by `metric`, or the last.",
        one_of("best", "last"),
    ),
    "metric": Field(
        "auroc",
        f"{', '.join(NAMES)}, of a number {', '.join(QUANTITY_CRITERIA)}; or a name in"
        " evaluation.metrics.",
    ),
    "keep_folds": Field(
        False,
        "Keep the chosen checkpoints of a cross-validation's folds: --mode=predict then takes the"
        " mean probability of all of them.",
    ),
    "every_steps": Field(
        0,
        "Save after this many steps, too. 0: only the best on val, the last, and an evaluation"
        " every 30 s.",
        at_least(0),
    ),
}

_EVALUATION: Section = {
    "batch_size": Field(64, "Examples in a batch.", at_least(1)),
    "times": Field(10, "Evaluations on val in each stage, at equal distances.", at_least(1)),
    "folds": Field(
        0,
        "Cross-validation over all labelled examples of the target, stratified, grouped by patient."
        " 0: the data's own split.",
        Rule("0 (the data's own split) or at least 2", lambda value: value == 0 or value >= 2),
    ),
    "leave_out": Field(
        "", 'Cross-validation that tests each value of a column once, e.g. "site".', GROUPS
    ),
    "repeats": Field(1, "Repetitions of the cross-validation, with other folds.", at_least(1)),
    "tune": Grid(
        "Nested selection: every arm tries each combination of these values on the target stage"
        " and takes the best on val by checkpoint.metric."
    ),
    "target_sizes": Field(
        (),
        'Learning curve: numbers of target labels to train on, e.g. (25, 50, 100, "all"); nested'
        " subsets.",
        SIZES,
    ),
    "metrics": Entries(
        Field(
            "",
            "A metric of your own, (y_true, y_prob, weight) -> float, with an interval from the"
            " same bootstrap.",
            PluginString(),
        )
    ),
    "reference": Field(
        "", "The arm to compare the others with; empty: target_only, else scratch, else the last."
    ),
    "positive": Field("", "The positive one of two classes; empty: the second."),
    "threshold": Field(
        "sensitivity=0.9",
        "The operating threshold, chosen on val. The default is one to be changed: to the"
        " sensitivity, or specificity, that the use needs.",
        Rule(
            "'sensitivity=0.95', 'specificity=0.9', 'youden' or a number from 0 to 1",
            re.compile(r"youden|((sensitivity|specificity)=)?(0|1|0?\.\d+|1\.0+)").fullmatch,
        ),
    ),
    "sensitivity": Field(0.9, "The sensitivity at which specificity is reported.", INSIDE),
    "specificity": Field(0.9, "The specificity at which sensitivity is reported.", INSIDE),
    "prevalence": Field(0.0, "The prevalence for PPV and NPV; 0: that of the examples.", SHARE),
    "ordinal": Field(
        False,
        "The classes are ordered grades: adds Cohen's quadratic kappa and the mean distance in"
        ' grades. data.task="ordinal" implies it.',
    ),
    "coverage": Field(0.9, "The coverage of conformal prediction sets.", INSIDE),
    "patient_rule": Field(
        "mean", "How a patient's images are joined for metrics per patient.", one_of("mean", "max")
    ),
    "resamples": Field(2000, "Bootstrap resamples of the patients.", at_least(100)),
    **COMPARISON,
}

_SWEEP: Section = {
    "arm": Field(
        "",
        "The arm of --mode=sweep; empty: the first joint one without a source stage, else the first"
        " joint one, else the first.",
    ),
    "grid": Grid("--mode=sweep tries every combination of these values and compares them on val."),
    "solver": Field(
        "train",
        "train: the trainer's steps. lbfgs: linear heads on a frozen backbone at the minimum, with"
        " weight_decay / 2 |W|² in the objective.",
        one_of("train", "lbfgs"),
    ),
}

SCHEMA: Section = {
    "name": Field("phantom", "The experiment's name.", NAME),
    "recipe": Field(
        "none",
        "The settings to start from: few, some, many, or auto, by the number of the target's train"
        " labels (under 200, up to 2,000, more). Fields that a flag sets, or that differ from their"
        " default, stay. The command applies it, and `medtl.config.recipes.apply`.",
    ),
    "seeds": Field(
        (0, 1, 2),
        "Every arm runs once with each seed; the verdict needs several.",
        Rule("at least one whole number", len),
        each("whole numbers in 0 .. 2**32 - 1", lambda s: type(s) is int and 0 <= s < 2**32),
        UNIQUE,
    ),
    "arms": Field(
        ("transfer", "scratch"),
        "The arms that run, by their names in `arm`.",
        Rule("at least one of those in config.arm", len),
        each("names of arms", lambda name: type(name) is str),
        UNIQUE,
    ),
    "arm": Entries(
        ARM,
        {
            "transfer": changed(ARM, source_stage=True, joint=True),
            "target_only": ARM,
            "scratch": changed(ARM, init="random"),
            **{name: changed(ARM, inputs=(name,)) for name in ("image", "table", "text")},
        },
    ),
    "data": DATA,
    "augment": AUGMENT,
    "model": _MODEL,
    "weights": _WEIGHTS,
    "objective": OBJECTIVE,
    "stages": {name: changed(STAGE, learning_rate=1e-3) for name in DOMAINS},
    "parallel": Field(
        "pmap",
        "How steps use devices; fsdp: each holds a part of the state; none: one device.",
        one_of(*PARALLEL),
    ),
    "loggers": Field(
        (),
        "Metric writers: tensorboard, wandb, mlflow, or writer(folder, config) with"
        " write(step, scalars) and close().",
        PluginString("medtl.training.writers", tuple(WRITERS), needs=WRITERS),
    ),
    "checkpoint": _CHECKPOINT,
    "evaluation": _EVALUATION,
    "sweep": _SWEEP,
    "plan": PLAN,
}
