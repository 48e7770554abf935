"""Which examples of the target train, choose and test a model: the data's own split, folds of cross-validation, nested subsets.

A *cell* is one such division; every arm and seed is trained once in each. Folds are stratified and keep a patient's images
together, and so does the val part that is cut from what a fold trains on: the test fold is never looked at before the end.
Refuses folds that could not be trained on. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from medtl.data import splits
from medtl.errors import UserError
from medtl.examples import Examples, class_counts

UNUSED = ""  # the split of a train row that a learning curve's smaller subset leaves out


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One division of the target's examples.

    Attributes:
      split: str[N], "train", "val", "test", or `UNUSED`.
      repeat: of the cross-validation; None without one.
      fold: the one that is tested on; None without cross-validation.
      size: the number of train labels of a learning curve's subset; None: all.
    """

    split: np.ndarray
    repeat: int | None = None
    fold: int | None = None
    size: int | None = None

    @property
    def path(self) -> str:
        """Its folder within an arm's, such as "repeat_0/fold_3/size_50"; empty for the data's own split."""
        named = (("repeat", self.repeat), ("fold", self.fold), ("size", self.size))
        return "/".join(f"{name}_{value}" for name, value in named if value is not None)

    def of(self, examples: Examples) -> Examples:
        """The examples with this division as their split."""
        digest = hashlib.sha256(f"{examples.split_hash}/{self.path}".encode())
        digest.update("\0".join(self.split).encode())
        return dataclasses.replace(examples, split=self.split, split_hash=digest.hexdigest())


def cells(config: Any, target: Examples, seed: int) -> list[Cell]:
    """Every cell of an experiment; those with all train labels first of their fold.

    Folds depend on `config.data.target.split_seed` alone, so that all seeds share them; subsets of a learning curve also on the
    seed. Those of one seed and fold are nested: the first n rows of one stratified order.

    Args:
      config: the experiment's config.
      target: the target's examples.
      seed: the experiment's seed.

    Raises:
      UserError: a fold lacks a class that it should train on, or has fewer train labels than a learning curve asks for.
    """
    found = []
    for i, cell in enumerate(
        _folds(config, target) if config.evaluation.folds else [Cell(target.split)]
    ):
        found.append(cell)
        found += _subsets(
            cell, target, _sizes(config), key=[config.data.target.split_seed, 3, seed, i]
        )
    return found


def largest(every: Sequence[Cell]) -> int:
    """The number of train labels in the cell that has most; so many all cells count as when epochs become steps."""
    return max(int(np.sum(cell.split == "train")) for cell in every)


def folds(
    label: np.ndarray,
    *,
    n_folds: int,
    repeat: int = 0,
    seed: int = 0,
    patient: np.ndarray | None = None,
) -> np.ndarray:
    """Stratified folds in which no patient is in two.

    Args:
      label: int[N], or float[N, K] (NaN counts as 0).
      n_folds: how many.
      repeat: another number draws other folds.
      seed: so does another seed.
      patient: str[N], "" where not known; None: each row is a patient of its own.

    Returns:
      int64[N], the fold in which each row is tested.
    """
    return splits.parts(label, [1 / n_folds] * n_folds, key=(seed, 2, repeat), patient=patient)


def table(target: Examples, every: Sequence[Cell]) -> Iterator[tuple[str, ...]]:
    """The rows of folds.csv: a header, and of each cell with all its labels every example with its split."""
    yield "repeat", "fold", "id", "split"
    for cell in every:
        if cell.fold is not None and cell.size is None:
            for example, split in zip(target.id, cell.split, strict=True):
                yield str(cell.repeat), str(cell.fold), str(example), str(split)


def _folds(config: Any, target: Examples) -> Iterator[Cell]:
    c, data = config.evaluation, config.data.target
    patients = len(target) if target.patient is None else len(set(target.patient))
    if patients < c.folds:
        raise UserError(
            f"config.evaluation.folds is {c.folds}, but {target.name} has {patients} patients"
        )
    held = data.split[1] / (data.split[0] + data.split[1])
    for repeat in range(c.repeats):
        fold_of = folds(
            target.label,
            n_folds=c.folds,
            repeat=repeat,
            seed=data.split_seed,
            patient=target.patient,
        )
        for fold in range(c.folds):
            split = np.where(fold_of == fold, "test", "train")
            rest = np.flatnonzero(fold_of != fold)
            chosen = splits.parts(
                target.label[rest],
                (1 - held, held),
                key=(data.split_seed, 4, repeat, fold),
                patient=None if target.patient is None else target.patient[rest],
            )
            split = split.astype("<U5")
            split[rest[chosen == 1]] = "val"
            _check_fold(
                target, split, f"fold {fold} of repeat {repeat}", c.folds, with_val=held > 0
            )
            yield Cell(split, repeat, fold)


def _check_fold(
    target: Examples, split: np.ndarray, where: str, n_folds: int, *, with_val: bool
) -> None:
    for part in ("train", "val", "test") if with_val else ("train", "test"):
        label = target.label[split == part]
        if not len(label):
            raise UserError(
                f"config.evaluation.folds is {n_folds}: {where} has an empty {part} part; use fewer folds"
            )
        absent = [name for name, n in class_counts(label, target.classes).items() if not n]
        if absent and part == "train":
            raise UserError(
                f"config.evaluation.folds is {n_folds}: {where} has no {absent[0]!r} to train on; {target.name} has too few "
                "patients of that class"
            )


def _sizes(config: Any) -> list[int]:
    """The sizes of the learning curve below "all", from small to large."""
    return sorted(int(size) for size in config.evaluation.target_sizes if size != "all")


def _subsets(
    cell: Cell, target: Examples, sizes: Sequence[int], *, key: Sequence[int]
) -> list[Cell]:
    train = np.flatnonzero(cell.split == "train")
    if sizes and sizes[-1] > len(train):
        where = f"fold {cell.fold} of repeat {cell.repeat}" if cell.fold is not None else "train"
        raise UserError(
            f"config.evaluation.target_sizes asks for {sizes[-1]} labels, but {where} of {target.name} has {len(train)}; "
            "'all' takes them all"
        )
    order = train[
        splits.subset_order(
            target.label[train], seed=int(np.random.SeedSequence(key).generate_state(1)[0])
        )
    ]
    found = []
    for size in sizes:
        if size == len(train):  # which the cell itself is
            continue
        split = cell.split.copy()
        split[order[size:]] = UNUSED
        found.append(dataclasses.replace(cell, split=split, size=size))
    return found
