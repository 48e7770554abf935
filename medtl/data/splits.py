"""Who is in train, val and test: drawing splits and training subsets, and refusing those that cannot be used.

Refuses duplicate ids, a patient in two splits, a class that is evaluated but never trained, and a split with one class
(its AUROC would be undefined).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from medtl.data.table import Table
from medtl.errors import UserError

NAMES = ("train", "val", "test")
ALIASES = {"valid": "val", "validation": "val"}


def assign(
    label: np.ndarray, fractions: Sequence[float], *, seed: int, patient: np.ndarray | None = None
) -> np.ndarray:
    """Draws a stratified split in which no patient is in two parts; see `parts`.

    Args:
      label: int[N], or float[N, K] (NaN counts as 0).
      fractions: of train, val and test; they sum to 1, and a 0 leaves that split empty.
      seed: of the order.
      patient: str[N], "" where not known: such a row is a patient of its own.

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
    """Cuts rows into stratified parts in which no patient is in two.

    The patients, in random order and those with the most images first, go one by one to the part that lacks most of
    what they bring: the one with the greatest sum over classes of `images * (wanted - present) / total`. Without
    patients every class is within one image of its fraction. Depends on the order of the rows and on nothing else.

    Args:
      label: int[N], or float[N, K] (NaN counts as 0).
      fractions: of the parts; they sum to 1, and a 0 leaves that part empty.
      key: numbers from which the order is drawn.
      patient: str[N], "" where not known: such a row is a patient of its own.

    Returns:
      int64[N], the part of each row.
    """
    content = _strata(label)
    n = len(content)
    group = np.arange(n)
    if patient is not None:
        _, known = np.unique(patient, return_inverse=True)
        group = np.unique(np.where(patient == "", np.arange(n) + n, known), return_inverse=True)[1]
    size = np.bincount(group)
    brings = np.stack([np.bincount(group, weights=column) for column in content.T], axis=1)

    total = np.maximum(content.sum(0), 1.0)
    lacking = np.outer(np.asarray(fractions, np.float64), content.sum(0))
    order = np.random.default_rng(list(key)).permutation(len(size))
    order = order[np.argsort(-size[order], kind="stable")]
    chosen = np.zeros(len(size), np.int64)
    for g in order:
        chosen[g] = best = np.argmax(lacking @ (brings[g] / total))
        lacking[best] -= brings[g]
    return chosen[group]


def subset_order(label: np.ndarray, *, seed: int) -> np.ndarray:
    """int64[N], a random order in which the first n rows are stratified for every n, so that smaller subsets nest in larger.

    The k-th row of a class of n_c rows stands at k / n_c: first one of each class, then in proportion. Rows with the
    same set of diagnoses make a class where an example may have several.
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
) -> Table:
    """The table with a split drawn where it has none, cut down to `train_size`, and checked.

    A data set whose only split is train counts as one without a split.

    Raises:
      UserError: for what cannot be trained or evaluated on.
    """
    if not len(table):
        raise UserError(f"{table.origin} holds no example; {key} needs at least one")
    _check_ids(table)
    if not require_label:
        return table.unlabelled()
    drawn: Sequence[float] = ()
    if table.split is None or (require_train and set(table.split) == {"train"}):
        check_fractions(fractions, key, require_train)
        drawn = tuple(fractions)
        table = dataclasses.replace(
            table, split=assign(table.label, fractions, seed=seed, patient=table.patient)
        )
    assert table.split is not None
    _check_patients(table, table.split)
    if train_size:
        table = _first_of_train(table, table.split, train_size, seed, key)
    assert table.split is not None
    _check_classes(table, table.split, key, require_train)
    for name, fraction in zip(NAMES, drawn, strict=False):
        if fraction > 0 and not np.any(table.split == name):
            raise UserError(
                f"{table.origin}: {len(table)} examples are too few to draw split {name} from, {fraction:g} of them with "
                f"patients kept together; change {key}.split"
            )
    return table


def check_fractions(fractions: Sequence[float], key: str, require_train: bool) -> None:
    """Raises UserError where they are not three fractions that sum to 1, or train gets nothing."""
    values = [float(f) for f in fractions]
    if len(values) != 3 or not all(0 <= f <= 1 for f in values) or abs(sum(values) - 1) > 1e-6:
        raise UserError(
            f"{key}.split is {tuple(fractions)}; it is the fractions of train, val and test and sums to 1"
        )
    if require_train and not values[0]:
        raise UserError(
            f"{key}.split is {tuple(fractions)}: train would be empty; give it more than 0"
        )


def _strata(label: np.ndarray) -> np.ndarray:
    """float64[N, K + 1]: which classes a row holds, and a 1, so that rows without a class are spread out too."""
    if label.ndim == 2:
        content = np.nan_to_num(label)
    else:
        content = (label[:, None] == np.unique(label)).astype(np.float64)
    return np.concatenate([content, np.ones((len(label), 1))], axis=1)


def _first_of_train(table: Table, split: np.ndarray, train_size: int, seed: int, key: str) -> Table:
    train = np.flatnonzero(split == "train")
    if not 0 < train_size <= len(train):
        raise UserError(
            f"{key}.train_size is {train_size}; train has {len(train)} examples, so 0 (all) to {len(train)}"
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


def _check_patients(table: Table, split: np.ndarray) -> None:
    if table.patient is None:
        return
    seen: dict[str, int] = {}
    crossing: dict[str, tuple[int, int]] = {}
    for row, name in enumerate(table.patient):
        if name and split[seen.setdefault(name, row)] != split[row]:
            crossing.setdefault(name, (seen[name], row))
    if crossing:
        name, (one, two) = next(iter(crossing.items()))
        raise UserError(
            f"{table.origin}: patient {str(name)!r} is in {split[one]} ({table.where(one)}) and in {split[two]} "
            f"({table.where(two)}); {len(crossing)} such: each patient belongs in one split"
        )


def _present(table: Table, rows: np.ndarray) -> np.ndarray:
    """bool[K], which classes occur among the rows."""
    if table.label.ndim == 2:
        return (table.label[rows] == 1).any(0)
    return np.bincount(table.label[rows], minlength=len(table.classes)) > 0


def _check_classes(table: Table, split: np.ndarray, key: str, require_train: bool) -> None:
    """Refuses an empty train, a split with one class, and a class that only val or test has."""
    present = {
        name: _present(table, np.flatnonzero(split == name))
        for name in NAMES
        if np.any(split == name)
    }
    if require_train and "train" not in present:
        raise UserError(
            f"{table.origin}: split train is empty; it has {', '.join(present)}. {key} needs examples to train on"
        )
    for name, classes in present.items():
        if table.label.ndim == 1 and classes.sum() < 2:
            only = table.classes[int(np.argmax(classes))]
            raise UserError(
                f"{table.origin}: split {name} has {int((split == name).sum())} example(s), all of the class {only!r}; "
                f"{key} needs two classes or more in it"
            )
    if table.label.ndim == 2 and require_train and not present["train"].any():
        raise UserError(
            f"{table.origin}: no example in split train has any of the diagnoses {table.classes}"
        )
    for name in ("val", "test"):
        lacking = (
            np.flatnonzero(present[name] & ~present["train"])
            if {name, "train"} <= present.keys()
            else ()
        )
        for c in lacking:
            has = table.label[:, c] == 1 if table.label.ndim == 2 else table.label == c
            row = np.flatnonzero(has & (split == name))[0]
            raise UserError(
                f"{table.origin}, {table.where(row)}: label {table.classes[c]!r} occurs in {name} but not in train; "
                f"train has {', '.join(table.classes[k] for k in np.flatnonzero(present['train']))}"
            )
    if require_train and not (table.weight[split == "train"] > 0).any():
        raise UserError(f"{table.origin}, column weight: the weights of train are all 0")
