"""Splits of the target: the given one, folds of cross-validation, nested subsets of train.

Each arm and seed is trained once on each split. Folds are stratified and keep a patient's images
together, and so does the val part that is drawn from the rows outside the test fold: the test fold
is not used before the end. Refuses folds that could not be trained on. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medtl import data
from medtl.data.splits import parts, subset_order
from medtl.errors import UserError
from medtl.evaluation import metrics, wording
from medtl.examples import Examples, class_counts

UNUSED = ""  # the part of a train row that a learning curve's smaller subset leaves out


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One division of the target's examples into train, val and test.

    Attributes:
      part: str[N], "train", "val", "test", or `UNUSED` for each example.
      repeat: the repeat of the cross-validation, or of a learning curve's subsets; else None.
      fold: the fold that is tested; None without cross-validation.
      size: the number of train labels in a learning curve's subset; None: all.
    """

    part: np.ndarray
    repeat: int | None = None
    fold: int | None = None
    size: int | None = None

    @property
    def path(self) -> str:
        """The folder within an arm's, e.g. "repeat_0/fold_3/size_50"; "" for the given split."""
        named = (("repeat", self.repeat), ("fold", self.fold), ("size", self.size))
        return "/".join(f"{name}_{value}" for name, value in named if value is not None)

    def of(self, examples: Examples) -> Examples:
        """Return the examples with this split as theirs."""
        digest = hashlib.sha256(f"{examples.split_hash}/{self.path}".encode())
        digest.update("\0".join(self.part).encode())
        return dataclasses.replace(examples, split=self.part, split_hash=digest.hexdigest())


def splits_of(config: Any, target: Examples, seed: int) -> list[Split]:
    """Return every split of an experiment; within a fold, the one with all train labels is first.

    Folds depend on `data.split_seed` of the target alone, so all seeds share them; a learning
    curve's subsets depend on the seed too. Those of one seed, fold and repeat are nested: the first
    n rows of one stratified order.

    Args:
      config: the experiment's config.
      target: the target's examples.
      seed: the experiment's seed.

    Raises:
      UserError: a fold lacks a class to train on, or its test part one without which the metric is
        undefined, or it has fewer train labels than a learning curve asks for.
    """
    full_splits: Iterable[Split] = [Split(target.split)]
    if config.evaluation.leave_out:
        full_splits = _leave_one_out(config, target)
    elif config.evaluation.folds:
        full_splits = _cross_validation(config, target)
    split_seed = data.split_seed(config.data.target)
    sizes, repeats = _sizes(config), config.evaluation.size_repeats
    splits = []
    for i, split in enumerate(full_splits):
        splits.append(split)
        for repeat in range(repeats):
            key = [split_seed, 3, seed, i, *([repeat] if repeat else [])]
            again = dataclasses.replace(split, repeat=repeat) if repeats > 1 else split
            splits += _subsets(again, target, sizes, key=key)
    return splits


def largest_train(splits: Sequence[Split]) -> int:
    """Return the most train labels in a split; all splits use it to convert epochs to steps."""
    return max(int(np.sum(split.part == "train")) for split in splits)


def folds(
    label: np.ndarray,
    *,
    n_folds: int,
    repeat: int = 0,
    seed: int = 0,
    patient: np.ndarray | None = None,
) -> np.ndarray:
    """Return stratified folds in which no patient is in two.

    Args:
      label: int[N], or float[N, K] (NaN counts as 0).
      n_folds: the number of folds.
      repeat: another number draws other folds.
      seed: another seed draws other folds.
      patient: str[N], "" where unknown; None: each row is a patient of its own.

    Returns:
      int64[N], the fold in which each row is tested.

    >>> label = np.array([0, 0, 0, 0, 1, 1])
    >>> fold = folds(label, n_folds=2)
    >>> [np.bincount(label[fold == i]).tolist() for i in range(2)]
    [[2, 1], [2, 1]]
    """
    return parts(label, [1 / n_folds] * n_folds, key=(seed, 2, repeat), patient=patient)


def fold_rows(target: Examples, splits: Sequence[Split]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of folds.csv: a header, then each example's part in each fold."""
    yield "repeat", "fold", "id", "split"
    for split in splits:
        if split.fold is not None and split.size is None:
            for example, part in zip(target.id, split.part, strict=True):
                yield str(split.repeat), str(split.fold), str(example), str(part)


def _cross_validation(config: Any, target: Examples) -> Iterator[Split]:
    evaluation, n_folds = config.evaluation, config.evaluation.folds
    patients = len(target) if target.patient is None else len(set(target.patient))
    if patients < n_folds:
        raise UserError(
            f"config.evaluation.folds is {n_folds}, but {target.name} has {patients} patients"
        )
    seed = data.split_seed(config.data.target)
    extra = metrics.from_config(evaluation)
    for repeat in range(evaluation.repeats):
        fold_of = folds(
            target.label, n_folds=n_folds, repeat=repeat, seed=seed, patient=target.patient
        )
        for fold in range(n_folds):
            part = np.where(fold_of == fold, "test", "train").astype("<U5")
            split = Split(
                _with_val(config, target, part, key=(seed, 4, repeat, fold)), repeat, fold
            )
            prefix = f"config.evaluation.folds is {n_folds}: {where(split)}"
            _check_fold(config, target, split, prefix, hint="use fewer folds")
            _check_metric(config, target, split, extra)
            yield split


def _leave_one_out(config: Any, target: Examples) -> Iterator[Split]:
    """Yield a split for each site that has every class; the others are always trained on.

    An example of another site whose patient is tested on is not used.
    """
    column, values = config.evaluation.leave_out, left_out_column(config, target)
    seed, title = data.split_seed(config.data.target), wording.column(column)
    tested = [name for name, absent in _absent_classes(target, values).items() if not absent]
    if len(tested) < 2:
        raise UserError(
            f"config.evaluation.leave_out is {column!r}, but {len(tested)} of the "
            f"{len(np.unique(values))} values of {title} in {target.name} have every class; it "
            "takes at least 2 to be tested on"
        )
    for fold, name in enumerate(tested):
        part = np.where(values == name, "test", "train").astype("<U5")
        part[_shared_patients(target, values, name)] = UNUSED
        split = Split(_with_val(config, target, part, key=(seed, 4, 0, fold)), 0, fold)
        prefix = f"config.evaluation.leave_out is {column!r}: the fold that tests {name!r}"
        _check_fold(config, target, split, prefix, hint="leave that value out of the data")
        yield split


def left_out_column(config: Any, target: Examples) -> np.ndarray:
    """Return the column of which `evaluation.leave_out` leaves one value out, str[N].

    Raises:
      UserError: the target has no such column, or it is empty for some example.
    """
    column = config.evaluation.leave_out
    key = f"config.evaluation.leave_out is {column!r}, but {target.name}"
    if column not in target.groups:
        columns = ", ".join(target.groups) or "none"
        raise UserError(f"{key} has no such column; its columns of groups: {columns}")
    values = np.asarray(target.groups[column], str)
    if missing := np.flatnonzero(values == "").tolist():
        raise UserError(
            f"{key} has {len(missing)} examples without a value in that column, the first is "
            f"{str(target.id[missing[0]])!r}; fill it in, or leave them out"
        )
    return values


def _absent_classes(target: Examples, values: np.ndarray) -> dict[str, list[str]]:
    """Return the classes that each value lacks; with several labels, one with both sides will do.

    A score such as the AUROC would be undefined there.
    """
    absent = {}
    for name in np.unique(values).tolist():
        label = target.label[values == name]
        counts = class_counts(label, target.classes)
        absent[name] = [c for c, n in counts.items() if not n]
        if target.multi_label:
            both = np.any(label == 1, axis=0) & np.any(label == 0, axis=0)
            absent[name] = [] if both.any() else list(target.classes)
    return absent


def _shared_patients(target: Examples, values: np.ndarray, name: str) -> np.ndarray:
    """Return bool[N], the examples with another value whose patient has one of `name`."""
    if target.patient is None:
        return np.zeros(len(target), bool)
    tested = np.setdiff1d(target.patient[values == name], [""])
    return (values != name) & np.isin(target.patient, tested)


def summary(config: Any, target: Examples, splits: Sequence[Split]) -> Iterator[str]:
    """Yield lines on a cross-validation for the terminal: its folds, and what it leaves out."""
    c = config.evaluation
    if not c.folds and not c.leave_out:
        return
    first = splits[0].part
    sizes = ", ".join(f"{np.sum(first == s)} {s}" for s in ("train", "val", "test"))
    if c.folds:
        yield f"{c.folds} folds x {c.repeats} repeats; examples in the first fold: {sizes}"
        return
    title, values = wording.column(c.leave_out), left_out_column(config, target)
    n_folds = len({split.fold for split in splits})
    yield f"{n_folds} folds, each tests one {title}; examples in the first fold: {sizes}"
    for name, absent in _absent_classes(target, values).items():
        if absent:
            classes = ", ".join(map(repr, absent))
            yield f"{title} {name!r} has no {classes}: it is trained on and not tested on"
    if unused := int(np.sum([np.sum(s.part == UNUSED) for s in splits if s.size is None])):
        yield (
            f"{unused} times an example is left out of training, as its patient is in the {title} "
            "that is tested, too"
        )


def _with_val(config: Any, target: Examples, part: np.ndarray, *, key: Sequence[int]) -> np.ndarray:
    """Draw val from the train rows, in the proportion of the config's fractions."""
    train, val, _ = data.fractions(config.data.target)
    share, rest = val / (train + val), np.flatnonzero(part == "train")
    patient = None if target.patient is None else target.patient[rest]
    is_val = parts(target.label[rest], (1 - share, share), key=key, patient=patient)
    part[rest[is_val == 1]] = "val"
    return part


def where(split: Split) -> str:
    """Name a split in a sentence: "fold 2 of repeat 0"."""
    return "train" if split.fold is None else f"fold {split.fold} of repeat {split.repeat}"


def _check_fold(config: Any, target: Examples, split: Split, prefix: str, *, hint: str) -> None:
    has_val = data.fractions(config.data.target)[1] > 0
    for part in ("train", "val", "test") if has_val else ("train", "test"):
        label = target.label[split.part == part]
        if not len(label):
            raise UserError(f"{prefix} has an empty {part} part; {hint}")
        absent = [name for name, n in class_counts(label, target.classes).items() if not n]
        if absent and part == "train":
            raise UserError(
                f"{prefix} has no {absent[0]!r} to train on; {target.name} has too few patients of "
                "that class"
            )


def _check_metric(
    config: Any, target: Examples, split: Split, extra: Mapping[str, metrics.Metric]
) -> None:
    """Refuse a fold on whose test part the metric would be undefined, whatever is trained."""
    metric, label = config.checkpoint.metric, target.label[split.part == "test"]
    ranked = metrics.criterion(
        metric,
        label,
        classes=target.classes,
        positive=config.evaluation.positive,
        extra=extra,
    )
    if not ranked.note:
        return
    absent = [name for name, n in class_counts(label, target.classes).items() if not n]
    lacks = f"has no {absent[0]!r} to test on" if absent else "has too few labels to test on"
    raise UserError(
        f"config.evaluation.folds is {config.evaluation.folds}: {where(split)} {lacks}, "
        f"so {metric} would be undefined; use fewer folds, or a checkpoint.metric that is defined"
    )


def _sizes(config: Any) -> list[int]:
    """Return the learning curve's sizes below "all", in ascending order."""
    return sorted(int(size) for size in config.evaluation.target_sizes if size != "all")


def _subsets(
    split: Split, target: Examples, sizes: Sequence[int], *, key: Sequence[int]
) -> list[Split]:
    train = np.flatnonzero(split.part == "train")
    if sizes and sizes[-1] > len(train):
        raise UserError(
            f"config.evaluation.target_sizes asks for {sizes[-1]} labels, but {where(split)} of "
            f"{target.name} has {len(train)}; 'all' takes them all"
        )
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    order = train[subset_order(target.label[train], seed=seed)]
    subsets = []
    for size in sizes:
        if size == len(train):  # the split itself
            continue
        part = split.part.copy()
        part[order[size:]] = UNUSED
        subsets.append(dataclasses.replace(split, part=part, size=size))
    return subsets
