"""A manifest: a CSV file with one line per image.

Columns: `image_path` (absolute, or relative to the manifest), the diagnosis, and optionally `split` (train, val, test; valid
and validation mean val), `patient_id`, `weight` and `id` (the image_path where it is not given). `site`, `subgroup` and
`subgroup_<name>` hold groups by which results are broken down: any text, empty where unknown. Other columns are ignored.
UTF-8 with or without a byte order mark; spaces around a name or a cell do not count; a cell is text, so that classes may be
called "NA" or "None". Where an example may have several diagnoses they are joined by "|", and a lone "|" means none of them.

Refuses, with file, line and column: a missing column, an empty cell, an unknown split, a weight that is not a number >= 0,
an image that is not there, and what is not a comma-separated file.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import pathlib

import numpy as np

from medtl.data import splits
from medtl.data.table import Table
from medtl.errors import UserError, nearest
from medtl.examples import is_group

# Written so, these would be ignored, and a split, a patient or a group lost without a word.
_NEAR_MISSES = {
    "split": "split",
    "patientid": "patient_id",
    "patient": "patient_id",
    "site": "site",
    "subgroup": "subgroup",
    "subgroups": "subgroup",
}


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files, read when asked for."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> bytes:
        with open(self.paths[index], "rb") as file:
            return file.read()

    def take(self, rows: np.ndarray) -> Files:
        return Files(tuple(self.paths[i] for i in rows))


@dataclasses.dataclass(frozen=True)
class _Sheet:
    """The cells as text: `rows[i][columns[name]]`, and the line on which each row starts."""

    path: str
    columns: dict[str, int]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        at = self.columns[name]
        return [row[at] for row in self.rows]

    def where(self, row: int, column: str) -> str:
        return f"{self.path}, line {self.lines[row]}, column {column}"


def read(path: str, *, label: str, multi_label: bool, require_label: bool, key: str) -> Table:
    """Reads a manifest; every image is known to exist, none is decoded.

    Args:
      path: the CSV file.
      label: the column that holds the diagnosis.
      multi_label: whether a cell of it may hold several.
      require_label: False for a manifest to be scored; the column is then not looked at.
      key: the config key by which errors name this data set.

    Raises:
      UserError: for everything in the module's docstring.
    """
    # A manifest to be scored is named by a flag, which has no fields.
    flag = key if key.startswith("-") else f"{key}.path"
    sheet = _read_sheet(path, flag)
    _require(sheet, "image_path", flag)
    if require_label:
        _require(sheet, label, f"{key}.label")
    _refuse_near_misses(sheet, label)
    n = len(sheet.rows)
    names = _filled(sheet, "image_path")
    labels, classes = (
        _labels(sheet, label, multi_label) if require_label else (np.full(n, -1, np.int32), ())
    )
    folder = pathlib.Path(path).parent
    table = Table(
        name=folder.resolve().name
        if pathlib.Path(path).stem == "manifest"
        else pathlib.Path(path).stem,
        origin=path,
        id=np.array(_filled(sheet, "id") if "id" in sheet.columns else names),
        label=labels,
        classes=classes,
        split=_splits(sheet) if "split" in sheet.columns and require_label else None,
        patient=np.array(sheet.column("patient_id")) if "patient_id" in sheet.columns else None,
        weight=_weights(sheet) if "weight" in sheet.columns else np.ones(n, np.float32),
        place=np.array(sheet.lines),
        place_word="line",
        images=Files(tuple(os.path.join(folder, name) for name in names)),
        groups=_groups(sheet, label),
    )
    _check_images(table, names)
    return table


def _read_sheet(path: str, flag: str) -> _Sheet:
    if not path:
        raise UserError(f"{flag} is empty; it is the path of a manifest CSV")
    if os.path.isdir(path):
        beside = os.path.join(path, "manifest.csv")
        hint = (
            f"; did you mean {beside!r}?"
            if os.path.isfile(beside)
            else "; it is the path of a manifest CSV"
        )
        raise UserError(f"{flag}: {path} is a directory{hint}")
    records: list[tuple[int, list[str]]] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            line = 1
            for record in reader:
                if any(cell.strip() for cell in record):
                    records.append((line, [cell.strip() for cell in record]))
                line = reader.line_num + 1
    except FileNotFoundError:
        raise UserError(f"{flag}: there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a CSV file in UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not a CSV file ({error})") from None
    except OSError as error:
        raise UserError(f"{flag}: cannot read {path} ({error.strerror})") from None
    if not records:
        raise UserError(
            f"{path} is empty; the first line names the columns: image_path, diagnosis, ..."
        )
    return _sheet(path, records)


def _sheet(path: str, records: list[tuple[int, list[str]]]) -> _Sheet:
    (line, header), body = records[0], records[1:]
    if len(header) == 1 and len(header[0]) < 10_000:
        for mark, word in ((";", "semicolons"), ("\t", "tabs")):
            if mark in header[0]:
                raise UserError(
                    f"{path}, line {line}: the columns are separated by {word}; separate them by commas"
                )
    for name in header:
        if header.count(name) > 1 and name:
            raise UserError(f"{path}, line {line}: two columns are called {name!r}")
    if any("\0" in name for name in header):
        raise UserError(f"{path}, line {line}: not a CSV file (it holds NUL bytes)")
    if not body:
        raise UserError(f"{path} has a header and no rows; each further line is an image")
    for line, row in body:
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} cells, but the header has {len(header)} columns; "
                "a cell that holds a comma needs quotes"
            )
    columns = {name: i for i, name in enumerate(header)}
    return _Sheet(path, columns, [row for _, row in body], [line for line, _ in body])


def _require(sheet: _Sheet, column: str, key: str) -> None:
    if column not in sheet.columns:
        raise UserError(
            f"{sheet.path}, line 1 has no column {column!r} ({key}){nearest(column, sheet.columns)}"
        )


def _groups(sheet: _Sheet, label: str) -> dict[str, np.ndarray]:
    """The columns of groups, less the diagnosis where it is called like one."""
    return {
        name: np.array(sheet.column(name))
        for name in sheet.columns
        if is_group(name) and name != label
    }


def _refuse_near_misses(sheet: _Sheet, label: str) -> None:
    for column in sheet.columns:
        if column.lower().startswith("subgroup_") and not is_group(column) and column != label:
            raise UserError(
                f"{sheet.path}, line 1: column {column!r}; did you mean 'subgroup_<name>'?"
            )
        meant = _NEAR_MISSES.get(column.lower().replace("_", "").replace(" ", ""))
        if meant and meant not in sheet.columns and column != label:
            raise UserError(f"{sheet.path}, line 1: column {column!r}; did you mean {meant!r}?")


def _filled(sheet: _Sheet, column: str) -> list[str]:
    cells = sheet.column(column)
    for row, cell in enumerate(cells):
        if not cell:
            raise UserError(f"{sheet.where(row, column)}: the cell is empty")
    return cells


def _labels(sheet: _Sheet, column: str, multi_label: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    cells = _filled(sheet, column)
    for row, cell in enumerate(cells):
        if cell.lower() == "nan":
            raise UserError(
                f"{sheet.where(row, column)}: the label is {cell!r}; every row needs a diagnosis"
            )
    sets = [
        {part.strip() for part in cell.split("|")} - {""} if multi_label else {cell}
        for cell in cells
    ]
    classes = sorted_classes(set().union(*sets))
    _refuse_case_twins(sheet, column, classes, sets)
    index = {name: i for i, name in enumerate(classes)}
    if not multi_label:
        return np.array([index[cell] for cell in cells], np.int32), classes
    label = np.zeros((len(cells), len(classes)), np.float32)
    for row, names in enumerate(sets):
        label[row, [index[name] for name in names]] = 1.0
    return label, classes


def sorted_classes(names: set[str]) -> tuple[str, ...]:
    """Sorted as numbers where all are, else as text."""
    return tuple(
        sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)
    )


def _refuse_case_twins(
    sheet: _Sheet, column: str, classes: tuple[str, ...], sets: list[set[str]]
) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            row = next(i for i, names in enumerate(sets) if name in names)
            raise UserError(
                f"{sheet.where(row, column)}: {name!r} and {other!r} differ in case only; write one of them"
            )


def _splits(sheet: _Sheet) -> np.ndarray:
    names = []
    for row, cell in enumerate(sheet.column("split")):
        name = splits.ALIASES.get(cell.lower(), cell.lower())
        if name not in splits.NAMES:
            said = f"{cell!r} is not a split" if cell else "the cell is empty"
            raise UserError(f"{sheet.where(row, 'split')}: {said}{nearest(name, splits.NAMES)}")
        names.append(name)
    return np.array(names)


def _weights(sheet: _Sheet) -> np.ndarray:
    weights = []
    for row, cell in enumerate(_filled(sheet, "weight")):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise UserError(f"{sheet.where(row, 'weight')}: {cell!r} is not a number >= 0")
        weights.append(value)
    return np.array(weights, np.float32)


def _check_images(table: Table, names: list[str]) -> None:
    assert isinstance(table.images, Files)
    missing = [i for i, path in enumerate(table.images.paths) if not os.path.isfile(path)]
    if missing:
        listed = ", ".join(f"{names[i]!r} ({table.where(i)})" for i in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{table.origin}, column image_path: {len(missing)} of {len(table)} images are missing: {listed}{more}; "
            f"paths are relative to {os.path.dirname(table.origin) or '.'}"
        )
