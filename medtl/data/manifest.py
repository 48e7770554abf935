"""A manifest: a CSV file with one line per image.

Columns: `image_path` (absolute, or relative to the manifest; "scan.dcm#3" is frame 3, counted from
0), the diagnosis, and optionally `split` (train, val, test; valid and validation mean val),
`patient_id`, `weight` and `id` (by default the image_path). `site`, `subgroup` and
`subgroup_<name>` hold groups that results are reported for: any text, empty where unknown. Other
columns are ignored. The file is in UTF-8, with or without a byte order mark; spaces around a name
or a cell are ignored; a cell is text, so classes may be called "NA" or "None", but numbers have one
spelling ("1.0" is "1"). "|" joins several diagnoses of one example, a "?" before one of them means
unknown, and a lone "|" means none of them. `labels.MISSING` lists the texts that count as empty.

Refuses, with file, line and column: a missing column, an empty cell, an unknown split, a weight
that is not a number >= 0, a missing image, and a file that is not comma-separated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from typing import Any

import numpy as np

from medtl.data import labels, splits
from medtl.data.paths import Finder
from medtl.data.table import Table
from medtl.data.values import TASKS
from medtl.errors import UserError, nearest, quoted
from medtl.examples import is_group
from medtl.files import check_csv, check_length, read_csv

# With these spellings the columns would be ignored, and splits or patients lost silently.
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
    """Image files, read on demand.

    Attributes:
      paths: one for each row.
      frames: the frame in each file, counted from 0; None where the file has one.
    """

    paths: tuple[str, ...]
    frames: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> bytes:
        with open(self.paths[index], "rb") as file:
            return file.read()

    def frame(self, index: int) -> int | None:
        return self.frames[index]

    def take(self, rows: np.ndarray) -> Files:
        return Files(*(tuple(column[i] for i in rows) for column in (self.paths, self.frames)))


@dataclasses.dataclass(frozen=True)
class _Sheet:
    """The cells as text: `rows[i][columns[name]]`, and the line on which each row starts."""

    path: str
    columns: dict[str, int]
    rows: list[list[str]]
    lines: list[int]

    @functools.cached_property
    def _transposed(self) -> list[tuple[str, ...]]:
        return list(zip(*self.rows, strict=True))

    def column(self, name: str) -> list[str]:
        return list(self._transposed[self.columns[name]]) if self.rows else []

    def where(self, row: int, column: str) -> str:
        return f"{self.path}, line {self.lines[row]}, column {column}"


def read(
    spec: Any, *, key: str, require_label: bool, image_size: int, task: str = TASKS[0]
) -> Table:
    """Read a manifest and check that each image exists; none is decoded.

    Args:
      spec: a `medtl.config.dataset`; `path`, `label` and `multi_label` are read.
      key: the config key by which errors name this data set.
      require_label: False for a manifest to be scored; the column of labels is then ignored.
      image_size: not used.
      task: one of `values.TASKS`, what the label is.

    Raises:
      UserError: as the module's docstring lists.
    """
    path, label = spec.path, spec.label
    # A manifest to be scored is named by a flag, which has no fields.
    flag = key if key.startswith("-") else f"{key}.path"
    sheet = _read_sheet(path, flag)
    _require(sheet, "image_path", flag)
    if require_label:
        _require(sheet, label, f"{key}.label")
    _refuse_near_misses(sheet, label)
    n = len(sheet.rows)
    names = _filled(sheet, "image_path")
    answers: np.ndarray = np.full(n, -1, np.int32)
    classes: tuple[str, ...] = ()
    if require_label:
        answers, classes = _answers(sheet, label, multi_label=spec.multi_label, task=task)
    folder = pathlib.Path(path).parent
    return Table(
        name=folder.resolve().name
        if pathlib.Path(path).stem == "manifest"
        else pathlib.Path(path).stem,
        origin=path,
        id=np.array(_filled(sheet, "id") if "id" in sheet.columns else names),
        label=answers,
        classes=classes,
        split=_splits(sheet) if "split" in sheet.columns and require_label else None,
        patient=_patients(sheet) if "patient_id" in sheet.columns else None,
        weight=_weights(sheet) if "weight" in sheet.columns else np.ones(n, np.float32),
        line_or_row=np.array(sheet.lines),
        unit="line",
        images=_files(sheet, names, folder),
        groups=_groups(sheet, label),
    )


def _answers(
    sheet: _Sheet, label: str, *, multi_label: bool, task: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels and the classes; of a quantity the numbers and the column's name."""
    cells, where = sheet.column(label), functools.partial(_where, sheet, label)
    if task == "regression":
        return labels.quantities(cells, where), (label,)
    return labels.encode(cells, where, multi_label=multi_label)


def _where(sheet: _Sheet, column: str, row: int) -> str:
    return sheet.where(row, column)


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
    stripped = ((line, list(map(str.strip, row))) for line, row in read_csv(path, key=flag))
    records = [(line, row) for line, row in stripped if any(row)]
    if not records:
        raise UserError(
            f"{path} is empty; the first line names the columns: image_path, diagnosis, ..."
        )
    return _sheet(path, records)


def _sheet(path: str, records: list[tuple[int, list[str]]]) -> _Sheet:
    (line, header), body = records[0], records[1:]
    if any("\0" in name for name in header):
        raise UserError(
            f"{path}, line {line}: not a CSV file in UTF-8 (it holds NUL bytes); save it as one"
        )
    check_csv(path, line, header)
    if not body:
        raise UserError(f"{path} has a header and no rows; each further line is an image")
    unnamed = [i for i, name in enumerate(header) if not name]
    for line, row in body:
        check_length(path, line, row, header)
        if len(unnamed) > 1 and sum(bool(row[i]) for i in unnamed) > 1:
            raise UserError(
                f"{path}, line {line}: cells {unnamed[0] + 1} and {unnamed[1] + 1} are of columns "
                "without a name; name them in the first line, or leave them out"
            )
    columns = {name: i for i, name in enumerate(header)}
    return _Sheet(path, columns, [row for _, row in body], [line for line, _ in body])


def _require(sheet: _Sheet, column: str, key: str) -> None:
    if column not in sheet.columns:
        raise UserError(
            f"{sheet.path}, line 1 has no column {column!r} ({key}){nearest(column, sheet.columns)}"
        )


def _groups(sheet: _Sheet, label: str) -> dict[str, np.ndarray]:
    """Return the columns of groups, without the diagnosis where it has such a name."""
    return {
        name: np.array(["" if labels.is_missing(cell) else cell for cell in sheet.column(name)])
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
        if labels.is_missing(cell):
            problem = f"{quoted(cell)} is a missing value" if cell else "the cell is empty"
            raise UserError(f"{sheet.where(row, column)}: {problem}")
    return cells


def _patients(sheet: _Sheet) -> np.ndarray:
    """Return the patients, "" where unknown."""
    cells = sheet.column("patient_id")
    unknown = [labels.is_missing(cell) or cell.lower() in ("na", "none") for cell in cells]
    return np.where(unknown, "", cells)


def _splits(sheet: _Sheet) -> np.ndarray:
    names = []
    for row, cell in enumerate(sheet.column("split")):
        name = splits.ALIASES.get(cell.lower(), cell.lower())
        if name not in splits.NAMES:
            problem = f"{quoted(cell)} is not a split" if cell else "the cell is empty"
            raise UserError(f"{sheet.where(row, 'split')}: {problem}{nearest(name, splits.NAMES)}")
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
            raise UserError(f"{sheet.where(row, 'weight')}: {quoted(cell)} is not a number >= 0")
        weights.append(value)
    return np.array(weights, np.float32)


def _files(sheet: _Sheet, names: list[str], folder: pathlib.Path) -> Files:
    finder = Finder(folder)
    files = [finder.find(name) for name in names]
    missing = [row for row, file in enumerate(files) if file is None]
    if missing:
        listed = ", ".join(f"{quoted(names[i])} (line {sheet.lines[i]})" for i in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        near = finder.near(names[missing[0]])
        hint = f"; did you mean {near!r}?" if near else ""
        raise UserError(
            f"{sheet.path}, column image_path: {len(missing)} of {len(names)} "
            f"images are missing: {listed}"
            f"{more}; paths are relative to {os.path.dirname(sheet.path) or '.'}{hint}"
        )
    located = [file for file in files if file]  # none, where no row of a table has an image
    return Files(tuple(path for path, _ in located), tuple(frame for _, frame in located))
