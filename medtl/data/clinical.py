"""A clinical table: a CSV file with a line per example, whose columns are inputs of a model.

Beside what `medtl.data.manifest` reads, every column has a role, see `medtl.data.schema`. A row may
lack some of the inputs. Refuses what a manifest refuses, an input for which no column exists, and a
row without any input, unless that is allowed. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.data import labels, schema
from medtl.data import manifest as manifests
from medtl.data.manifest import Files
from medtl.data.table import Table
from medtl.data.values import TASKS, settle
from medtl.errors import UserError
from medtl.examples import ImageSource, is_group

AUTO = "auto"
OF_CELLS = {
    "table": ("numeric", "categorical"),
    "text": ("text",),
    "features": ("embedding",),
}


def read(
    spec: Any,
    *,
    key: str,
    require_label: bool,
    inputs: Sequence[str],
    roles: Mapping[str, str] | None = None,
    task: str = TASKS[0],
    allow: Sequence[str] = (),
) -> Table:
    """Read a table; no image is decoded.

    Args:
      spec: a `medtl.config.dataset`; `path`, `label`, `multi_label` and `columns` are read.
      key: the config key by which errors name this data set.
      require_label: False for examples to be scored; the column of labels is then ignored.
      inputs: those of the model: "image", "table", "text", "features"; or "auto" alone.
      roles: column -> role, for every column that is an input, of the run that scores, and for
        images and ids under another name; other columns are ignored, and those that are absent are
        missing. None: roles are inferred.
      task: one of `values.TASKS`, what the label is.
      allow: names of `values.CHECKS`.

    Raises:
      UserError: as the module's docstring lists.
    """
    fields = (spec.path, spec.label, spec.multi_label, tuple(spec.columns))
    given = None if roles is None else tuple(sorted(roles.items()))
    table = _read(fields, _stamp(spec.path), key, require_label, tuple(inputs), given, task)
    note = _check_inputs(table, inputs, key, is_scored=roles is not None, allow=allow)
    return dataclasses.replace(table, notes=(*table.notes, note)) if note else table


def _stamp(path: str) -> tuple[int, int] | None:
    """Return what changes with the file; None: there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=2)  # the check of the config and the run read the same large file
def _read(
    fields: tuple[str, str, bool, tuple[str, ...]],
    stamp: tuple[int, int] | None,
    key: str,
    require_label: bool,
    inputs: tuple[str, ...],
    roles: tuple[tuple[str, str], ...] | None,
    task: str,
) -> Table:
    path, label, multi_label, texts = fields
    flag = key if key.startswith("-") else f"{key}.path"
    sheet = manifests._read_sheet(path, flag)
    header = list(sheet.columns)
    if roles is None:
        given = schema.overrides(texts, header, key=f"{key}.columns")
    else:
        role_of = dict(roles)
        given = {
            name: role_of.get(name, "ignore")
            for name in header
            if name in role_of or name not in _SPECIAL
        }
    label = next((name for name, role in given.items() if role == "label"), label)
    columns = schema.infer(header, sheet.column, given, label=label, where=sheet.where)
    sheet = dataclasses.replace(sheet, columns=_renamed(sheet.columns, given))
    if require_label:
        manifests._require(sheet, label, f"{key}.label")
    manifests._refuse_near_misses(sheet, label)
    has_image = _has_image(sheet, inputs, flag, is_scored=roles is not None)
    return table_of(
        sheet, label, multi_label, columns, require_label, has_image=has_image, task=task
    )


_SPECIAL = ("image_path", "id", "patient_id", "weight", "split")


def _renamed(columns: Mapping[str, int], given: Mapping[str, str]) -> dict[str, int]:
    """Return the columns under the names that a manifest gives to their roles."""
    named = dict(columns)
    for name, role in given.items():
        if name not in columns:  # a pattern
            continue
        meant = {"image": "image_path", "subgroup": name if is_group(name) else f"subgroup_{name}"}
        meant |= {role: role for role in ("id", "patient_id", "split", "weight", "site")}
        index = named.pop(name)
        if role in meant:
            named[meant[role]] = index
        elif role in ("label", "ignore") and name not in _SPECIAL and not is_group(name):
            named[name] = index
    return named


def _has_image(sheet: Any, inputs: Sequence[str], flag: str, *, is_scored: bool) -> bool:
    """Return whether images are read; rows to be scored by other inputs may all lack them."""
    if "image" in inputs and is_scored:
        return True
    if "image" in inputs:
        manifests._require(sheet, "image_path", flag)
    elif AUTO not in inputs or "image_path" not in sheet.columns:
        return False
    is_empty = all(map(labels.is_missing, sheet.column("image_path")))
    if is_empty and "image" in inputs:
        raise UserError(
            f"{sheet.path}, column image_path: every cell is empty; leave 'image' out of "
            "config.data.inputs"
        )
    return not is_empty


def table_of(
    sheet: Any,
    label: str,
    multi_label: bool,
    columns: schema.Columns,
    require_label: bool,
    *,
    has_image: bool,
    task: str = TASKS[0],
) -> Table:
    """Return the rows of a sheet with what is no input: labels, splits, patients, groups.

    Args:
      sheet: the cells.
      label: the name of the column that holds the diagnosis.
      multi_label: whether a cell holds several diagnoses.
      columns: the roles and cells of the inputs.
      require_label: False for examples to be scored.
      has_image: whether the column `image_path` is read.
      task: as in `read`.
    """
    n, path = len(sheet.rows), pathlib.Path(sheet.path)
    answers: np.ndarray = np.full(n, -1, np.int32)
    classes: tuple[str, ...] = ()
    if require_label:
        answers, classes = manifests._answers(sheet, label, multi_label=multi_label, task=task)
    names = [""] * n
    if has_image:
        cells = sheet.column("image_path") if "image_path" in sheet.columns else names
        names = ["" if labels.is_missing(cell) else cell for cell in cells]
    return Table(
        name=path.parent.resolve().name if path.stem == "manifest" else path.stem,
        origin=sheet.path,
        id=_ids(sheet, names),
        label=answers,
        classes=classes,
        split=_splits(sheet) if "split" in sheet.columns and require_label else None,
        patient=manifests._patients(sheet) if "patient_id" in sheet.columns else None,
        weight=manifests._weights(sheet) if "weight" in sheet.columns else np.ones(n, np.float32),
        line_or_row=np.array(sheet.lines),
        unit="line",
        images=_files(sheet, names) if has_image else np.zeros((n, 0, 0), np.uint8),
        groups=manifests._groups(sheet, label),
        columns=columns,
        present=_present(columns, np.array([bool(name) for name in names]) if has_image else None),
    )


def _files(sheet: Any, names: list[str]) -> Files:
    """Return the images; a row without one has an empty path."""
    rows = [row for row, name in enumerate(names) if name]
    filled = dataclasses.replace(sheet, lines=[sheet.lines[row] for row in rows])
    files = manifests._files(filled, [names[r] for r in rows], pathlib.Path(sheet.path).parent)
    paths = [""] * len(names)
    frames: list[int | None] = [None] * len(names)
    for row, path, frame in zip(rows, files.paths, files.frames, strict=True):
        paths[row], frames[row] = path, frame
    return Files(tuple(paths), tuple(frames))


def _ids(sheet: Any, names: list[str]) -> np.ndarray:
    """Return the column `id`, else unique image paths or patients, else the line numbers."""
    if "id" in sheet.columns:
        return np.array(manifests._filled(sheet, "id"))
    patients = sheet.column("patient_id") if "patient_id" in sheet.columns else names
    for candidates in (names, patients):
        if all(candidates) and len(set(candidates)) == len(candidates):
            return np.array(candidates)
    if all(names):
        return np.array(names)
    return np.array([f"line_{line}" for line in sheet.lines])


def _splits(sheet: Any) -> np.ndarray:
    """Return the splits; an empty cell leaves a row out of every split."""
    cells = sheet.column("split")
    rows = [row for row, cell in enumerate(cells) if cell]
    split = np.full(len(cells), "", "<U5")
    if rows:
        filled = dataclasses.replace(
            sheet, rows=[sheet.rows[r] for r in rows], lines=[sheet.lines[r] for r in rows]
        )
        split[rows] = manifests._splits(filled)
    if len(rows) < len(cells):
        print(f"{sheet.path}: {len(cells) - len(rows)} rows without a split are left out")
    return split


def _present(columns: schema.Columns, image: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return input -> bool[N], whether each row has it, for the inputs that have a column."""
    present = {} if image is None else {"image": image}
    for name, roles in OF_CELLS.items():
        cells = [columns.cells[column] for role in roles for column in columns.named(role)]
        if cells:
            present[name] = np.any([~schema.is_missing(values) for values in cells], axis=0)
    return present


def _check_inputs(
    table: Table, inputs: Sequence[str], key: str, *, is_scored: bool, allow: Sequence[str]
) -> str:
    """Refuse inputs without a column; return a note on rows that have none of the inputs."""
    names = list(table.present) if AUTO in inputs else list(inputs)
    absent = [name for name in names if name not in table.present]
    if absent and not is_scored:
        kinds = " or ".join(OF_CELLS[absent[0]])
        raise UserError(
            f"{table.origin} has no {kinds} column for the input {absent[0]!r} of "
            f"config.data.inputs; {key}.columns can give one the role"
        )
    shown = [table.present[name] for name in names if name in table.present]
    empty = np.flatnonzero(~np.any(shown, axis=0) if shown else np.ones(len(table), bool))
    if not len(empty):
        return ""
    finding = (
        f"{table.origin}, {table.where(empty[0])}: the row has none of the inputs "
        f"{', '.join(names)} ({len(empty)} rows have none)"
    )
    return settle(finding, "leave it out", "rows_without_inputs", allow)


def with_blanks(
    table: Table,
    image: np.ndarray | ImageSource | None,
    contents: Sequence[bytes],
    shape: tuple[int, int, int],
) -> tuple[np.ndarray | ImageSource, list[bytes]]:
    """Return images and digests for every row: those of the rows that have one, else black.

    Args:
      table: all rows.
      image: the images of the rows that have one; None: no row has one.
      contents: their digests.
      shape: of an image.
    """
    blank = np.zeros(shape, np.uint8)
    if image is None:
        return np.broadcast_to(blank, (len(table), *shape)), [b""] * len(table)
    rows = np.flatnonzero(table.present["image"])
    position = np.full(len(table), -1)
    position[rows] = np.arange(len(rows))
    digests = [contents[i] if i >= 0 else b"" for i in position]
    if type(image) is np.ndarray:
        return np.where((position >= 0)[:, None, None, None], image[position], blank), digests
    return WithBlanks(image, position, blank), digests


@dataclasses.dataclass(frozen=True, eq=False)
class WithBlanks:
    """An `ImageSource` in which some rows have no image.

    Attributes:
      image: the images.
      position: int[N], the row in `image`, -1 where there is none.
      blank: stands for those.
    """

    image: Any
    position: np.ndarray
    blank: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, index: int) -> np.ndarray:
        position = self.position[index]
        return self.blank if position < 0 else np.asarray(self.image[position])


def digest(columns: schema.Columns) -> bytes:
    """Return a sha256 over the roles and cells of the columns."""
    content = hashlib.sha256()
    for column in columns.schema:
        content.update(f"{column.name}\0{column.role}\0".encode())
    for values in columns.cells.values():
        content.update("\0".join(values).encode() if values.dtype == object else values.tobytes())
    return content.digest()
