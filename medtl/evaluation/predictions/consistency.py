"""Whether the predictions of several arms can be compared, which no single row shows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from medtl.errors import UserError, nearest
from medtl.evaluation.predictions.frame import Predictions
from medtl.examples import is_quantity

_VAL = "val"
_ByModel = Mapping[tuple, Predictions]


def check(
    predictions: Sequence[Predictions],
    classes: Sequence[str],
    *,
    split: str = "test",
    name: str = "predictions.csv",
) -> list[str]:
    """Check that the arms can be compared on a split; return what a reader must know of it.

    Args:
      predictions: of `read`.
      classes: the K names.
      split: on which the arms are compared.
      name: of the file, for errors.

    Returns:
      Sentences: one model's part of a split has one class, or no label, so that metrics are
      undefined there; two folds of `split` share patients; some arms have no val; or patients
      (examples, where patients are unknown) of `split` are also in val of the same model.

    Raises:
      UserError: an arm has no predictions of the split; outside of cross-validation some rows of an
        arm state their size and others do not; two arms differ in their seeds, repeats, folds and
        sizes, or in the examples that they predict; an example is in two folds of `split`; or,
        where `split` is not val, there is val of a model without predictions of `split`, or of some
        of an arm's models and not of others.
    """
    present = {p.split for p in predictions}
    if split not in present:
        raise UserError(f"{name} has no split {split!r}{nearest(split, present)}")
    evaluated: dict[str, dict[tuple, Predictions]] = {p.arm: {} for p in predictions}
    val: dict[str, dict[tuple, Predictions]] = {p.arm: {} for p in predictions}
    for p in predictions:
        if p.split in (split, _VAL):
            (evaluated if p.split == split else val)[p.arm][p.model] = p
    for arm, models in evaluated.items():
        if not models:
            raise UserError(f"{name}: arm {arm!r} has no predictions of split {split!r}")
        _check_sizes(name, [*models.values(), *val[arm].values()])
    reference, *others = evaluated.values()
    for models in others:
        _check_same_examples(name, reference, models)
    _check_folds(name, reference)
    # The arms predict the same examples, so one stands for all.
    notes = [*_one_class(predictions, classes), *_not_grouped(reference)]
    if split != _VAL:
        for arm, models in evaluated.items():
            _check_val(name, models, val[arm])
        notes += [*_without_val(val), *_in_val(evaluated, val)]
    return notes


def _check_sizes(name: str, models: Sequence[Predictions]) -> None:
    """In folds an empty size means all labels, whose number may differ between folds."""
    outside = [p for p in models if p.fold is None]
    sized = next((p for p in outside if p.size is not None), None)
    unsized = next((p for p in outside if p.size is None), None)
    if sized is not None and unsized is not None:
        raise UserError(
            f"{name}: arm {sized.arm!r} has predictions of {sized.where}, and others of "
            f"{unsized.where} whose size is empty; give every row its size"
        )


def _check_same_examples(name: str, one: _ByModel, two: _ByModel) -> None:
    for has, lacks in ((one, two), (two, one)):
        other = next(iter(lacks.values())).arm
        for model, p in has.items():
            if model not in lacks:
                raise UserError(
                    f"{name}: arm {p.arm!r} has predictions of {p.where}, and arm {other!r} has "
                    "none; arms are compared on the same seeds, repeats, folds and sizes"
                )
            alone = p.id[~np.isin(p.id, lacks[model].id)]
            if len(alone):
                raise UserError(
                    f"{name}: {p.where}: {len(alone)} of the {len(p.id)} examples of arm {p.arm!r} "
                    f"are not among the {len(lacks[model].id)} of arm {other!r}, the first is "
                    f"{str(alone[0])!r}; arms are compared on the same examples"
                )


def _folds(models: _ByModel) -> list[list[Predictions]]:
    """Return the folds of each (seed, repeat, size) that has several."""
    groups: dict[tuple, list[Predictions]] = {}
    for p in models.values():
        groups.setdefault((p.seed, p.repeat, p.size), []).append(p)
    return [folds for folds in groups.values() if len(folds) > 1]


def _check_folds(name: str, models: _ByModel) -> None:
    for folds in _folds(models):
        ids = np.concatenate([np.unique(p.id) for p in folds])
        value, count = np.unique(ids, return_counts=True)
        if np.any(count > 1):
            example = value[count > 1][0]
            one, two, *_ = (p for p in folds if example in p.id)
            raise UserError(
                f"{name}: arm {one.arm!r}: {str(example)!r} is in {one.where} and in {two.where}; "
                "an example is tested on in one fold of a repeat"
            )


def _check_val(name: str, models: _ByModel, val: _ByModel) -> None:
    """All of an arm's models have val, or none: thresholds are fitted on it model by model."""
    for model, p in val.items():
        if model not in models:
            near = next(iter(models.values()))
            raise UserError(
                f"{name}: arm {p.arm!r} has predictions of {p.where}, but of {near.split} none of "
                f"that model, only such as {near.where}; give a model's rows the same seed, "
                "repeat, fold and size in every split"
            )
    lacking = [p for model, p in models.items() if model not in val]
    if val and lacking:
        has = next(iter(val.values()))
        raise UserError(
            f"{name}: arm {has.arm!r} has predictions of {has.where}, but none of val for "
            f"{lacking[0].where} ({len(lacking)} of {len(models)} models lack it); give all of "
            "them val, or none"
        )


def _without_val(val: Mapping[str, _ByModel]) -> list[str]:
    has = [arm for arm, models in val.items() if models]
    lacks = [arm for arm, models in val.items() if not models]
    if not has or not lacks:
        return []
    return [
        f"only some arms have val (with: {', '.join(has)}; without: {', '.join(lacks)}): their "
        "thresholds and calibration are fitted on it, so the arms are not compared alike in what "
        "depends on these"
    ]


def _not_grouped(models: _ByModel) -> list[str]:
    notes = [note for folds in _folds(models) for note in _shared_patients(folds)]
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
    notes = []
    for i, j in itertools.combinations(np.flatnonzero(present.any(axis=1)).tolist(), 2):
        both = shared[present[i] & present[j]]
        if len(both):
            notes.append(
                f"{folds[0].split}{repeat}: fold {folds[i].fold} and {folds[j].fold} share "
                f"{len(both)} patients, the first is {str(both[0])!r}: the folds are not grouped "
                "by patient, so scores are optimistic"
            )
    return notes


def _one_class(predictions: Sequence[Predictions], classes: Sequence[str]) -> list[str]:
    arms: dict[str, list[str]] = {}
    for p in predictions:
        known = p.label[p.labelled] if p.label.ndim == 1 else p.label[~np.isnan(p.label)]
        if not len(known):
            note = f"{p.where}: none of {len(p.id)} examples has a label"
            arms.setdefault(note, []).append(p.arm)
        elif p.label.ndim == 1 and np.all(known == known[0]):
            shown = f"{known[0]:g}" if is_quantity(p.label) else repr(classes[known[0]])
            note = f"{p.where}: all of {len(known)} labelled examples are {shown}"
            arms.setdefault(note, []).append(p.arm)
    kind = "values" if is_quantity(predictions[0].label) else "classes"
    return _with_arms(arms, f"metrics that need two {kind} are undefined")


def _in_val(evaluated: Mapping[str, _ByModel], val: Mapping[str, _ByModel]) -> list[str]:
    arms: dict[str, list[str]] = {}
    for arm, models in evaluated.items():
        for model, p in models.items():
            q = val[arm].get(model)
            if q is None:
                continue
            if p.patient is not None and q.patient is not None:
                word, both = "patients", np.intersect1d(p.patient, q.patient)
            else:
                word, both = "examples", np.intersect1d(p.id, q.id)
            if len(both):
                first = f"the first is {str(both[0])!r}"
                note = f"{p.where}: {len(both)} {word} are also in val, {first}"
                arms.setdefault(note, []).append(arm)
    return _with_arms(arms, "choices made on val have seen them")


def _with_arms(arms: Mapping[str, Sequence[str]], consequence: str) -> list[str]:
    return _few([f"{note} (arms: {', '.join(a)}); {consequence}" for note, a in arms.items()])


def _few(notes: list[str], limit: int = 5) -> list[str]:
    return notes if len(notes) <= limit else [*notes[:limit], f"and {len(notes) - limit} more such"]
