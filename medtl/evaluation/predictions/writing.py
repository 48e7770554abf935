"""Writes predictions.csv; refuses names that the file cannot hold."""

from __future__ import annotations

import csv
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from medtl import files
from medtl.errors import UserError
from medtl.evaluation.predictions.frame import MODEL, PREDICTED, PROB, TRUE, Predictions
from medtl.examples import is_group, is_quantity

_CHUNK = 1 << 16  # rows that are text at one time


def write(
    path: str | os.PathLike[str], predictions: Sequence[Predictions], classes: Sequence[str]
) -> None:
    """Write predictions.csv atomically.

    The columns are arm, split, id, label, prob_<class>... (of a quantity y_true, prediction), then
    patient_id and the groups that any of the predictions has, even if all its values are empty,
    those of size, repeat and fold that hold something, and seed where there are several.
    Probabilities have the digits that give back each float32 or float64. A text that a spreadsheet
    would take for a formula, such as "=a", gets an apostrophe in front, which `read` takes away.

    Args:
      path: the file; replaced where it exists.
      predictions: in the order of the file.
      classes: the K names, in the order of the probabilities' columns.

    Raises:
      UserError: a class or a group has a name that the file could not hold.
      ValueError: the arrays of one of the predictions differ in length.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "predictions.csv"
    >>> scores = np.array([[0.75, 0.25], [0.5, 0.5]])
    >>> one = Predictions("transfer", "test", np.array(["a", "b"]), np.array([0, -1]), scores)
    >>> write(path, [one], ("ill", "well"))
    >>> print(path.read_text().strip())
    arm,split,id,label,prob_ill,prob_well
    transfer,test,a,ill,0.75,0.25
    transfer,test,b,,0.5,0.5
    """
    path = pathlib.Path(path)
    _check(path, predictions, classes)
    more = _more_columns(predictions)
    # Python before 3.13 leaves a lone carriage return unquoted, and then reads it as a line's end.
    lone_return = any(
        "\r" in text for text in itertools.chain(classes, *((p.arm, p.split) for p in predictions))
    )
    lone_return |= any(
        np.any(np.strings.find(t, "\r") >= 0) for p in predictions for t in _texts(p).values()
    )
    with files.atomic(path, "w") as file:
        rows = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if lone_return else csv.QUOTE_MINIMAL
        )
        answer = ["label", *(PROB + name for name in classes)]
        if any(is_quantity(p.label) for p in predictions):
            answer = [TRUE, PREDICTED]
        rows.writerow(["arm", "split", "id", *answer, *more])
        for p in predictions:
            for start in range(0, len(p.id), _CHUNK):
                rows.writerows(_rows(p, slice(start, start + _CHUNK), classes, more))


def _check(path: pathlib.Path, predictions: Sequence[Predictions], classes: Sequence[str]) -> None:
    multi_label = any(p.label.ndim == 2 for p in predictions)
    for name in classes:
        if not name or (multi_label and ("|" in name or name.startswith("?"))):
            raise UserError(
                f"{path}: a class is called {name!r}; in `label`, empty, '|' and a leading '?' "
                "mean something else"
            )
    for name in itertools.chain.from_iterable(p.groups for p in predictions):
        if not is_group(name):
            raise UserError(
                f"{path}: a group is called {name!r}; it must be site, subgroup or subgroup_<name>"
            )
    for p in predictions:
        lengths = {len(p.label), len(p.probability), *map(len, _texts(p).values())}
        if len(lengths) > 1:
            raise ValueError(f"{p.arm}, {p.where}: the arrays differ in length: {sorted(lengths)}")


def _more_columns(predictions: Sequence[Predictions]) -> list[str]:
    patient = ["patient_id"] if any(p.patient is not None for p in predictions) else []
    groups = dict.fromkeys(name for p in predictions for name in p.groups)
    model = [
        name
        for name in ("size", "repeat", "fold")
        if any(getattr(p, name) is not None for p in predictions)
    ]
    several = len({p.seed for p in predictions}) > 1
    return [*patient, *groups, *model, *(["seed"] if several else [])]


def _texts(p: Predictions) -> dict[str, np.ndarray]:
    """Return the columns of text that have a value for each example."""
    return {"id": p.id, **({} if p.patient is None else {"patient_id": p.patient}), **p.groups}


def _rows(
    p: Predictions, rows: slice, classes: Sequence[str], more: Sequence[str]
) -> Iterator[tuple]:
    label, probability = p.label[rows], p.probability[rows]
    n = len(label)
    if label.ndim == 2:
        labels = [files.harmless(_joined(values, classes)) for values in label.tolist()]
    elif is_quantity(label):
        labels = ["" if np.isnan(value) else repr(value) for value in label.tolist()]
    else:
        named = [files.harmless(name) for name in classes]
        labels = [named[k] if k >= 0 else "" for k in label.tolist()]
    single = probability.dtype.itemsize <= 4
    text = {n: list(map(files.harmless, values[rows].tolist())) for n, values in _texts(p).items()}
    columns: list[Sequence] = [[files.harmless(p.arm)] * n, [p.split] * n, text["id"], labels]
    for values in probability.T.tolist():
        columns.append([f"{value:.9g}" for value in values] if single else list(map(repr, values)))
    for name in more:
        columns.append([getattr(p, name)] * n if name in MODEL else text.get(name, [""] * n))
    return zip(*columns, strict=True)


def _joined(values: Sequence[float], classes: Sequence[str]) -> str:
    marks = {0.0: None, 1.0: ""}
    marked = ((marks.get(value, "?"), name) for value, name in zip(values, classes, strict=True))
    return "|".join(mark + name for mark, name in marked if mark is not None) or "|"
