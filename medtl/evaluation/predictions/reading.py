"""Reads predictions.csv; refuses malformed files by line and column."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Sequence

import numpy as np

from medtl import files
from medtl.errors import UserError, nearest
from medtl.evaluation.predictions.csv_columns import Codes, Columns, read_columns
from medtl.evaluation.predictions.frame import MODEL, PREDICTED, PROB, TRUE, Predictions, alone
from medtl.examples import is_group

_REQUIRED = ("arm", "id", "label")
_KEY = ("arm", "split", *MODEL)
_OPTIONAL = ("split", *MODEL, "patient_id", "site", "subgroup")
_SPLITS = ("train", "val", "test", "predict")
_SPLIT_ALIASES = {"valid": "val", "validation": "val"}  # as in manifests, see `medtl.data`
_SUM_TOLERANCE = 1e-3  # of probabilities written in full, less what float32 and few digits lose
_MOST_DIGITS = 6
_DIGITS = re.compile(r"([0-9]{1,18})(?:\.0)?")
_ROUNDING = 1e-6  # by which a float32 softmax may exceed 1
_NO_PATIENT = ("", "nan", "na", "n/a", "none", "null", "<na>")  # as pandas, R and SQL write it


def read(
    path: str | os.PathLike[str],
    *,
    multi_label: bool | None = None,
    arms: Collection[str] | None = None,
) -> tuple[list[Predictions], tuple[str, ...]]:
    r"""Read predictions.csv, of `write` or of another tool; the package lists the columns.

    Args:
      path: the file.
      multi_label: whether an example may have several diagnoses; None: it may where a label that is
        no class holds a "|" or starts with a "?", and where the only column of probabilities is of
        the only label. With one column and two labels the other class has 1 - its probability.
      arms: those that are asked for; None: any.

    Returns:
      The predictions, one for each (arm, split, seed, repeat, fold, size) in the order in which
      they first appear, and the classes in the order of their columns. Probabilities are float64 as
      written, except that those that a float32 softmax put above 1 by up to 1e-6 are 1. All of the
      predictions have a group if it has a column, and `patient` if one of its values is known.

    Raises:
      UserError: the file is not as the package's docstring says, or an arm was not asked for or is
        absent.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "p.csv"
    >>> _ = path.write_text("arm,id,label,prob_ill,prob_well\nnet,a,ill,0.75,0.25\n")
    >>> (one,), classes = read(path)
    >>> one.arm, one.split, one.label.tolist(), classes
    ('net', 'test', [0], ('ill', 'well'))
    """
    table = read_columns(
        pathlib.Path(path),
        check=_check_header,
        number=lambda name: name.startswith(PROB) or name == PREDICTED,
    )
    text = {name: list(map(files.as_written, cells)) for name, cells in table.text.items()}
    table = dataclasses.replace(table, text=text)
    if table.numeric == (PREDICTED,):
        return _numbers(table, arms), (PREDICTED,)
    table = _with_other_class(table, multi_label)
    classes = tuple(name.removeprefix(PROB) for name in table.numeric)
    _check_filled(table)
    _check_arms(table, arms)
    by_text = _labels(table, classes, multi_label)
    _check_probabilities(table, several=by_text.ndim == 2)
    key, frame = _frames(table)
    _check_once(table, frame)
    # "a|b" and "b|a" are the same label.
    distinct = by_text if by_text.ndim == 1 else np.nan_to_num(by_text, nan=2.0)
    same_label = np.unique(distinct, axis=0, return_inverse=True)[1].reshape(-1)
    _check_same(table, "label", same_label[table.code["label"]])
    return _by_model(table, by_text, key, frame), classes


def _numbers(table: Columns, arms: Collection[str] | None) -> list[Predictions]:
    """Return the predictions of a quantity."""
    _check_filled(table)
    _check_arms(table, arms)
    if not (finite := np.isfinite(table.numbers[:, 0])).all():
        where = table.where(int(np.argmin(finite)), PREDICTED)
        raise UserError(f"{where}: it is no finite number")
    by_text = np.full(len(table.text[TRUE]), np.nan)
    for code, text in enumerate(table.text[TRUE]):
        try:
            by_text[code] = float(text) if text else np.nan
        except ValueError:
            by_text[code] = np.inf
        if np.isinf(by_text[code]) or (text and np.isnan(by_text[code])):
            raise UserError(f"{table.first(TRUE, code)}: {text!r} is no finite number")
    key, frame = _frames(table)
    _check_once(table, frame)
    same = np.unique(np.nan_to_num(by_text, nan=np.inf), return_inverse=True)[1].reshape(-1)
    _check_same(table, TRUE, same[table.code[TRUE]])
    return _by_model(table, by_text, key, frame)


def _by_model(
    table: Columns, by_text: np.ndarray, key: Sequence[dict], frame: np.ndarray
) -> list[Predictions]:
    """Divide the rows into the predictions of each model and split.

    Args:
      table: the file.
      by_text: the label of each distinct text.
      key: what tells each model and split apart, of `_frames`.
      frame: int64[N], which of them each row is of.
    """
    patients = np.array([_is_patient(text) for text in table.text.get("patient_id", ())], bool)
    described = [*(["patient_id"] if patients.any() else []), *filter(is_group, table.code)]
    for name in described:
        _check_same(table, name, table.code[name])
    text = {name: np.array(table.text[name]) for name in ("id", *described)}
    order = np.argsort(frame, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(frame))[:-1])
    predictions, is_number = [], table.numeric == (PREDICTED,)
    for fields, rows in zip(key, parts, strict=True):
        ids = text["id"][table.code["id"][rows]]
        groups = {name: text[name][table.code[name][rows]] for name in described}
        patient = groups.pop("patient_id", None)
        if patient is not None:
            named = patients[table.code["patient_id"][rows]]
            patient = patient if named.all() else np.where(named, patient, alone(ids))
        predictions.append(
            Predictions(
                id=ids,
                label=by_text[table.code[TRUE if is_number else "label"][rows]],
                probability=table.numbers[rows]
                if is_number
                else np.minimum(table.numbers[rows], 1.0),
                patient=patient,
                groups=groups,
                **fields,
            )
        )
    return predictions


def _is_patient(text: str) -> bool:
    """Tell whether a cell names a patient: neither blank nor a word for a missing value."""
    return text.strip().lower() not in _NO_PATIENT


def _with_other_class(table: Columns, multi_label: bool | None) -> Columns:
    """Add the column of the second of two labels that is missing, 1 - the other's probability."""
    texts = [text for text in table.text["label"] if text]
    other = [text for text in texts if PROB + text not in table.numeric]
    marked = any("|" in text or text.startswith("?") for text in other)
    if multi_label or len(table.numeric) > 1 or len(other) != 1 or marked:
        return table
    (column,) = table.numeric
    numbers = np.concatenate([1 - table.numbers, table.numbers], axis=1)
    return dataclasses.replace(table, numeric=(PROB + other[0], column), numbers=numbers)


def _check_header(path: pathlib.Path, line: int, header: list[str]) -> None:
    where = f"{path}, line {line}"
    if not header:
        raise UserError(
            f"{where}: the file is empty; the first line names the columns: "
            "arm, id, label, prob_<class>..."
        )
    files.check_csv(path, line, header)
    is_number = PREDICTED in header or TRUE in header
    required = ("arm", "id", TRUE, PREDICTED) if is_number else _REQUIRED
    columns = (*required, *_OPTIONAL)
    strange = [
        n for n in header if not (n in columns or is_group(n) or (n.startswith(PROB) and n != PROB))
    ]
    if is_number and (more := [n for n in header if n.startswith(PROB)]):
        raise UserError(
            f"{where} has {more[0]!r} beside {PREDICTED!r}; a file has one kind of them"
        )
    for name in required:
        if name not in header:
            raise UserError(f"{where} has no column {name!r}{nearest(name, strange)}")
    if "" in strange:
        column = header.index("") + 1
        raise UserError(f"{where}, column {column} has no name; leave it out (pandas: index=False)")
    for name in strange:
        hint = nearest(name, (*columns, "prob_<class>", "subgroup_<name>"))
        raise UserError(f"{where}: column {name!r} is not known{hint}")
    if not is_number and not any(name.startswith(PROB) for name in header):
        raise UserError(
            f"{where} has no column prob_<class>; each class needs one, with its probabilities"
        )


def _check_filled(table: Columns) -> None:
    for name in ("arm", "id", "split"):
        for code, text in enumerate(table.text.get(name, ())):
            if not text or (name == "arm" and not text.strip()):
                state = "holds only blanks" if text else "is empty"
                raise UserError(f"{table.first(name, code)}: the cell {state}")


def _check_arms(table: Columns, arms: Collection[str] | None) -> None:
    if arms is None:
        return
    for code, arm in enumerate(table.text["arm"]):
        if arm not in arms:
            where = table.first("arm", code)
            raise UserError(
                f"{where}: {arm!r} is not an arm that was asked for{nearest(arm, arms)}"
            )
    for arm in arms:
        if arm not in table.text["arm"]:
            hint = nearest(arm, table.text["arm"])
            raise UserError(f"{table.path}, column arm: there is no arm {arm!r}{hint}")


def _labels(table: Columns, classes: Sequence[str], multi_label: bool | None) -> np.ndarray:
    """Return the label of each distinct text: int32[J], or float32[J, K] for several labels."""
    index, texts = {name: k for k, name in enumerate(classes)}, table.text["label"]
    if multi_label is None:
        marked = any(text not in index and ("|" in text or text.startswith("?")) for text in texts)
        multi_label = marked or len(classes) == 1
    if len(classes) < 2 and not multi_label:
        raise UserError(
            f"{table.path}, line 1: the only class is {classes[0]!r}; "
            f"each class needs a column {PROB}<class>"
        )
    single = np.full(len(texts), -1, np.int32)
    several = np.zeros((len(texts), len(classes)), np.float32)
    for code, text in enumerate(texts):
        if not text:
            several[code] = np.nan
        for part in filter(None, text.split("|") if multi_label else [text]):
            name = part.removeprefix("?") if multi_label else part
            if name not in index:
                where, hint = table.first("label", code), nearest(name, classes)
                if len(classes) == 1:
                    hint = f"; add {PROB + name}, or use the label {classes[0]!r}"
                raise UserError(f"{where}: there is no column {PROB + name!r} for {name!r}{hint}")
            single[code] = index[name]
            several[code, index[name]] = 1.0 if part == name else np.nan
    return several if multi_label else single


def _check_probabilities(table: Columns, *, several: bool) -> None:
    p = table.numbers
    wrong = ~((p >= 0) & (p <= 1 + _ROUNDING))  # written so that NaN is wrong, too
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
        where = table.where(row, table.numeric[column])
        raise UserError(f"{where}: {p[row, column]:.6g} is not a probability from 0 to 1{hint}")
    total = p.sum(axis=1)
    far = np.abs(total - 1) > _SUM_TOLERANCE
    if not several and far.any():
        far &= np.abs(total - 1) > _rounding_of_sums(p)
    if not several and far.any():
        row = int(np.argmax(far))
        names = ", ".join(table.numeric[:4]) + (", ..." if len(table.numeric) > 4 else "")
        raise UserError(
            f"{table.path}, line {table.line[row]}, columns {names}: the probabilities sum to "
            f"{total[row]:.6g}, not to 1; where an example may have several diagnoses, read it as "
            "multi_label"
        )


def _rounding_of_sums(p: np.ndarray) -> float:
    """Return by how much sums of K probabilities float64[N, K] written with few digits may miss 1.

    Each is rounded by up to half of the last digit; 0 where all are whole or have many digits.
    """
    written = (d for d in range(_MOST_DIGITS) if np.abs(p - np.round(p, d)).max() < 1e-9)
    digits = next(written, 0)
    return p.shape[1] * 0.5 * 10.0**-digits + 1e-9 if digits else 0.0


def _frames(table: Columns) -> tuple[list[dict], np.ndarray]:
    """Return the distinct (arm, split, seed, repeat, fold, size), and int64[N], each row's number.

    They are in the order in which they first appear.
    """
    fields: dict[str, list] = {
        "arm": table.text["arm"],
        "split": _splits(table) if "split" in table.code else ["test"],
    }
    fields |= {name: _whole(table, name) if name in table.code else [None] for name in MODEL}
    frame = np.zeros(len(table.line), np.int64)
    for name, values in fields.items():
        if len(values) > 1:
            again = Codes()  # "1" and "01" are the same number
            code = np.array([again[value] for value in values])[table.code[name]]
            frame = np.unique(frame * len(values) + code, return_inverse=True)[1]
    first = np.unique(frame, return_index=True)[1]
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    keys = []
    for row in first[order]:
        codes = {name: table.code[name][row] if name in table.code else 0 for name in _KEY}
        keys.append({name: fields[name][codes[name]] for name in _KEY})
    return keys, rank[frame]


def _whole(table: Columns, column: str) -> list[int | None]:
    """Return the numbers of a column; pandas writes 25.0 where another cell is empty."""
    least, numbers = int(column == "size"), []
    for code, text in enumerate(table.text[column]):
        digits = _DIGITS.fullmatch(text)
        if text and (digits is None or int(digits[1]) < least):
            raise UserError(
                f"{table.first(column, code)}: {text!r} is not a whole number of at least {least}"
            )
        numbers.append(int(digits[1]) if digits else None)
    return numbers


def _splits(table: Columns) -> list[str]:
    """Return the split's usual name for each distinct text of the column."""
    for code, text in enumerate(table.text["split"]):
        if text not in (*_SPLITS, *_SPLIT_ALIASES):
            where = table.first("split", code)
            raise UserError(f"{where}: {text!r} is not a split{nearest(text, _SPLITS)}")
    return [_SPLIT_ALIASES.get(text, text) for text in table.text["split"]]


def _check_once(table: Columns, frame: np.ndarray) -> None:
    ids = table.code["id"]
    pair = frame * len(table.text["id"]) + ids
    first = np.unique(pair, return_index=True)[1]
    again = np.setdiff1d(np.arange(len(ids)), first, assume_unique=True)
    if len(again):
        row = int(again[0])
        before = int(np.argmax(pair == pair[row]))
        same = ", ".join(name for name in _KEY if name in table.code)
        raise UserError(
            f"{table.where(row, 'id')}: {table.text['id'][ids[row]]!r} is already in line "
            f"{table.line[before]}, with the same {same}"
        )


def _check_same(table: Columns, column: str, value: np.ndarray) -> None:
    """Refuse an id that has one `value`, int[N], here and another elsewhere."""
    ids, text = table.code["id"], table.text[column]
    first = np.unique(ids, return_index=True)[1][ids]
    differing = np.flatnonzero(value != value[first])
    if len(differing):
        row, before = int(differing[0]), int(first[differing[0]])
        raise UserError(
            f"{table.where(row, column)}: {table.text['id'][ids[row]]!r} has "
            f"{text[table.code[column][row]]!r} here and {text[table.code[column][before]]!r} "
            f"in line {table.line[before]}"
        )
