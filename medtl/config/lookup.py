"""Lookups in the declaration of fields by dotted path: open sections, grids, plug-in strings, docs.

A path is written without "config.", e.g. "stages.target.learning_rate". Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from medtl.config import fields
from medtl.config.rules import Entries, Field, Grid, Node, PluginString, build
from medtl.errors import UserError, nearest

VALUES = Field((), "The values to try.")
GRIDS = ("sweep.grid", "evaluation.tune")
_WORDS = {"data": "DOMAIN", "stages": "STAGE"}


def node_at(path: str) -> Node | None:
    """Return the declaration of a field or section, None where there is none.

    An entry of an open section has a declaration under any name.

    >>> node_at("objective.losses.mine.weight").default
    1.0
    """
    node: Node | None = fields.SCHEMA
    parts = path.split(".")
    for i, part in enumerate(parts):
        if isinstance(node, Grid):
            inner = node_at(".".join(parts[i:]))
            return VALUES if isinstance(inner, Field) else node if inner else None
        if isinstance(node, Entries):
            node = node.entry
        elif isinstance(node, dict):
            node = node.get(part)
        else:
            return None
    return node


def default_module(path: str) -> str:
    """Return the module in which a plug-in string's bare name is looked up.

    >>> default_module("stages.target.optimizer")
    'optax'
    """
    node = node_at(path)
    plugin = node.plugin if isinstance(node, Field) else None
    assert plugin is not None, f"{path} is not a plug-in string"
    return plugin.module


def add_entries(config: ConfigDict, path: str) -> None:
    """Add the entries of open sections that the path to a field goes through, with their defaults.

    Changes nothing where `path` has no declaration.
    """
    if node_at(path) is None:
        return
    section, parts = config, path.split(".")
    for i, part in enumerate(parts):
        if not isinstance(section, ConfigDict):
            return
        if part not in section:
            if not isinstance(node_at(".".join(parts[:i])), Entries | Grid):
                return
            default = build(node_at(".".join(parts[: i + 1])))  # type: ignore[arg-type]
            with section.unlocked():
                section[part] = ConfigDict(default) if isinstance(default, dict) else default
        section = section[part]


def no_such_field(path: str, config: Mapping[str, Any]) -> UserError:
    """Return the error for a path that has no field; names the nearest one.

    Args:
      path: the path, beginning with "config.".
      config: the config whose open sections' entries can be meant, too.
    """
    paths_there = list(_known(fields.SCHEMA, config, "config", path))
    for section in GRIDS:
        if path.startswith(f"config.{section}."):
            inner = path.replace(f"{section}.", "", 1)
            tried = _known(fields.SCHEMA, config, "config", inner)
            paths_there = [name.replace("config", f"config.{section}", 1) for name in tried]
    near = nearest(path, paths_there)
    if not near.startswith("; did you mean"):
        near = nearest(path.removeprefix("config."), list(fields.SCHEMA))
    return UserError(f"{path}: there is no such field{near}")


def _known(node: Node, config: Any, prefix: str, path: str) -> Iterator[str]:
    """Yield every field and section; open sections have the entries of the config and of `path`."""
    section = config if isinstance(config, ConfigDict) else {}
    if isinstance(node, Entries):
        asked = path.removeprefix(f"{prefix}.").partition(".")
        names = {*section, asked[0]} if asked[2] and path.startswith(prefix) else {*section}
        node = dict.fromkeys(names, node.entry)
    if isinstance(node, dict):
        for name, inner in node.items():
            yield f"{prefix}.{name}"
            yield from _known(inner, section.get(name), f"{prefix}.{name}", path)


def grid(values: Mapping[str, Sequence[Any]]) -> ConfigDict:
    """Return the section `sweep.grid` or `evaluation.tune` that tries these values.

    >>> grid({"objective.lambda_": (0.1, 1.0)}).objective.lambda_
    (0.1, 1.0)
    """
    section: dict[str, Any] = {}
    for path, tried in values.items():
        *parents, name = path.split(".")
        inner = section
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = tuple(tried)
    return ConfigDict(section)


def paths(section: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return dotted path -> values of a section `sweep.grid` or `evaluation.tune`.

    Empty tuples are left out: they try nothing.

    >>> paths(grid({"objective.lambda_": (0.1, 1.0), "stages.target.ema": ()}))
    {'objective.lambda_': (0.1, 1.0)}
    """
    return {path: values for path, values in leaves(section) if values != ()}


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every field in a section."""
    for name, value in section.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_cross_validated(config: ConfigDict) -> bool:
    """Return whether every example is tested on in turn: in random folds, or site by site."""
    return config.evaluation.folds > 0 or config.evaluation.leave_out != ""


def plugin_strings(config: ConfigDict) -> dict[str, str]:
    """Return every plug-in string of a config by its key; also those that a grid tries.

    Args:
      config: also one that was not checked: values of another type run no code and are left out.

    >>> plugin_strings(fields.default())["config.stages.target.optimizer"]
    'adam'
    """
    texts: dict[str, str] = {}
    for path, value in leaves(config):
        section = next((f"{name}." for name in GRIDS if path.startswith(f"{name}.")), "")
        node = node_at(path.removeprefix(section))
        if isinstance(node, Field) and node.plugin:
            is_tried = section and isinstance(value, tuple)
            for i, text in enumerate(value if is_tried else [value]):
                key = f"config.{path}[{i}]" if is_tried else f"config.{path}"
                texts |= PluginString.texts(text, key)
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def describe() -> list[tuple[str, str, str, str]]:
    """Return (path, default, meaning, allowed values) of every field, as text.

    DOMAIN and STAGE stand for source and target, NAME and INPUT for any name.

    >>> next(row for row in describe() if row[0] == "objective.reduction")
    ('objective.reduction', "'mean'", 'The reduction over each domain.', "'mean', 'sum'")
    """
    return list(_rows(fields.SCHEMA, ""))


def _rows(node: Node, path: str) -> Iterator[tuple[str, str, str, str]]:
    if isinstance(node, Field):
        yield path, repr(node.default), node.meaning, node.allowed
    elif isinstance(node, Grid):
        yield f"{path}.FIELD", "()", node.meaning, "a tuple of values of that field"
    elif isinstance(node, Entries):
        yield from _rows(node.entry, f"{path}.{node.word}")
    elif path in _WORDS:
        source, target = (_rows(node[name], f"{path}.{_WORDS[path]}") for name in fields.DOMAINS)
        for (inner, default, meaning, allowed), (_, other, *_) in zip(source, target, strict=True):
            both = default if default == other else f"{default} (source), {other} (target)"
            yield inner, both, meaning, allowed
        for name in (name for name in node if name not in fields.DOMAINS):
            yield from _rows(node[name], f"{path}.{name}")
    else:
        for name, inner in node.items():
            yield from _rows(inner, f"{path}.{name}".removeprefix("."))
