"""Features that were computed before, one row an example: an `.npz` or columns of a CSV file.

The `.npz` holds `features` [N, D] and `labels` [N] (numbers or names), and optionally `ids`,
`patients`, `split`, `weights` and `classes`. In a CSV file, the features are the columns of a
pattern; the diagnosis, splits, patients and groups are as in a manifest. Refuses rows of another
number, and values that are not finite. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from medtl import files
from medtl.data import clinical, labels, schema, splits
from medtl.data import manifest as manifests
from medtl.data.table import Table
from medtl.data.values import TASKS
from medtl.errors import UserError, damaged, nearest, quoted


def read(
    spec: Any,
    *,
    key: str,
    require_label: bool,
    image_size: int,
    columns: str = "*",
    task: str = TASKS[0],
) -> Table:
    """Read precomputed features as the input `features` f32[N, D].

    Args:
      spec: a `medtl.config.dataset`; `path` is read, of a CSV file also `label`.
      key: the config key by which errors name this data set.
      require_label: False for examples to be scored.
      image_size: not used.
      columns: CSV: a pattern of the columns' names, such as "feature_*".
      task: one of `values.TASKS`, what the label is.

    Raises:
      UserError: as the module's docstring lists.
    """
    if pathlib.Path(spec.path).suffix == ".npz":
        return _of_npz(spec.path, key, require_label, task)
    return _of_csv(spec, key, require_label, columns, task)


def _of_csv(spec: Any, key: str, require_label: bool, pattern: str, task: str) -> Table:
    sheet = manifests._read_sheet(spec.path, f"{key}.path")
    special = (spec.label, "id", "patient_id", "split", "weight", "site", "image_path")
    names = [n for n in sheet.columns if fnmatch.fnmatchcase(n, pattern) and n not in special]
    if not names:
        raise UserError(f"{key}.kind: {spec.path} has no column {pattern!r} to read as features")
    if require_label:
        manifests._require(sheet, spec.label, f"{key}.label")
    matrix = []
    for name in names:
        values = schema.numbers(sheet.column(name))
        if values is None or np.isnan(values).any():
            cells = sheet.column(name)
            row = next(i for i, cell in enumerate(cells) if _is_gap(cell))
            raise UserError(
                f"{sheet.where(row, name)}: {quoted(cells[row])} is not a number; features have no "
                "missing values, those of a table do: config.data.inputs=('table',)"
            )
        matrix.append(values)
    none = schema.Columns((), {})
    table = clinical.table_of(
        sheet, spec.label, spec.multi_label, none, require_label, has_image=False, task=task
    )
    return _with_features(table, np.stack(matrix, axis=1), spec.path)


def _is_gap(cell: str) -> bool:
    value = schema.numbers([cell])
    return value is None or bool(np.isnan(value[0]))


def _with_features(table: Table, features: np.ndarray, path: str) -> Table:
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise UserError(f"{path}, {table.where(bad[0])}: a feature is not a finite number")
    inputs = {"features": features.astype(np.float32)}
    return dataclasses.replace(table, columns=None, inputs=inputs, present={})


def _of_npz(path: str, key: str, require_label: bool, task: str) -> Table:
    arrays = _arrays(path, key)
    if "features" not in arrays:
        raise UserError(f"{path} has no array `features`{nearest('features', arrays)}")
    features = arrays["features"]
    n = len(features)
    if features.ndim != 2 or features.dtype.kind not in "biuf":
        raise UserError(
            f"{path}: `features` is {features.dtype}{list(features.shape)}; it must be numbers "
            "[examples, features]"
        )
    for name in ("labels", "ids", "patients", "split", "weights"):
        if name in arrays and len(arrays[name].reshape(-1)) != n:
            raise UserError(f"{path}: `features` has {n} rows, `{name}` {len(arrays[name])}")
    label: np.ndarray = np.full(n, -1, np.int32)
    classes: tuple[str, ...] = ()
    if require_label:
        if "labels" not in arrays:
            raise UserError(f"{path} has no array `labels`{nearest('labels', arrays)}")
        label, classes = _labels(arrays, path, task)
    table = Table(
        name=pathlib.Path(path).stem,
        origin=path,
        id=arrays["ids"].astype(str) if "ids" in arrays else np.arange(n).astype(str),
        label=label,
        classes=classes,
        split=_splits(path, arrays["split"]) if "split" in arrays and require_label else None,
        patient=arrays["patients"].astype(str) if "patients" in arrays else None,
        weight=arrays.get("weights", np.ones(n)).astype(np.float32),
        line_or_row=np.arange(n),
        unit="row",
        images=np.zeros((n, 0, 0), np.uint8),
    )
    return _with_features(table, features, path)


def _arrays(path: str, key: str) -> Mapping[str, np.ndarray]:
    if not pathlib.Path(path).is_file():
        raise UserError(f"{key}.path: there is no file {path}")
    with damaged(f"{path} cannot be read as .npz"), files.open_npz(path) as file:
        return {name: file[name] for name in file.files}


def _labels(
    arrays: Mapping[str, np.ndarray], path: str, task: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    cells = arrays["labels"].reshape(-1).astype(str)
    if task == "regression":
        where = f"{path}, array `labels`, row "
        return labels.quantities(cells.tolist(), lambda row: f"{where}{row}"), ("labels",)
    names = labels.sorted_classes(set(cells.tolist()))
    index = {name: i for i, name in enumerate(names)}
    label = np.array([index[cell] for cell in cells.tolist()], np.int32)
    given = arrays.get("classes")
    if given is not None and len(given) == len(names) and all(n.isdecimal() for n in names):
        names = tuple(str(name) for name in given)
    return label, names


def _splits(path: str, values: np.ndarray) -> np.ndarray:
    names = [splits.ALIASES.get(str(v).lower(), str(v).lower()) for v in values.reshape(-1)]
    for row, name in enumerate(names):
        if name not in splits.NAMES:
            raise UserError(
                f"{path}, row {row}: {quoted(name)} is no split{nearest(name, splits.NAMES)}"
            )
    return np.array(names)
