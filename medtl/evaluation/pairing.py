"""Whether the predictions of several arms can be compared: what no single line of predictions.csv shows.

Refuses arms that differ in their models or in the examples that these predict, a training size that some rows state and others
do not, an example in two folds of one cross-validation, and val of a model that is not evaluated or of some of an arm's alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medtl.errors import UserError, nearest

if TYPE_CHECKING:
    from medtl.evaluation.predictions import Predictions

_VAL = "val"


def check(
    predictions: Sequence[Predictions], classes: Sequence[str], *, split: str, name: str
) -> list[str]:
    """As `evaluation.predictions.check`, which documents it."""
    present = {p.split for p in predictions}
    if split not in present:
        raise UserError(f"{name} has no split {split!r}{nearest(split, present)}")
    evaluated: dict[str, dict[tuple, Predictions]] = {p.arm: {} for p in predictions}
    val: dict[str, dict[tuple, Predictions]] = {p.arm: {} for p in predictions}
    for p in predictions:
        if p.split in (split, _VAL):
            (evaluated if p.split == split else val)[p.arm][p.cell] = p
    for arm, cells in evaluated.items():
        if not cells:
            raise UserError(f"{name}: arm {arm!r} has no predictions of split {split!r}")
        _check_sizes(name, [*cells.values(), *val[arm].values()])
    reference, *others = evaluated.values()
    for cells in others:
        _check_same_examples(name, reference, cells)
    _check_folds(name, reference)
    # Of arms that predict the same examples one stands for all.
    notes = [*_one_class(predictions, classes), *_not_grouped(reference)]
    if split != _VAL:
        for arm, cells in evaluated.items():
            _check_val(name, cells, val[arm])
        notes += [*_without_val(val), *_in_val(evaluated, val)]
    return notes


def _check_sizes(name: str, models: Sequence[Predictions]) -> None:
    """In the folds of a cross-validation an empty size means all labels, which may differ in number between folds."""
    outside = [p for p in models if p.fold is None]
    told = next((p for p in outside if p.size is not None), None)
    untold = next((p for p in outside if p.size is None), None)
    if told is not None and untold is not None:
        raise UserError(
            f"{name}: arm {told.arm!r} has predictions of {told.where}, and others of {untold.where} whose size is empty; "
            "give every row its size"
        )


def _check_same_examples(
    name: str, one: Mapping[tuple, Predictions], two: Mapping[tuple, Predictions]
) -> None:
    for has, lacks in ((one, two), (two, one)):
        other = next(iter(lacks.values())).arm
        for cell, p in has.items():
            if cell not in lacks:
                raise UserError(
                    f"{name}: arm {p.arm!r} has predictions of {p.where}, and arm {other!r} has none; arms are compared on "
                    "the same seeds, repeats, folds and sizes"
                )
            alone = p.id[~np.isin(p.id, lacks[cell].id)]
            if len(alone):
                raise UserError(
                    f"{name}: {p.where}: {len(alone)} of the {len(p.id)} examples of arm {p.arm!r} are not among the "
                    f"{len(lacks[cell].id)} of arm {other!r}, the first is {str(alone[0])!r}; arms are compared on the same "
                    "examples"
                )


def _of_one_division(cells: Mapping[tuple, Predictions]) -> list[list[Predictions]]:
    """The folds of each (seed, repeat, size) that has several."""
    divisions: dict[tuple, list[Predictions]] = {}
    for p in cells.values():
        divisions.setdefault((p.seed, p.repeat, p.size), []).append(p)
    return [folds for folds in divisions.values() if len(folds) > 1]


def _check_folds(name: str, cells: Mapping[tuple, Predictions]) -> None:
    for folds in _of_one_division(cells):
        value, count = np.unique(
            np.concatenate([np.unique(p.id) for p in folds]), return_counts=True
        )
        if np.any(count > 1):
            example = value[count > 1][0]
            one, two, *_ = (p for p in folds if example in p.id)
            raise UserError(
                f"{name}: arm {one.arm!r}: {str(example)!r} is in {one.where} and in {two.where}; an example is tested on in "
                "one fold of a repeat"
            )


def _check_val(
    name: str, cells: Mapping[tuple, Predictions], val: Mapping[tuple, Predictions]
) -> None:
    """Val is all of an arm's models', or none's: thresholds and calibration maps are fitted on it model by model."""
    for cell, p in val.items():
        if cell not in cells:
            near = next(iter(cells.values()))
            raise UserError(
                f"{name}: arm {p.arm!r} has predictions of {p.where}, but of {near.split} none of that model, only such as "
                f"{near.where}; give a model's rows the same seed, repeat, fold and size in every split"
            )
    lacking = [p for cell, p in cells.items() if cell not in val]
    if val and lacking:
        has = next(iter(val.values()))
        raise UserError(
            f"{name}: arm {has.arm!r} has predictions of {has.where}, but none of val for {lacking[0].where} "
            f"({len(lacking)} of {len(cells)} models lack it); give all of them val, or none"
        )


def _without_val(val: Mapping[str, Mapping]) -> list[str]:
    has, lacks = (
        [arm for arm, cells in val.items() if bool(cells) == wanted] for wanted in (True, False)
    )
    if not has or not lacks:
        return []
    return [
        f"there is val of some arms only (with: {', '.join(has)}; without: {', '.join(lacks)}); thresholds and calibration "
        "are fitted on it where it is, so what rests on them is not compared alike"
    ]


def _not_grouped(cells: Mapping[tuple, Predictions]) -> list[str]:
    notes = [note for folds in _of_one_division(cells) for note in _shared_patients(folds)]
    return _few(list(dict.fromkeys(notes)))  # seeds and sizes may share their folds


def _shared_patients(folds: Sequence[Predictions]) -> list[str]:
    if any(p.patient is None for p in folds):
        return []
    within = [np.unique(p.patient) for p in folds if p.patient is not None]
    value, count = np.unique(np.concatenate(within), return_counts=True)
    shared = value[count > 1]
    if not len(shared):
        return []
    present = np.stack([np.isin(shared, patients) for patients in within])
    repeat = "" if folds[0].repeat is None else f", repeat {folds[0].repeat}"
    found = []
    for i, j in itertools.combinations(np.flatnonzero(present.any(axis=1)).tolist(), 2):
        both = shared[present[i] & present[j]]
        if len(both):
            found.append(
                f"{folds[0].split}{repeat}: fold {folds[i].fold} and {folds[j].fold} share {len(both)} patients, the first is "
                f"{str(both[0])!r}: the folds are not grouped by patient, so scores flatter"
            )
    return found


def _one_class(predictions: Sequence[Predictions], classes: Sequence[str]) -> list[str]:
    arms: dict[str, list[str]] = {}
    for p in predictions:
        known = p.label[p.label >= 0] if p.label.ndim == 1 else p.label[~np.isnan(p.label)]
        if not len(known):
            arms.setdefault(f"{p.where}: none of {len(p.id)} examples has a label", []).append(
                p.arm
            )
        elif p.label.ndim == 1 and np.all(known == known[0]):
            what = f"all of {len(known)} labelled examples are {classes[known[0]]!r}"
            arms.setdefault(f"{p.where}: {what}", []).append(p.arm)
    return _few(
        [
            f"{what} (arms: {', '.join(a)}); what needs two classes is undefined"
            for what, a in arms.items()
        ]
    )


def _in_val(
    evaluated: Mapping[str, Mapping[tuple, Predictions]],
    val: Mapping[str, Mapping[tuple, Predictions]],
) -> list[str]:
    arms: dict[str, list[str]] = {}
    for arm, cells in evaluated.items():
        for cell, p in cells.items():
            q = val[arm].get(cell)
            if q is None:
                continue
            if p.patient is not None and q.patient is not None:
                word, both = "patients", np.intersect1d(p.patient, q.patient)
            else:
                word, both = "examples", np.intersect1d(p.id, q.id)
            if len(both):
                what = (
                    f"{p.where}: {len(both)} {word} are also in val, the first is {str(both[0])!r}"
                )
                arms.setdefault(what, []).append(arm)
    return _few(
        [
            f"{what} (arms: {', '.join(a)}); what is chosen on val has seen them"
            for what, a in arms.items()
        ]
    )


def _few(notes: list[str], limit: int = 5) -> list[str]:
    return notes if len(notes) <= limit else [*notes[:limit], f"and {len(notes) - limit} more such"]
