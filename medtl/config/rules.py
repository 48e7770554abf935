"""Parts of a config's declaration: fields with the rules for their values, and kinds of sections.

A field has a default, whose type is the field's type, a meaning, and rules. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from medtl import plugins
from medtl.errors import UserError, nearest
from medtl.examples import NORMALIZATIONS, is_group, parse_normalization

KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a tuple, on the command line values joined by commas",
    ConfigDict: "a dict literal",
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A requirement beyond the type: `fits(value)`; `words` completes "it must be"."""

    words: str
    fits: Callable[[Any], Any]

    def check(self, value: Any, key: str) -> None:
        """Raise UserError for a value that does not fit."""
        try:
            is_fitting = self.fits(value)
        except TypeError:  # the items of a tuple can be of any type, also dicts
            is_fitting = False
        if not is_fitting:
            raise UserError(f"{key} is {value!r}; it must be {self.words}")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The value is one of a few."""

    choices: tuple[Any, ...]

    @property
    def words(self) -> str:
        """The choices, for the documentation."""
        return ", ".join(map(repr, self.choices))

    def check(self, value: Any, key: str) -> None:
        """Raise UserError for a value that is none of them; names the nearest."""
        choose(value, self.choices, key)


class _Normalization(Rule):
    """The value is "auto", or as `examples.parse_normalization` takes it."""

    def check(self, value: Any, key: str) -> None:
        """Raise UserError for a value that does not fit."""
        if value != "auto":
            parse_normalization(value, key=key)


NORMALIZATION = _Normalization(
    ", ".join(
        [*map(repr, ("auto", *NORMALIZATIONS)), "'mean(123.7,116.3,103.5) std(58.4,57.1,57.4)'"]
    ),
    bool,
)


@dataclasses.dataclass(frozen=True)
class PluginString:
    """The value is a plug-in string or a tuple of plug-in strings.

    Attributes:
      module: the module in which a bare name is looked up; empty: a file or module is named.
      names: the names that the config itself knows; other bare names need options, as they are
        then functions of `module`.
      optional: whether the value may be empty.
      needs: bare name -> the module that it imports and the extra of medtl that brings it.
    """

    module: str = ""
    names: tuple[str, ...] = ()
    optional: bool = False
    needs: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def words(self) -> str:
        """The names, for the documentation."""
        bare = [f"a name in {self.module}"] if self.module else []
        names = [*map(repr, self.names), *bare, "'file.py:name(option=1)'"]
        return ", ".join(names)

    def check(self, value: Any, key: str) -> None:
        """Raise UserError for text that is no plug-in string, or a bare name that is not known."""
        if value == "" and not self.optional:
            raise UserError(f"{key} is empty; it must name a function or class")
        for text_key, text in self.texts(value, key).items():
            if not isinstance(text, str):
                raise UserError(f"{text_key} is {text!r}; it must be a string")
            spec = plugins.parse(text, key=text_key)
            is_bare = not (spec.module or spec.args or spec.kwargs)
            if self.names and is_bare and spec.name not in self.names:
                raise UserError(
                    f"{text_key} is {text!r}{nearest(spec.name, self.names)},"
                    f" or a function of {self.module} with its options"
                )

    def check_installed(self, value: Any, key: str) -> None:
        """Raise UserError for a bare name whose module is not installed; imports nothing."""
        for text_key, text in self.texts(value, key).items():
            spec = plugins.parse(text, key=text_key)
            module, extra = ("", "") if spec.module else self.needs.get(spec.name, ("", ""))
            if module and importlib.util.find_spec(module) is None:
                raise UserError(
                    f'{text_key} is {text!r}, which needs {module}: pip install "medtl[{extra}]"'
                )

    @staticmethod
    def texts(value: Any, key: str) -> dict[str, Any]:
        """Return key -> plug-in string; a tuple's keys end in "[0]", "[1]", ..."""
        if isinstance(value, tuple):
            return {f"{key}[{i}]": text for i, text in enumerate(value)}
        return {key: value} if value else {}


@dataclasses.dataclass(frozen=True, init=False)
class Field:
    """One field.

    Attributes:
      default: the default; its type is the field's type.
      meaning: one or two sentences for the documentation.
      rules: what a value must fulfil beyond its type.
    """

    default: Any
    meaning: str
    rules: tuple[Rule | Choice | PluginString, ...]

    def __init__(self, default: Any, meaning: str, *rules: Rule | Choice | PluginString):
        object.__setattr__(self, "default", default)
        object.__setattr__(self, "meaning", meaning)
        object.__setattr__(self, "rules", rules)

    @property
    def plugin(self) -> PluginString | None:
        """The rule for plug-in strings, None where the field is not one."""
        return next((rule for rule in self.rules if isinstance(rule, PluginString)), None)

    @property
    def allowed(self) -> str:
        """The type and the rules in words."""
        if self.rules and isinstance(self.rules[0], Choice):
            return self.rules[0].words
        kind = KINDS[type(self.default)].partition(",")[0]
        return ", ".join([kind, *(rule.words for rule in self.rules)])

    def check(self, value: Any, key: str) -> None:
        """Raise UserError for a value of another type, or that breaks a rule."""
        wanted = type(self.default)
        is_number = wanted is float and type(value) in (int, float)
        if not (is_number or type(value) is wanted):
            raise UserError(f"{key} is {value!r}; it must be {KINDS[wanted]}")
        if is_number and not math.isfinite(value):
            raise UserError(f"{key} is {value!r}; it must be a finite number")
        for rule in self.rules:
            rule.check(value, key)


@dataclasses.dataclass(frozen=True)
class Entries:
    """A section to which a config may add entries of any name.

    Attributes:
      entry: the fields of an entry, or the one field that it is.
      given: the entries of the default.
      word: the placeholder for an entry's name in the documentation.
      least: what an empty section lacks, e.g. "at least one loss"; "": it may be empty.
    """

    entry: Node
    given: Mapping[str, Node] = dataclasses.field(default_factory=dict)
    word: str = "NAME"
    least: str = ""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A section that mirrors the config's paths; each holds a tuple of values to try."""

    meaning: str


Node = Field | Entries | Grid | dict[str, Any]


def build(node: Node) -> Any:
    """Return the default of a node: a value or a nested dict."""
    if isinstance(node, Field):
        return node.default
    if isinstance(node, Grid):
        return {}
    nodes = node.given if isinstance(node, Entries) else node
    return {name: build(inner) for name, inner in nodes.items()}


def changed(section: Mapping[str, Node], **defaults: Any) -> dict[str, Node]:
    """Return the fields of a section with other defaults."""
    fields = dict(section)
    for name, default in defaults.items():
        field = section[name]
        assert isinstance(field, Field)
        fields[name] = Field(default, field.meaning, *field.rules)
    return fields


def choose(value: Any, choices: Collection[Any], key: str) -> None:
    """Raise UserError where `value` is none of `choices`; names the nearest."""
    if value not in choices:
        raise UserError(f"{key} is {value!r}{nearest(str(value), map(str, choices))}")


def one_of(*choices: Any) -> Choice:
    """Return the rule that a value is one of `choices`."""
    return Choice(choices)


def at_least(least: float) -> Rule:
    """Return the rule value >= least."""
    return Rule(f"at least {least}", lambda value: value >= least)


def between(low: float, high: float, unit: str = "") -> Rule:
    """Return the rule low <= value <= high."""
    return Rule(f"in {low} .. {high}{unit}", lambda value: low <= value <= high)


def each(words: str, fits: Callable[[Any], Any]) -> Rule:
    """Return the rule that every item of a tuple fits."""
    return Rule(words, lambda values: all(map(fits, values)))


def is_unique(values: Collection[Any]) -> bool:
    """Return whether no value is given twice; 1 and 1.0 are the same.

    >>> is_unique((1, 2)), is_unique((1, 1.0))
    (True, False)
    """
    return len(set(values)) == len(values)


SHARE = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
GROUPS = Rule('"", "site", "subgroup" or "subgroup_NAME"', lambda name: not name or is_group(name))
INSIDE = Rule("above 0 and below 1", lambda value: 0 < value < 1)
UNIQUE = Rule("without repetition", is_unique)
NAME = Rule(
    "letters, digits, '_', '-' and '.', after a letter or digit",
    re.compile(r"[A-Za-z0-9][\w.+-]*").fullmatch,
)


def _is_split(value: tuple[Any, ...]) -> bool:
    if len(value) != 3 or not all(type(f) in (int, float) for f in value):
        return value == ()
    return min(value) >= 0 and value[0] > 0 and math.isclose(sum(value), 1.0, abs_tol=1e-6)


def _is_sizes(value: tuple[Any, ...]) -> bool:
    return is_unique(value) and all(
        size == "all" or (str(size).isdecimal() and int(size) >= 1) for size in value
    )


SPLIT = Rule(
    "(), or three fractions (train, val, test) that sum to 1, with train above 0", _is_split
)
SIZES = Rule("different numbers of labels of at least 1, or 'all'", _is_sizes)
