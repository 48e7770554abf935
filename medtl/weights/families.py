"""The names of other families of checkpoints as torchvision's: wrappers, prefixes, name tables.

A checkpoint keeps its tensors under a key such as "state_dict", and a network that is part of a
larger one has a prefix, such as "backbone." or "module.encoder_q.". Neither is listed here: the
place and the prefix under which most of the backbone's names occur are found, and reported. Only
families that name the layers themselves differently have a table of rules.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from medtl.weights.name_tables import TABLES, Rules

T = TypeVar("T")
_DEPTH = 3  # of mappings in which a state_dict is looked for


def state_dict(
    content: Any, is_tensor: Callable[[Any], bool]
) -> tuple[Mapping[str, Any] | None, str]:
    """Find the tensors by name in the content of a checkpoint.

    Args:
      content: what the file holds, usually nested mappings.
      is_tensor: whether a value is a tensor.

    Returns:
      The mapping with the most tensors, or None where there is none; and a note on its key. Of
      several that are equally large "state_dict" is taken, then the first.

    >>> content = {"epoch": 3, "net": {"fc.bias": 1.5}}
    >>> state_dict(content, lambda value: isinstance(value, float))
    ({'fc.bias': 1.5}, 'tensors taken from "net"')
    """
    candidates = dict(_mappings(content, is_tensor, ""))
    if not candidates:
        return None, ""
    largest = max(map(len, candidates.values()))
    equal = [key for key, tensors in candidates.items() if len(tensors) == largest]
    key = "state_dict" if "state_dict" in equal else equal[0]
    others = ", ".join(f'"{other}"' for other in equal if other != key)
    note = f'tensors taken from "{key}"' if key else ""
    return candidates[key], f"{note}, not from {others}" if note and others else note


def _mappings(
    content: Any, is_tensor: Callable[[Any], bool], key: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the mappings of names to tensors, at the top or inside, by their keys."""
    if not isinstance(content, Mapping):
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and is_tensor(v)}
    if tensors:
        yield key, tensors
    elif key.count("/") < _DEPTH - 1:
        for name, inner in content.items():
            yield from _mappings(inner, is_tensor, f"{key}/{name}".removeprefix("/"))


def renamed(
    tensors: Mapping[str, T], wanted: Collection[str], counts: Callable[[str], bool]
) -> tuple[dict[str, T], tuple[str, ...]]:
    """Return the tensors under torchvision's names.

    Args:
      tensors: name in the file -> tensor.
      wanted: the names of the backbone's variables.
      counts: whether a name that is left out deserves a note; the classifier's do not.

    Returns:
      The tensors under the names that match most of the wanted ones, and notes on the change. They
      are the file's names unless others match more. Tensors outside of a prefix keep their names.

    >>> renamed({"net.0.weight": 1, "net.1.bias": 2}, {"conv1.weight", "bn1.bias"}, bool)[0]
    {'conv1.weight': 1, 'bn1.bias': 2}
    """
    best: dict[str, T] = dict(tensors)
    notes: tuple[str, ...] = ()
    most = sum(name in wanted for name in tensors)
    none: Rules = ()
    for family, rules in (("", none), *TABLES.items()):
        translated = {name: _translate(name, rules) for name in tensors}
        prefix, matches = _prefix(translated.values(), wanted)
        if matches <= max(most, len(wanted) / 3):  # a few names fit by chance
            continue
        most, outside = matches, [n for n in tensors if not translated[n].startswith(prefix)]
        best = {
            (translated[name].removeprefix(prefix) if name not in outside else name): tensor
            for name, tensor in tensors.items()
            if name not in outside or not counts(name)
        }
        left = [name for name in outside if counts(name)]
        notes = tuple(
            note
            for note in (
                f"names of {family}" if family else "",
                f"the prefix {prefix!r} of the names left out" if prefix else "",
                f"{len(left)} tensors outside of it are not used ({left[0]}, ...)" if left else "",
            )
            if note
        )
    return best, notes


def _translate(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _prefix(names: Collection[str], wanted: Collection[str]) -> tuple[str, int]:
    """Return the prefix, empty or ending in ".", under which most wanted names occur, and how many.

    Of several prefixes with equally many the first in the file is taken.
    """
    counts: collections.Counter[str] = collections.Counter()
    for name in names:
        start = 0
        while start >= 0:
            if name[start:] in wanted:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    return max(counts.items(), key=lambda item: item[1]) if counts else ("", 0)
