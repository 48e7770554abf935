"""Columns that give the label away: alone, or by whether they are missing. Imports no JAX.

In real tables no single measurement separates the classes; a column that does was often filled in
after the diagnosis, or in one class alone. Above `REFUSED` the run is refused, unless the column is
allowed by name, and also where a column is known, or missing, in one class alone; above `WARNED` a
line says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np
from scipy.stats import rankdata

from medtl.data import schema, telltale
from medtl.data.schema import Columns
from medtl.errors import UserError
from medtl.examples import is_quantity

WARNED, REFUSED = 0.9, 0.99
_BY_CHANCE = 1e-6
_HALVES = ("at most the median", "above the median")
_LEAST = 10  # examples of a class and of the others: fewer separate by chance


@dataclasses.dataclass(frozen=True)
class Finding:
    """A column that predicts a class.

    Attributes:
      column: its name.
      kind: "values", "missing cells", "known cells", or "texts with 'WORD'".
      name: the class.
      auroc: 0.5 to 1: below 0.5 counts as its distance from 1.
      count: the number of missing or known cells, if all are of that class; 0: they are not.
    """

    column: str
    kind: str
    name: str
    auroc: float
    count: int = 0

    @property
    def is_refused(self) -> bool:
        return self.auroc > REFUSED or self.count > 0

    def __str__(self) -> str:
        if self.count:
            return f"all {self.count} {self.kind} of {self.column!r} are of the class {self.name!r}"
        return (
            f"the {self.kind} of {self.column!r} predict {self.name!r} with AUROC {self.auroc:.3f}"
        )


def check(
    columns: Columns,
    inputs: Collection[str],
    label: np.ndarray,
    classes: tuple[str, ...],
    *,
    where: str,
    texts: Collection[str] = (),
    allow: Collection[str] = (),
) -> list[str]:
    """Refuse columns that give the label away; return lines on those that are allowed or close.

    Args:
      columns: the train rows'.
      inputs: the columns that the model reads.
      label: int[N], or float[N, K] of 0, 1 or NaN; a quantity float[N] counts as two classes,
        above its median and not.
      classes: the K names.
      where: the data set, for messages.
      texts: the columns of which each word is looked at, too.
      allow: columns that are accepted.

    Raises:
      UserError: names the columns.
    """
    if is_quantity(label):
        label, classes = (label > np.median(label)).astype(np.int32), _HALVES
    telling = [
        f
        for f in findings(columns, inputs, label, classes, texts)
        if f.auroc > WARNED or f.is_refused
    ]
    refused = [f for f in telling if f.is_refused and f.column not in allow]
    if refused:
        names = tuple(dict.fromkeys(f.column for f in refused))
        raise UserError(
            f"{where}: {'; '.join(map(str, refused[:3]))}: that may give the diagnosis away; "
            f"leave the column out (columns=({f'{names[0]}=ignore'!r},)), or, if it is known at "
            f"prediction, set config.data.allow_columns={names!r}"
        )
    return [
        f"{where}: {f}"
        + (" (allowed: allow_columns)" if f.is_refused else "; is it known at prediction?")
        for f in telling
    ]


def findings(
    columns: Columns,
    inputs: Collection[str],
    label: np.ndarray,
    classes: tuple[str, ...],
    texts: Collection[str] = (),
) -> Iterator[Finding]:
    """Yield, for each input column, its values', words' and missing cells' best AUROC.

    A category's score is the share of the class among its examples without the example itself, so
    that rare categories do not separate by chance. Arguments as those of `check`.
    """
    for name in inputs:
        values = columns.cells.get(name)
        if values is None:
            continue
        missing = schema.is_missing(values)
        yield from _best(name, "missing cells", missing, label, classes)
        rows = ~missing
        yield from _of_one_class(name, "missing cells", missing, label, classes)
        yield from _of_one_class(name, "known cells", rows, label, classes)
        if values.ndim == 2:  # the numbers of an embedding
            continue
        if values.dtype != object:
            yield from _best(name, "values", values[rows], label[rows], classes)
        elif len(set(values[rows])) <= schema.CATEGORIES:
            codes = np.unique(values[rows].astype(str), return_inverse=True)[1]
            yield from _best(name, "values", codes, label[rows], classes, is_coded=True)
        if name in texts and values.dtype == object:
            yield from _best_word(name, values[rows], label[rows], classes)


def _of_one_class(
    column: str, kind: str, rows: np.ndarray, label: np.ndarray, classes: tuple[str, ...]
) -> Iterator[Finding]:
    """Yield a finding where all these rows have one class, and chance would not do that."""
    n = int(rows.sum())
    if label.ndim == 2 or n < _LEAST or rows.all():
        return
    first = label[rows][0]
    share = np.mean(label == first)
    if np.all(label[rows] == first) and share**n < _BY_CHANCE:
        yield Finding(column, kind, classes[first], 0.0, n)


def _best(
    column: str,
    kind: str,
    score: np.ndarray,
    label: np.ndarray,
    classes: tuple[str, ...],
    *,
    is_coded: bool = False,
) -> Iterator[Finding]:
    best = Finding(column, kind, "", 0.0)
    for name, labelled, y in _by_class(label, classes):
        x = score[labelled]
        if is_coded:
            x = _share_of_others(x.astype(int), y)
        area = auroc(y, x)
        area = area if is_coded else max(area, 1 - area)
        if area > best.auroc:
            best = Finding(column, kind, name, area)
    if best.name:
        yield best


def _best_word(
    column: str, values: np.ndarray, label: np.ndarray, classes: tuple[str, ...]
) -> Iterator[Finding]:
    best = Finding(column, "", "", 0.0)
    for name, labelled, y in _by_class(label, classes):
        word, area = telltale.best_word(values[labelled], y)
        if area > best.auroc:
            best = Finding(column, f"texts with {word!r}", name, area)
    if best.name:
        yield best


def _by_class(
    label: np.ndarray, classes: tuple[str, ...]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the classes with enough examples: name, known rows, and which of these are of it."""
    numbered = list(enumerate(classes))
    if len(classes) == 2 and label.ndim == 1:
        numbered = numbered[1:]  # the other has the same area
    for k, name in numbered:
        is_class = label[:, k] == 1 if label.ndim == 2 else label == k
        labelled = ~np.isnan(label[:, k]) if label.ndim == 2 else label >= 0
        y = is_class[labelled]
        if min(y.sum(), len(y) - y.sum()) >= _LEAST:
            yield name, labelled, y


def _share_of_others(codes: np.ndarray, y: np.ndarray) -> np.ndarray:
    n, positive = np.bincount(codes), np.bincount(codes, weights=y)
    rest = n[codes] - 1
    return np.where(rest > 0, (positive[codes] - y) / np.maximum(rest, 1), y.mean())


def auroc(y: np.ndarray, x: np.ndarray) -> float:
    """Return the AUROC of a score, by the ranks of the positive ones (Mann and Whitney 1947).

    >>> auroc(np.array([False, False, True, True]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    n = int(y.sum())
    if x.dtype == bool:
        return float(0.5 + (x[y].mean() - x[~y].mean()) / 2)
    ranks = rankdata(x)[y].sum()
    return float((ranks - n * (n + 1) / 2) / (n * (len(y) - n)))
