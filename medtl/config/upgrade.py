"""Configs of older versions in today's fields. Imports no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medtl.config.fields import DOMAINS, SCHEMA
from medtl.config.lookup import grid
from medtl.config.rules import Entries, Node, build
from medtl.models import architectures

_TRIED = {
    "lambda_": "objective.lambda_",
    "learning_rate": "stages.target.learning_rate",
    "weight_decay": "stages.target.weight_decay",
}


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config in today's fields; one that has them comes back equal.

    Renamed fields are translated, absent ones take their defaults, and lists become tuples, as JSON
    has none. Fields that never existed are kept, so that the check of the config names them.

    Args:
      config: the object in a run's `config.json`, or the config in a checkpoint's record.

    >>> upgrade({"model": {"name": "resnet50", "stages": 3}})["model"]["last_layer"]
    'layer3'
    """
    fields = _tuples(config)
    _rename_layers(_section(fields, "model"), _section(fields, "stages"))
    for domain in DOMAINS:
        _rename_phantom(_section(_section(fields, "data"), domain))
    evaluation, sweep = _section(fields, "evaluation"), _section(fields, "sweep")
    if tune := _section(evaluation, "tune"):
        evaluation["tune"] = _grid(tune)
    if "lambda_" in sweep:
        sweep["grid"] = _grid({name: sweep.pop(name, ()) for name in _TRIED})
    filled = _filled(SCHEMA, fields)
    if arms := _section(filled, "arm"):  # a newer version has more arms to choose from
        filled["arm"] = {**build(SCHEMA["arm"]), **arms}
    return filled


def _section(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = fields.get(name)
    return section if isinstance(section, dict) else {}


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _filled(node: Node, fields: Any) -> Any:
    """Return `fields` with the defaults of absent ones; an open section gets no entries."""
    if not isinstance(fields, dict):
        return fields
    if isinstance(node, Entries):
        return {name: _filled(node.entry, value) for name, value in fields.items()}
    if not isinstance(node, dict):
        return fields
    absent = {name: build(inner) for name, inner in node.items() if name not in fields}
    return absent | {
        name: _filled(node[name], value) if name in node else value
        for name, value in fields.items()
    }


def _rename_layers(model: dict[str, Any], stages: Mapping[str, Any]) -> None:
    """Translate the former counts of layers, and the backbone's options that were fields."""
    architecture = architectures.ARCHITECTURES.get(model.get("name", ""))
    layers = dict(enumerate(architecture.layers, 1)) if architecture else {}
    options = {name: model.pop(name, None) for name in ("stride_in", "classifier")}
    changed = [f"{k}={v!r}" for k, v in options.items() if v not in (None, "3x3", False)]
    if changed:
        model["name"] = f"{model['name']}({', '.join(changed)})"
    if "stages" in model:
        model["last_layer"] = layers.get(model.pop("stages"), "")
    for stage in stages.values():
        if isinstance(stage, dict) and str(stage.get("freeze", "")).isdecimal():
            stage["freeze"] = layers.get(int(stage["freeze"]), stage["freeze"])


def _rename_phantom(dataset: dict[str, Any]) -> None:
    """Translate the phantom's options, which were fields, and the former default split."""
    if "size" not in dataset:
        return
    size, scanner = dataset.pop("size"), dataset.pop("scanner", "a")
    if dataset.get("kind") != "phantom":
        if dataset.get("split") == (0.7, 0.15, 0.15):
            dataset["split"] = ()
        return
    seed, split = dataset.pop("split_seed", 0), dataset.pop("split", (0.7, 0.15, 0.15))
    last = f", seed={seed}" if seed else ""
    dataset["kind"] = f"phantom(size={size}, scanner={scanner!r}, split={split!r}{last})"


def _grid(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values to try by path instead of by the last part of the path."""
    known = {_TRIED[name]: tried for name, tried in values.items() if name in _TRIED and tried}
    rest = {name: inner for name, inner in values.items() if name not in _TRIED}
    return grid(known).to_dict() | rest
