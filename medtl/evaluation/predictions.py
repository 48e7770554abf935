"""predictions.csv: what each arm said of each example, so that any metric can be computed again; any tool can write it.

Columns, by name and in any order:

- `arm`: what is compared, e.g. transfer; `id`: the example; `label`: its class, empty where it is unknown;
  `prob_<class>`: the probability of each class, at least two of them.
- `split`: train, val (also written valid or validation), test or predict; "test" where the column is left out.
- `seed`, `repeat`, `fold`: of the model that predicts; `size`: the number of target labels it was trained on, at least 1.
  Whole numbers, empty where not told.
- `patient_id`, empty where unknown: such an example is a patient of its own; `site`, `subgroup` and `subgroup_<name>`:
  groups to report by, empty where unknown.

Where an example may have several diagnoses, the positive ones are joined by "|", a lone "|" or an empty cell is none of
them, an unknown one stands among them with a "?" before its name, and one class is enough.

Refuses, with line and column: a column of another name, twice, or missing; a row of another length; a probability that is
not a number from 0 to 1; probabilities of one label that do not sum to 1; a label without a column of probabilities; a split
of another name; an example twice in one (arm, split, seed, repeat, fold, size), or with another label, patient or group
elsewhere.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from medtl.errors import UserError, nearest
from medtl.evaluation import pairing
from medtl.evaluation import sheet as sheets
from medtl.examples import is_group

_REQUIRED = ("arm", "id", "label")
_WHOLE = ("seed", "repeat", "fold", "size")
_KEY = ("arm", "split", *_WHOLE)
_OPTIONAL = ("split", *_WHOLE, "patient_id", "site", "subgroup")
_SPLITS = ("train", "val", "test", "predict")
_SPLIT_ALIASES = {"valid": "val", "validation": "val"}  # as in manifests, see `medtl.data`
_PROB = "prob_"
_CHUNK = 1 << 16  # rows that are text at one time
_SUM_TOLERANCE = 1e-3  # of probabilities written with three digits
_DIGITS = re.compile(r"([0-9]{1,18})(?:\.0)?")
_ROUNDING = 1e-6  # by which a float32 softmax may exceed 1


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What one model said of one split.

    Attributes:
      arm, split: their names.
      id: str[N], unique.
      label: int[N], an index into the classes, -1 where unknown; or float[N, K] of 0, 1 or NaN (unknown).
      probability: float[N, K].
      seed: of the run; None where it is not told.
      repeat, fold: of the cross-validation; None where there is none.
      size: the number of target labels the model was trained on; None where it is not told.
      patient: str[N]; None where patients are not known.
      groups: "site", "subgroup" or "subgroup_<name>" -> str[N], "" where unknown.
    """

    arm: str
    split: str
    id: np.ndarray
    label: np.ndarray
    probability: np.ndarray
    seed: int | None = None
    repeat: int | None = None
    fold: int | None = None
    size: int | None = None
    patient: np.ndarray | None = None
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def cell(self) -> tuple[int | None, int | None, int | None, int | None]:
        """(seed, repeat, fold, size): which of the arm's models it is."""
        return self.seed, self.repeat, self.fold, self.size

    @property
    def where(self) -> str:
        """Such as "test, seed 0, fold 3"."""
        told = zip(_WHOLE, self.cell, strict=True)
        return ", ".join(
            [self.split, *(f"{name} {value}" for name, value in told if value is not None)]
        )


def probabilities(logits: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Logits f32[N, K] -> float64[N, K]: softmax, or sigmoid where an example may have several diagnoses."""
    z = logits.astype(np.float64)
    if multi_label:
        return np.exp(-np.logaddexp(0.0, -z))
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# Writing


def write(
    path: str | os.PathLike[str], predictions: Sequence[Predictions], classes: Sequence[str]
) -> None:
    """Writes predictions.csv whole or not at all.

    The columns are arm, split, id, label, prob_<class>..., then patient_id and the groups that any of the predictions has,
    even if all its cells are empty, those of size, repeat and fold that hold something, and seed where there are several.
    Probabilities have the digits that give back each float32 or float64.

    Args:
      path: the file; replaced where it exists.
      predictions: in the order of the file.
      classes: the K names, in the order of the probabilities' columns.

    Raises:
      UserError: a class or a group has a name that the file could not hold.
      ValueError: the arrays of one of the predictions differ in length.
    """
    path = pathlib.Path(path)
    _refuse(path, predictions, classes)
    more = _more_columns(predictions)
    # Python before 3.13 leaves a lone carriage return unquoted, and then reads a line's end in it.
    lone_return = any(
        "\r" in text for text in itertools.chain(classes, *((p.arm, p.split) for p in predictions))
    )
    lone_return |= any(
        np.any(np.strings.find(t, "\r") >= 0) for p in predictions for t in _texts(p).values()
    )
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if lone_return else csv.QUOTE_MINIMAL
        )
        rows.writerow(["arm", "split", "id", "label", *(_PROB + name for name in classes), *more])
        for p in predictions:
            for start in range(0, len(p.id), _CHUNK):
                rows.writerows(_rows(p, slice(start, start + _CHUNK), classes, more))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _refuse(path: pathlib.Path, predictions: Sequence[Predictions], classes: Sequence[str]) -> None:
    multi_label = any(p.label.ndim == 2 for p in predictions)
    for name in classes:
        if not name or (multi_label and ("|" in name or name.startswith("?"))):
            raise UserError(
                f"{path}: a class is called {name!r}; in `label`, empty, '|' and a leading '?' mean something else"
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
    told = [
        name
        for name in ("size", "repeat", "fold")
        if any(getattr(p, name) is not None for p in predictions)
    ]
    several = len({p.seed for p in predictions}) > 1
    return [*patient, *groups, *told, *(["seed"] if several else [])]


def _texts(p: Predictions) -> dict[str, np.ndarray]:
    """The columns of text that have a value for each example."""
    return {"id": p.id, **({} if p.patient is None else {"patient_id": p.patient}), **p.groups}


def _rows(
    p: Predictions, rows: slice, classes: Sequence[str], more: Sequence[str]
) -> Iterator[tuple]:
    label, probability = p.label[rows], p.probability[rows]
    n = len(label)
    if label.ndim == 2:
        labels = [_joined(values, classes) for values in label.tolist()]
    else:
        labels = [classes[k] if k >= 0 else "" for k in label.tolist()]
    single = probability.dtype.itemsize <= 4
    text = {name: values[rows].tolist() for name, values in _texts(p).items()}
    columns: list[Sequence] = [[p.arm] * n, [p.split] * n, text["id"], labels]
    for values in probability.T.tolist():
        columns.append([f"{value:.9g}" for value in values] if single else list(map(repr, values)))
    for name in more:
        columns.append([getattr(p, name)] * n if name in _WHOLE else text.get(name, [""] * n))
    return zip(*columns, strict=True)


def _joined(values: Sequence[float], classes: Sequence[str]) -> str:
    marks = {0.0: None, 1.0: ""}
    found = ((marks.get(value, "?"), name) for value, name in zip(values, classes, strict=True))
    return "|".join(mark + name for mark, name in found if mark is not None) or "|"


# Reading


def read(
    path: str | os.PathLike[str],
    *,
    multi_label: bool | None = None,
    arms: Collection[str] | None = None,
) -> tuple[list[Predictions], tuple[str, ...]]:
    """Reads predictions.csv, of `write` or of another tool; the columns are in the module's docstring.

    Args:
      path: the file.
      multi_label: whether an example may have several diagnoses; None: it may where a label that is no class holds a "|" or
        starts with a "?", and where there is one class only.
      arms: those that are asked for; None: any.

    Returns:
      The predictions, one for each (arm, split, seed, repeat, fold, size) in the order in which they first appear, and the
      classes in the order of their columns. Probabilities are float64 as written, except that what a float32 softmax put
      above 1 by up to 1e-6 is 1. A group is there where it has a column, `patient` where that has a cell that is not empty;
      both then are in all of the predictions.

    Raises:
      UserError: for everything in the module's docstring, and an arm that was not asked for or is not there.
    """
    sheet = sheets.read(
        pathlib.Path(path), check=_check_header, number=lambda name: name.startswith(_PROB)
    )
    classes = tuple(name.removeprefix(_PROB) for name in sheet.numeric)
    _check_filled(sheet)
    _check_arms(sheet, arms)
    by_text = _labels(sheet, classes, multi_label)
    _check_probabilities(sheet, several=by_text.ndim == 2)
    key, frame = _frames(sheet)
    _check_once(sheet, frame)
    # "a|b" and "b|a" are the same label.
    distinct = by_text if by_text.ndim == 1 else np.nan_to_num(by_text, nan=2.0)
    same_label = np.unique(distinct, axis=0, return_inverse=True)[1].reshape(-1)
    _check_same(sheet, "label", same_label[sheet.code["label"]])
    patients = ["patient_id"] if any(sheet.text.get("patient_id", ())) else []
    described = [*patients, *filter(is_group, sheet.code)]
    for name in described:
        _check_same(sheet, name, sheet.code[name])

    text = {name: np.array(sheet.text[name]) for name in ("id", *described)}
    order = np.argsort(frame, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(frame))[:-1])
    found = []
    for fields, rows in zip(key, parts, strict=True):
        ids = text["id"][sheet.code["id"][rows]]
        cells = {name: text[name][sheet.code[name][rows]] for name in described}
        patient = cells.pop("patient_id", None)
        if patient is not None and np.any(patient == ""):
            patient = np.where(patient == "", np.strings.add("?", ids), patient)
        label, probability = (
            by_text[sheet.code["label"][rows]],
            np.minimum(sheet.numbers[rows], 1.0),
        )
        found.append(
            Predictions(
                id=ids,
                label=label,
                probability=probability,
                patient=patient,
                groups=cells,
                **fields,
            )
        )
    return found, classes


def _check_header(where: str, header: list[str]) -> None:
    if not header:
        raise UserError(
            f"{where}: the file is empty; the first line names the columns: arm, id, label, prob_<class>..."
        )
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise UserError(
                f"{where}: the columns are separated by {word}; separate them by commas"
            )
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if twice:
        raise UserError(f"{where}: two columns are called {twice[0]!r}")
    known = (*_REQUIRED, *_OPTIONAL)
    strange = [
        n for n in header if not (n in known or is_group(n) or (n.startswith(_PROB) and n != _PROB))
    ]
    for name in _REQUIRED:
        if name not in header:
            raise UserError(f"{where} has no column {name!r}{nearest(name, strange)}")
    if "" in strange:
        raise UserError(
            f"{where}, column {header.index('') + 1} has no name; leave it out (pandas: index=False)"
        )
    for name in strange:
        raise UserError(
            f"{where}: column {name!r} is not known{nearest(name, (*known, 'prob_<class>', 'subgroup_<name>'))}"
        )
    if not any(name.startswith(_PROB) for name in header):
        raise UserError(
            f"{where} has no column prob_<class>; each class needs one, with its probabilities"
        )


def _check_filled(sheet: sheets.Sheet) -> None:
    for name in ("arm", "id", "split"):
        for code, text in enumerate(sheet.text.get(name, ())):
            if not text or (name == "arm" and not text.strip()):
                raise UserError(
                    f"{sheet.first(name, code)}: the cell {'holds only blanks' if text else 'is empty'}"
                )


def _check_arms(sheet: sheets.Sheet, arms: Collection[str] | None) -> None:
    if arms is None:
        return
    for code, arm in enumerate(sheet.text["arm"]):
        if arm not in arms:
            raise UserError(
                f"{sheet.first('arm', code)}: {arm!r} is not an arm that was asked for{nearest(arm, arms)}"
            )
    for arm in arms:
        if arm not in sheet.text["arm"]:
            raise UserError(
                f"{sheet.path}, column arm: there is no arm {arm!r}{nearest(arm, sheet.text['arm'])}"
            )


def _labels(sheet: sheets.Sheet, classes: Sequence[str], multi_label: bool | None) -> np.ndarray:
    """The label of each distinct cell: int32[J], or float32[J, K] where an example may have several."""
    index, texts = {name: k for k, name in enumerate(classes)}, sheet.text["label"]
    if multi_label is None:
        marked = any(text not in index and ("|" in text or text.startswith("?")) for text in texts)
        multi_label = marked or len(classes) == 1
    if len(classes) < 2 and not multi_label:
        raise UserError(
            f"{sheet.path}, line 1: the only class is {classes[0]!r}; each class needs a column {_PROB}<class>"
        )
    single, several = (
        np.full(len(texts), -1, np.int32),
        np.zeros((len(texts), len(classes)), np.float32),
    )
    for code, text in enumerate(texts):
        for part in filter(None, text.split("|") if multi_label else [text]):
            name = part.removeprefix("?") if multi_label else part
            if name not in index:
                where = sheet.first("label", code)
                raise UserError(
                    f"{where}: there is no column {_PROB + name!r} for {name!r}{nearest(name, classes)}"
                )
            single[code] = index[name]
            several[code, index[name]] = 1.0 if part == name else np.nan
    return several if multi_label else single


def _check_probabilities(sheet: sheets.Sheet, *, several: bool) -> None:
    p = sheet.numbers
    wrong = ~((p >= 0) & (p <= 1 + _ROUNDING))  # so written, NaN is wrong too
    if wrong.any():
        row = int(np.argmax(wrong.any(axis=1)))
        column = int(np.argmax(wrong[row]))
        hint = ""
        if np.all(np.isfinite(p[row])):
            percent = not several and np.all(p[row] >= 0) and abs(p[row].sum() - 100) < 1
            if percent:
                hint = "; these look like percentages: divide by 100"
            elif np.any(p[row] < 0) or 2 * int(wrong.any(axis=1).sum()) > len(p):
                hint = (
                    f"; these look like logits: write their {'sigmoid' if several else 'softmax'}"
                )
        where = sheet.where(row, sheet.numeric[column])
        raise UserError(f"{where}: {p[row, column]:.6g} is not a probability from 0 to 1{hint}")
    total = p.sum(axis=1)
    far = np.abs(total - 1) > _SUM_TOLERANCE
    if not several and far.any():
        row = int(np.argmax(far))
        names = ", ".join(sheet.numeric[:4]) + (", ..." if len(sheet.numeric) > 4 else "")
        raise UserError(
            f"{sheet.path}, line {sheet.line[row]}, columns {names}: the probabilities sum to {total[row]:.6g}, not to 1; "
            "where an example may have several diagnoses, read it as multi_label"
        )


def _frames(sheet: sheets.Sheet) -> tuple[list[dict], np.ndarray]:
    """The distinct (arm, split, seed, repeat, fold, size) in order of first appearance, and int64[N], each row's among them."""
    fields: dict[str, list] = {
        "arm": sheet.text["arm"],
        "split": _splits(sheet) if "split" in sheet.code else ["test"],
    }
    fields |= {name: _whole(sheet, name) if name in sheet.code else [None] for name in _WHOLE}
    frame = np.zeros(len(sheet.line), np.int64)
    for name, values in fields.items():
        if len(values) > 1:
            again = sheets.Codes()  # "1" and "01" are the same number
            code = np.array([again[value] for value in values])[sheet.code[name]]
            frame = np.unique(frame * len(values) + code, return_inverse=True)[1]
    first = np.unique(frame, return_index=True)[1]
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    keys = []
    for row in first[order]:
        at = {name: sheet.code[name][row] if name in sheet.code else 0 for name in _KEY}
        keys.append({name: fields[name][at[name]] for name in _KEY})
    return keys, rank[frame]


def _whole(sheet: sheets.Sheet, column: str) -> list[int | None]:
    """The numbers of a column's distinct cells; pandas writes them as 25.0 where another cell is empty."""
    least, numbers = int(column == "size"), []
    for code, text in enumerate(sheet.text[column]):
        digits = _DIGITS.fullmatch(text)
        if text and (digits is None or int(digits[1]) < least):
            raise UserError(
                f"{sheet.first(column, code)}: {text!r} is not a whole number of at least {least}"
            )
        numbers.append(int(digits[1]) if digits else None)
    return numbers


def _splits(sheet: sheets.Sheet) -> list[str]:
    """The split's house name for each of the column's distinct cells."""
    for code, text in enumerate(sheet.text["split"]):
        if text not in (*_SPLITS, *_SPLIT_ALIASES):
            raise UserError(
                f"{sheet.first('split', code)}: {text!r} is not a split{nearest(text, _SPLITS)}"
            )
    return [_SPLIT_ALIASES.get(text, text) for text in sheet.text["split"]]


def _check_once(sheet: sheets.Sheet, frame: np.ndarray) -> None:
    ids = sheet.code["id"]
    place = frame * len(sheet.text["id"]) + ids
    again = np.setdiff1d(
        np.arange(len(ids)), np.unique(place, return_index=True)[1], assume_unique=True
    )
    if len(again):
        row = int(again[0])
        before = int(np.argmax(place == place[row]))
        raise UserError(
            f"{sheet.where(row, 'id')}: {sheet.text['id'][ids[row]]!r} is already in line {sheet.line[before]}, "
            f"with the same {', '.join(name for name in _KEY if name in sheet.code)}"
        )


def _check_same(sheet: sheets.Sheet, column: str, value: np.ndarray) -> None:
    """Refuses an id that has one `value`, int[N], here and another there."""
    ids, text = sheet.code["id"], sheet.text[column]
    first = np.unique(ids, return_index=True)[1][ids]
    differing = np.flatnonzero(value != value[first])
    if len(differing):
        row, before = int(differing[0]), int(first[differing[0]])
        raise UserError(
            f"{sheet.where(row, column)}: {sheet.text['id'][ids[row]]!r} has {text[sheet.code[column][row]]!r} here "
            f"and {text[sheet.code[column][before]]!r} in line {sheet.line[before]}"
        )


# Checking what no single line shows


def check(
    predictions: Sequence[Predictions],
    classes: Sequence[str],
    *,
    split: str = "test",
    name: str = "predictions.csv",
) -> list[str]:
    """Whether the arms can be compared on a split, and what a reader must know of the predictions.

    Args:
      predictions: of `read`.
      classes: the K names.
      split: on which the arms are compared.
      name: of the file, for errors.

    Returns:
      Sentences: that one model's part of a split has one class, or no label, so that metrics are undefined there; that
      two folds of `split` share patients; that some arms have no val, or that patients (examples, where patients are not
      known) of `split` are also in val of the same model.

    Raises:
      UserError: an arm has no predictions of the split; outside of cross-validation some rows of an arm state their size and
        others do not; two arms differ in the seeds, repeats, folds and sizes they have, or in the examples that they predict;
        an example is in two folds of `split`; or, where `split` is another one than val, there is val of a model without
        predictions of `split`, or of some of an arm's models and not of others.
    """
    return pairing.check(predictions, classes, split=split, name=name)
