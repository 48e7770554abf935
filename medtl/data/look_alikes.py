"""Names that look alike: patients `7` and `7.0`, `p1x` and `P1X`, ids with invisible characters.

Two spellings of one patient in train and in test are a leak that equal names would have shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from medtl.data.labels import plain, spelled
from medtl.data.table import Table
from medtl.data.values import settle

_SHOWN = 3  # pairs in a message


def plain_patient(text: str) -> str:
    """Return `labels.plain` in lower case, a number in its one spelling.

    >>> plain_patient("7.0"), plain_patient("P1X")
    ('7', 'p1x')
    """
    return spelled(plain(text).casefold())


def check(table: Table, split: np.ndarray, *, allow: Sequence[str], all_held_out: bool) -> Table:
    """Refuse names that differ in spelling alone, in two splits; in one split a note says so.

    Args:
      table: the examples.
      split: str[N].
      allow: names of `values.CHECKS`.
      all_held_out: every example is held out at some time, so that one split is two parts.

    Returns:
      The table, with a note on what is allowed or in one split.

    Raises:
      UserError: names the first pairs.
    """
    notes = []
    columns: list[tuple[str, np.ndarray | None, Callable[[str], str]]] = [
        ("patients", table.patient, plain_patient),
        ("ids", table.id, plain),
    ]
    for word, names, folded in columns:
        pairs = [] if names is None else _pairs(names, folded)
        # An id may occur once; a patient has a split of its own, which is checked elsewhere.
        crossing = [(i, j) for i, j in pairs if all_held_out or split[i] != split[j]]
        for found, where in ((crossing, "in two parts of the data"), (pairs, "in one split")):
            if not found or (found is pairs and crossing):
                continue
            assert names is not None
            shown = ", ".join(
                f"{str(names[i])!a} ({split[i]}, {table.where(i)}) and "
                f"{str(names[j])!a} ({split[j]}, {table.where(j)})"
                for i, j in found[:_SHOWN]
            )
            more = " ..." if len(found) > _SHOWN else ""
            finding = (
                f"{table.origin}: {len(found)} pair{'s' * (len(found) > 1)} of {word} "
                f"{where} differ in spelling alone: {shown}{more}"
            )
            if found is crossing:
                finding = settle(finding, "write each in one way", "look_alikes", allow)
            notes.append(finding)
    return dataclasses.replace(table, notes=(*table.notes, *notes)) if notes else table


def _pairs(names: np.ndarray, folded: Callable[[str], str]) -> list[tuple[int, int]]:
    """Return for each spelling after the first its first row, with that of the first spelling."""
    distinct, first = np.unique(names, return_index=True)
    seen: dict[str, int] = {}
    pairs = []
    for row in sorted(first[distinct != ""].tolist()):
        other = seen.setdefault(folded(str(names[row])), row)
        if other != row:
            pairs.append((other, row))
    return pairs
