"""Draws splits into train, val and test, and subsets of train.

Refuses duplicate ids, a patient in two splits, a class that is evaluated but never trained, and a
split with one class (its AUROC would be undefined).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from medtl.data import look_alikes
from medtl.data.table import Table
from medtl.data.values import settle
from medtl.errors import UserError
from medtl.examples import is_quantity

NAMES = ("train", "val", "test")
ALIASES = {"valid": "val", "validation": "val"}


def assign(
    label: np.ndarray, fractions: Sequence[float], *, seed: int, patient: np.ndarray | None = None
) -> np.ndarray:
    """Draw a stratified split in which no patient is in two parts; see `parts`.

    Args:
      label: int[N], or float[N, K] (NaN counts as 0).
      fractions: the fractions of train, val and test; they sum to 1, and a 0 leaves that split
        empty.
      seed: the seed of the order.
      patient: str[N], "" where unknown: such a row is a patient of its own.

    Returns:
      str[N], "train", "val" or "test".
    """
    return np.asarray(NAMES)[parts(label, fractions, key=(seed, 0), patient=patient)]


def parts(
    label: np.ndarray,
    fractions: Sequence[float],
    *,
    key: Sequence[int],
    patient: np.ndarray | None = None,
) -> np.ndarray:
    """Divide rows into stratified parts such that no patient is in two.

    The patients are taken in random order, those with the most images first. Each goes to the part
    that lacks its images most: the one with the greatest sum over classes of
    `images * (wanted - present) / total`. Without patients every class is within one image of its
    fraction. The result depends on the order of the rows.

    Args:
      label: int[N], or float[N, K] (NaN counts as 0).
      fractions: the fractions of the parts; they sum to 1, and a 0 leaves that part empty.
      key: numbers from which the order is drawn.
      patient: str[N], "" where unknown: such a row is a patient of its own.

    Returns:
      int64[N], the part of each row.
    """
    content = _strata(label)
    n = len(content)
    group = np.arange(n)
    if patient is not None:
        _, number = np.unique(patient, return_inverse=True)
        group = np.unique(np.where(patient == "", np.arange(n) + n, number), return_inverse=True)[1]
    size = np.bincount(group)
    images = np.stack([np.bincount(group, weights=column) for column in content.T], axis=1)

    total = np.maximum(content.sum(0), 1.0)
    lacking = np.outer(np.asarray(fractions, np.float64), content.sum(0))
    order = np.random.default_rng(list(key)).permutation(len(size))
    order = order[np.argsort(-size[order], kind="stable")]
    part = np.zeros(len(size), np.int64)
    for g in order:
        part[g] = best = np.argmax(lacking @ (images[g] / total))
        lacking[best] -= images[g]
    return part[group]


def subset_order(label: np.ndarray, *, seed: int) -> np.ndarray:
    """Return a random order whose first n rows are stratified for every n.

    Smaller subsets are therefore nested in larger ones. The rows are sorted by k / n_c, where a row
    is the k-th of the n_c rows of its class: first one row of each class, then rows in proportion.
    Where an example may have several diagnoses, rows with the same set of them make a class.

    Args:
      label: int[N], or float[N, K] (NaN counts as 0).
      seed: the seed of the order.

    Returns:
      int64[N], the rows.

    >>> label = np.array([0, 0, 0, 0, 1, 1])
    >>> order = subset_order(label, seed=0)
    >>> np.bincount(label[order[:3]]), np.bincount(label[order])
    (array([2, 1]), array([4, 2]))
    """
    _, stratum = np.unique(_strata(label), axis=0, return_inverse=True)
    stratum = stratum.reshape(-1)
    order = np.random.default_rng([seed, 1]).permutation(len(stratum))
    position = np.empty(len(stratum))
    for value in np.unique(stratum):
        rows = order[stratum[order] == value]
        position[rows] = np.arange(len(rows)) / len(rows)
    return order[np.argsort(position[order], kind="stable")]


def complete(
    table: Table,
    *,
    fractions: Sequence[float],
    seed: int,
    train_size: int,
    key: str,
    require_label: bool,
    require_train: bool,
    allow: Sequence[str] = (),
    all_held_out: bool = False,
) -> Table:
    """Draw a split where the table has none, reduce train to `train_size`, and check the result.

    A data set whose only split is train counts as one without a split. A class that no example has
    is left out, with a note.

    Raises:
      UserError: the table cannot be trained or evaluated on.
    """
    if not len(table):
        raise UserError(f"{table.origin} holds no example; {key} needs at least one")
    _check_ids(table)
    if not require_label:
        return table.unlabelled()
    table = _without_absent_classes(table)
    drawn: Sequence[float] = ()
    if table.split is None or (require_train and set(table.split) == {"train"}):
        check_fractions(fractions, key, require_train)
        drawn = tuple(fractions)
        table = dataclasses.replace(
            table, split=assign(table.label, fractions, seed=seed, patient=table.patient)
        )
    assert table.split is not None
    table = _check_patients(table, table.split, allow)
    assert table.split is not None
    table = look_alikes.check(table, table.split, allow=allow, all_held_out=all_held_out)
    assert table.split is not None
    if train_size:
        table = _first_of_train(table, table.split, train_size, seed, key)
    assert table.split is not None
    _check_classes(table, table.split, key, require_train)
    for name, fraction in zip(NAMES, drawn, strict=False):
        if fraction > 0 and not np.any(table.split == name):
            raise UserError(
                f"{table.origin}: {len(table)} examples are too few to draw split {name} from, "
                f"{fraction:g} of them with patients kept together; change {key}.split"
            )
    return table


def check_fractions(fractions: Sequence[float], key: str, require_train: bool) -> None:
    """Raise UserError unless they are three fractions that sum to 1 and give train something."""
    values = [float(f) for f in fractions]
    if len(values) != 3 or not all(0 <= f <= 1 for f in values) or abs(sum(values) - 1) > 1e-6:
        raise UserError(
            f"{key}.split is {tuple(fractions)}; "
            "it is the fractions of train, val and test and sums to 1"
        )
    if require_train and not values[0]:
        raise UserError(
            f"{key}.split is {tuple(fractions)}: train would be empty; give it more than 0"
        )


def _strata(label: np.ndarray) -> np.ndarray:
    """Return float64[N, K + 1]: 1 for each class of a row, then a 1 for the row itself.

    The last column spreads rows without a class over the parts, too.
    """
    if label.ndim == 2:
        content = np.nan_to_num(label)
    else:
        label = _tenths(label) if is_quantity(label) else label
        content = (label[:, None] == np.unique(label)).astype(np.float64)
    return np.concatenate([content, np.ones((len(label), 1))], axis=1)


def _tenths(label: np.ndarray) -> np.ndarray:
    """Return int64[N], the tenth of the examples, by its quantity, to which each belongs."""
    return np.digitize(label, np.quantile(label, np.arange(1, 10) / 10))


def _first_of_train(table: Table, split: np.ndarray, train_size: int, seed: int, key: str) -> Table:
    train = np.flatnonzero(split == "train")
    if not 0 < train_size <= len(train):
        raise UserError(
            f"{key}.train_size is {train_size}; train has {len(train)} examples, "
            f"so it can be 0 (all) to {len(train)}"
        )
    kept = train[subset_order(table.label[train], seed=seed)[:train_size]]
    return table.take(np.sort(np.concatenate([kept, np.flatnonzero(split != "train")])))


def _check_ids(table: Table) -> None:
    ids, first, count = np.unique(table.id, return_index=True, return_counts=True)
    if len(ids) == len(table):
        return
    name = ids[count > 1][np.argmin(first[count > 1])]
    one, two = np.flatnonzero(table.id == name)[:2]
    raise UserError(
        f"{table.origin}: {table.where(one)} and {table.where(two)} have the same id {str(name)!r} "
        f"({int((count > 1).sum())} ids occur more than once); every example needs an id of its own"
    )


def _check_patients(table: Table, split: np.ndarray, allow: Sequence[str]) -> Table:
    """Refuse a patient in two splits; where that is allowed, return the table with a note."""
    if table.patient is None:
        return table
    seen: dict[str, int] = {}
    crossing: dict[str, tuple[int, int]] = {}
    for row, name in enumerate(table.patient):
        if name and split[seen.setdefault(name, row)] != split[row]:
            crossing.setdefault(name, (seen[name], row))
    if not crossing:
        return table
    name, (one, two) = next(iter(crossing.items()))
    more = f"; so are {len(crossing) - 1} more patients" if len(crossing) > 1 else ""
    finding = (
        f"{table.origin}: patient {str(name)!r} is in {split[one]} ({table.where(one)}) and in "
        f"{split[two]} ({table.where(two)}){more}"
    )
    note = settle(finding, "each patient belongs in one split", "patient_in_two_splits", allow)
    return dataclasses.replace(table, notes=(*table.notes, note))


def _without_absent_classes(table: Table) -> Table:
    """Leave out the classes that no example has, where an example has one diagnosis."""
    if table.label.ndim == 2 or is_quantity(table.label) or table.label.min() < 0:
        return table
    present = np.flatnonzero(_present(table, np.arange(len(table))))
    absent = sorted(set(table.classes) - {table.classes[c] for c in present})
    if not absent:
        return table
    return dataclasses.replace(
        table,
        label=np.searchsorted(present, table.label).astype(np.int32),
        classes=tuple(table.classes[c] for c in present),
        notes=(
            *table.notes,
            f"{table.origin}: no example has {', '.join(map(repr, absent))}: "
            f"{len(absent)} of {len(table.classes)} classes are left out",
        ),
    )


def _present(table: Table, rows: np.ndarray) -> np.ndarray:
    """Return bool[K], whether each class occurs among the rows."""
    if table.label.ndim == 2:
        return (table.label[rows] == 1).any(0)
    return np.bincount(table.label[rows], minlength=len(table.classes)) > 0


def _check_classes(table: Table, split: np.ndarray, key: str, require_train: bool) -> None:
    """Refuse an empty train, a split with one class, and a class that only val or test has."""
    if is_quantity(table.label):
        _check_quantity(table, split, key, require_train)
        return
    present = {
        name: _present(table, np.flatnonzero(split == name))
        for name in NAMES
        if np.any(split == name)
    }
    if require_train and "train" not in present:
        raise UserError(
            f"{table.origin}: split train is empty; it has {', '.join(present)}. "
            f"{key} needs examples to train on"
        )
    for name, classes in present.items():
        if table.label.ndim == 1 and classes.sum() < 2:
            only = table.classes[int(np.argmax(classes))]
            raise UserError(
                f"{table.origin}: split {name} has {int((split == name).sum())} example(s), "
                f"all of the class {only!r}; {key} needs two classes or more in it"
            )
    if table.label.ndim == 2 and require_train and not present["train"].any():
        raise UserError(
            f"{table.origin}: no example in split train has any of the diagnoses {table.classes}"
        )
    for name in ("val", "test"):
        untrained = (
            np.flatnonzero(present[name] & ~present["train"])
            if {name, "train"} <= present.keys()
            else ()
        )
        for c in untrained:
            has = table.label[:, c] == 1 if table.label.ndim == 2 else table.label == c
            row = np.flatnonzero(has & (split == name))[0]
            raise UserError(
                f"{table.origin}, {table.where(row)}: label {table.classes[c]!r} occurs in {name} "
                "but not in train; train has "
                f"{', '.join(table.classes[k] for k in np.flatnonzero(present['train']))}"
            )
    _check_weights(table, split, require_train)


def _check_quantity(table: Table, split: np.ndarray, key: str, require_train: bool) -> None:
    """Refuse an empty train, and a split in which all examples have one value."""
    for name in NAMES:
        values = table.label[split == name]
        if name == "train" and require_train and not len(values):
            raise UserError(f"{table.origin}: split train is empty; {key} needs it to train on")
        if len(values) and values.min() == values.max():
            raise UserError(
                f"{table.origin}: split {name} has {len(values)} example(s), all of the value "
                f"{values[0]:g}; {key} needs different ones in it"
            )
    _check_weights(table, split, require_train)


def _check_weights(table: Table, split: np.ndarray, require_train: bool) -> None:
    if require_train and not (table.weight[split == "train"] > 0).any():
        raise UserError(f"{table.origin}, column weight: the weights of train are all 0")
