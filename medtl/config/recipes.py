"""Recipes: the training settings that a new experiment starts from, chosen by its labels.

`config.recipe` requests one; `apply` sets its fields and marks it as applied. A field that a flag
sets, or that the config file gives another value than the default, stays as it is. Refuses to count
the labels of data that a function of the user's reads. Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from medtl import data
from medtl.config import fields
from medtl.config.lookup import is_cross_validated
from medtl.config.rules import choose
from medtl.errors import UserError

FEW, MANY = 200, 2000
APPLIED = "{} (applied)"


def _stages(**values: Any) -> dict[str, Any]:
    """Return the same settings for both training stages."""
    return {f"stages.{s}.{name}": v for s in fields.DOMAINS for name, v in values.items()}


_LOSS = "objective.losses.main.loss"
_FINE_TUNED = {
    "augment.crop": 0.5,
    "augment.flip": True,
    "checkpoint.select": "last",
    **_stages(optimizer="adam", learning_rate=1e-4, batch_norm="batch", schedule="cosine"),
    "stages.source.epochs": 5,
}

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # A linear head on frozen features, which are computed once: no augmentation. Smoothed
        # labels are better on some data and worse on none (docs/methods.md).
        "few": {
            _LOSS: "cross_entropy(label_smoothing=0.1)",
            "augment.crop": 1.0,
            "augment.flip": False,
            "checkpoint.select": "last",
            **_stages(
                freeze="backbone",
                batch_norm="frozen",
                optimizer="adam",
                learning_rate=3e-3,
                weight_decay=10.0,
            ),
            "stages.source.epochs": 10,
            "stages.target.epochs": 150,
        },
        # Full fine-tuning; val is too small to choose a checkpoint by.
        "some": {
            **_FINE_TUNED,
            **_stages(batch_size=16, warmup=0.3),
            "stages.target.epochs": 16,
        },
        "many": {
            **_FINE_TUNED,
            "checkpoint.select": "best",
            **_stages(batch_size=32, warmup=0.1),
            "stages.target.epochs": 10,
        },
    }
)
"""Name -> config path -> value."""

REQUESTS = ("none", "auto", *RECIPES)


def named(labels: int) -> str:
    """Return the recipe for a number of train labels.

    >>> named(199), named(200), named(2000), named(2001)
    ('few', 'some', 'some', 'many')
    """
    return "few" if labels < FEW else "some" if labels <= MANY else "many"


def recipe(name: str) -> dict[str, Any]:
    """Return the fields of a recipe, config path -> value.

    Raises:
      UserError: there is no such recipe.

    >>> recipe("some")["stages.target.epochs"]
    16
    """
    choose(name, tuple(RECIPES), "config.recipe")
    return dict(RECIPES[name])


def check(name: str) -> None:
    """Refuse a recipe that does not exist, or that was requested and not applied.

    Args:
      name: `config.recipe`.

    Raises:
      UserError: as above.
    """
    if name == "none" or name in map(APPLIED.format, RECIPES):
        return
    choose(name, REQUESTS, "config.recipe")
    raise UserError(
        f"config.recipe is {name!r} and was not applied; the command applies it, in Python "
        "medtl.config.recipes.apply(config) does"
    )


def apply(config: ConfigDict, *, given: Collection[str] = ()) -> str:
    """Set the fields of the recipe that `config.recipe` requests; return a line for the terminal.

    Args:
      config: is changed.
      given: config paths that keep their value, as a flag sets them; others keep a value that
        differs from the default.

    Returns:
      Which recipe and why; empty where none is requested or one was applied before.

    Raises:
      UserError: there is no such recipe, the recipe freezes weights and there are none, or the
        labels of `auto` cannot be counted.

    >>> config = fields.default()
    >>> config.recipe = "some"
    >>> apply(config)
    'recipe some, as config.recipe names it: all layers fine-tuned, 16 epochs with random crops'
    >>> config.stages.target.batch_size
    16
    """
    name, why = config.recipe, "as config.recipe names it"
    if name == "none" or name in map(APPLIED.format, RECIPES):
        return ""
    choose(name, REQUESTS, "config.recipe")
    has_weights = bool(config.weights.path)
    if name == "auto":
        labels = _labels(config)
        name = named(labels)
        why = f"as the target has {labels:,} train labels"
        if name == "few" and not has_weights:
            name, why = "some", f"{why}, and config.weights.path names no weights to freeze"
    elif name == "few" and not has_weights:
        raise UserError(
            "config.recipe is 'few', which freezes pretrained weights, but config.weights.path "
            "names none"
        )
    values, default = recipe(name), fields.default()
    if config.data.task != "classification" or config.data.target.multi_label:
        values.pop(_LOSS, None)  # cross-entropy is not their loss
    kept = []
    for path, value in values.items():
        *parents, field = path.split(".")
        section, unset = config, default
        for parent in parents:
            section, unset = section[parent], unset[parent]
        if path in given or section[field] != unset[field]:
            kept += [path] if section[field] != value else []
            continue
        section[field] = value
    config.recipe = APPLIED.format(name)
    line = f"recipe {name}, {why}: {_ABOUT[name]}"
    return f"{line}; your own values stay: {', '.join(kept)}" if kept else line


_ABOUT = {
    "few": "linear head on frozen features, labels smoothed",
    "some": "all layers fine-tuned, 16 epochs with random crops",
    "many": "all layers fine-tuned, 10 epochs with random crops",
}


def _labels(config: ConfigDict) -> int:
    """Return the number of the target's labels to train on; in a cross-validation all."""
    made = data.train_labels(
        config.data.target,
        key="config.data.target",
        rules=data.FileRules.of(config.data),
        inputs=config.data.inputs,
        all_splits=is_cross_validated(config),
    )
    if made is None:
        raise UserError(
            "config.recipe is 'auto', but the labels of config.data.target.kind "
            f"{config.data.target.kind!r} are counted only when it is read; name few (under {FEW} "
            f"labels), some, or many (over {MANY})"
        )
    return made
