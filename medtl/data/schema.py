"""The role of each column of a clinical table, inferred from its name and cells, with the reason.

A config overrides roles by "COLUMN=ROLE"; a pattern such as "*=ignore" applies to the columns that
would be inputs. Refuses a role that does not exist, a column that the file lacks, and a column of
numbers with a few cells that are none. Imports no JAX.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from medtl.data import embeddings
from medtl.errors import UserError, nearest, quoted
from medtl.examples import is_group

INPUTS = ("image", "numeric", "categorical", "text", "embedding")
ROLES = (*INPUTS, "label", "id", "patient_id", "split", "weight", "subgroup", "site", "ignore")
NUMBERS = ("standard", "quantile", "piecewise_linear")  # how numbers become inputs
CODES = 10  # at most so many whole numbers are codes, such as 1 to 4 for a type of pain
CATEGORIES = 50  # at most so many different words are categories
MISSING = frozenset(
    ("", "na", "n/a", "#n/a", "nan", "null", "nil", "?", "-", "--", ".", "missing", "unknown")
)
_LONGEST = max(map(len, MISSING))
_NONE = "none"  # missing among numbers; among words it may be an answer
_BY_NAME = {"image_path": "image"} | {
    name: name for name in ("id", "patient_id", "split", "weight", "site")
}
_IDENTIFIER = re.compile(r"(^|.*[\W_])(id|ids|mrn|uuid|guid|accession)|unnamed: 0|index|")
# Numbers that float() does not read: 12,5 and 1,234.5 and 1.234,5; ="12" of a spreadsheet; 5 mg/l.
_COMMA = re.compile(r"[+-]?\d+(,\d+)+(\.\d+)?|[+-]?\d{1,3}(\.\d{3})+,\d+", re.ASCII)
_FORMULA = re.compile(r'="[+-]?[\d.,]+"', re.ASCII)
_WITH_UNIT = re.compile(r"[<>~]?[+-]?\d+([.,]\d+)?\s*([^\W\d_].*|[%°µ].*)")
_DATE = re.compile(
    r"\d{4}[./-]\d{1,2}[./-]\d{1,2}([ T].*)?|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}( .*)?"
    r"|\d{1,2}\.?[ -][^\W\d_]{3,9}\.?[ ,-]+\d{2,4}( .*)?"
)


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
      name: its name in the header.
      role: one of `ROLES`.
      reason: why it has that role.
      missing: the share of its cells that are missing.
    """

    name: str
    role: str
    reason: str
    missing: float = 0.0


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table and the cells of those that are inputs.

    Attributes:
      schema: every column, in the order of the file.
      cells: the columns that are inputs, but images, by name: float64[N], NaN where missing, if
        all cells are numbers; embeddings float32[N, D], a row of NaN where missing; else object[N]
        of str, "" where missing.
    """

    schema: tuple[Column, ...]
    cells: Mapping[str, np.ndarray]

    def take(self, rows: np.ndarray) -> Columns:
        """Return the given rows, in the given order."""
        return Columns(self.schema, {name: cells[rows] for name, cells in self.cells.items()})

    def named(self, role: str) -> list[str]:
        """Return the names of the columns with a role."""
        return [column.name for column in self.schema if column.role == role]


def overrides(texts: Iterable[str], header: Sequence[str], *, key: str) -> dict[str, str]:
    """Return column -> role, as the config gives it; later ones come first.

    Args:
      texts: "COLUMN=ROLE", with a column's name or a pattern.
      header: the names of the columns.
      key: the config's key, for errors.

    Raises:
      UserError: there is no such role or column.

    >>> overrides(["*=ignore", "age=numeric"], ["age", "sex"], key="config.data.target.columns")
    {'age': 'numeric', '*': 'ignore'}
    """
    given: dict[str, str] = {}
    for text in texts:
        name, equals, role = text.rpartition("=")
        if not equals:
            raise UserError(f"{key}: {text!r} must be COLUMN=ROLE")
        if role not in ROLES:
            raise UserError(f"{key}: {text!r}: the role is {role!r}{nearest(role, ROLES)}")
        is_pattern = name not in header
        if is_pattern and not any(fnmatch.fnmatchcase(column, name) for column in header):
            raise UserError(f"{key}: there is no column {name!r}{nearest(name, header)}")
        if is_pattern and role not in (*INPUTS, "ignore"):
            raise UserError(f"{key}: {text!r}: the role {role} belongs to one column; name it")
        given = {name: role} | {k: v for k, v in given.items() if k != name}
    return given


def infer(
    header: Sequence[str],
    column: Callable[[str], list[str]],
    given: Mapping[str, str],
    *,
    label: str,
    where: Callable[[int, str], str],
) -> Columns:
    """Infer the role of every column.

    Args:
      header: the names of the columns.
      column: name -> its cells as text, without spaces around them.
      given: from `overrides`.
      label: the name of the column that holds the diagnosis.
      where: (row, column) -> the words by which an error names a cell.

    Raises:
      UserError: a column of numbers holds cells that are none, or writes them in another way.
    """
    schema, cells = [], {}
    for name in header:
        role, reason = _by_name(name, given, label)
        if role and role not in INPUTS[1:]:
            schema.append(Column(name, role, reason))
            continue
        text = column(name)
        values = numbers(text) if role in ("", "numeric", "categorical") else None
        if values is None and role in ("", "embedding"):
            values = _embeddings(name, text, role, where)
        if values is None:
            _refuse_few_words(name, text, role, where)
            if not role:
                _refuse_other_numbers(name, text, where)
            filled = {cell: _filled(cell) for cell in set(text)}
            values = np.array([filled[cell] for cell in text], object)
        if not role:
            role, reason = _by_cells(name, values)
        schema.append(Column(name, role, reason, float(np.mean(is_missing(values)))))
        if role in INPUTS:
            cells[name] = values
    return Columns(tuple(schema), cells)


def _by_name(name: str, given: Mapping[str, str], label: str) -> tuple[str, str]:
    """Return the role that the config or the name gives, "" where only the cells show it."""
    if name in given:
        return given[name], "given by the config"
    if name == label:
        return "label", "the diagnosis"
    if is_group(name) and name != "site":
        return "subgroup", "its name"
    if name in _BY_NAME:
        return _BY_NAME[name], "its name"
    for pattern, role in given.items():
        if fnmatch.fnmatchcase(name, pattern):
            return role, f"given by the config: {pattern}"
    return "", ""


def _by_cells(name: str, values: np.ndarray) -> tuple[str, str]:
    """Return the role and the reason that the cells show."""
    present = values[~is_missing(values)]
    if values.ndim == 2:
        return "embedding", f"lists of {values.shape[1]} numbers"
    if not len(present):
        return "ignore", "every cell is empty"
    distinct = np.unique(present) if values.dtype != object else set(present)
    n = len(distinct)
    if n == len(present) > 2 and _IDENTIFIER.fullmatch(name.lower()):
        return "ignore", "an identifier: its name, and every value differs"
    if values.dtype != object:
        if 2 < n <= CODES and np.all(present == np.floor(present)):
            return "categorical", f"whole numbers, {n} different ones: codes"
        return "numeric", "one value" if n == 1 else "numbers"
    if all(_DATE.fullmatch(value) for value in distinct):
        return "ignore", "dates; give an age or a duration as a number"
    words = np.mean([len(value.split()) for value in distinct])
    if n <= CATEGORIES and (n <= CODES or n <= len(present) / 5) and words <= 4:
        return "categorical", f"{n} different words"
    if words >= 2:
        return "text", f"{n} different texts of {words:.0f} words on average"
    if n == len(present):
        return "ignore", "every value differs: an identifier"
    if n <= CATEGORIES:
        return "categorical", f"{n} different words"
    return "text", f"{n} different words, more than {CATEGORIES} categories"


def numbers(cells: Sequence[str]) -> np.ndarray | None:
    """Return float64[N], NaN where missing; None where a cell is neither a number nor missing.

    >>> numbers(["1.5", "", "NA"]).tolist(), numbers(["1.5", "high"])
    ([1.5, nan, nan], None)
    """
    try:
        values = np.array([float(cell) if cell else math.nan for cell in cells])
    except ValueError:
        words = (cell if _filled(cell, is_number=True) else "nan" for cell in cells)
        try:
            values = np.array([float(cell) for cell in words])  # stops at the first word
        except ValueError:
            return None
    return values if not np.isinf(values).any() else None


def is_missing(values: np.ndarray) -> np.ndarray:
    """Return bool[N], whether each cell of a column of `Columns.cells` is missing."""
    if values.dtype == object:
        return values == ""
    return np.isnan(values if values.ndim == 1 else values[:, 0])


def canonical(values: np.ndarray) -> np.ndarray:
    """Return object[N], the categories of a column as text: numbers in their shortest form.

    >>> canonical(np.array(["1.0", "1", "low"], object)).tolist()
    ['1', '1', 'low']
    """
    if values.dtype != object:
        distinct, row = np.unique(values, return_inverse=True)
        return np.array(["" if np.isnan(x) else f"{x:.12g}" for x in distinct], object)[row]
    names = {value: _canonical(value) for value in set(values)}
    return np.array([names[value] for value in values], object)


def _canonical(text: str) -> str:
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _filled(cell: str, *, is_number: bool = False) -> str:
    if len(cell) > _LONGEST:  # most numbers are longer
        return cell
    lower = cell.lower()
    return "" if lower in MISSING or (is_number and lower == _NONE) else cell


def _embeddings(
    name: str, cells: Sequence[str], role: str, where: Callable[[int, str], str]
) -> np.ndarray | None:
    """Return float32[N, D] of a column of lists; None where its cells do not look like that."""
    first = next(filter(_filled, cells), "")
    if not first or not (role or embeddings.looks_like([first])):
        return None
    filled = [_filled(cell) for cell in cells]
    if role or embeddings.looks_like([cell for cell in filled if cell]):
        return embeddings.parse(filled, lambda row: where(row, name))
    return None


def _refuse_few_words(
    name: str, cells: Sequence[str], role: str, where: Callable[[int, str], str]
) -> None:
    """Refuse a column whose cells are numbers but for at most one in ten, or that must be."""
    if role in ("categorical", "text"):
        return
    counts = collections.Counter(cells)
    present = {cell: n for cell, n in counts.items() if _filled(cell, is_number=True)}
    odd = {cell: n for cell, n in present.items() if not _is_number(cell)}
    n, n_odd = sum(present.values()), sum(odd.values())
    if role == "numeric" or (n >= 10 and n_odd <= n // 10):
        row, cell = next((i, cell) for i, cell in enumerate(cells) if cell in odd)
        raise UserError(
            f"{where(row, name)}: {quoted(cell)} is not a number, as {n - n_odd} of "
            f"{n} cells are; write a number, leave it empty, or set the column's role: "
            f"columns=({f'{name}=categorical'!r},)"
        )


def _refuse_other_numbers(
    name: str, cells: Sequence[str], where: Callable[[int, str], str]
) -> None:
    """Refuse a column of numbers that are written as a person or a spreadsheet writes them.

    It would be ignored as an identifier, or become categories.
    """
    first = next((cell for cell in cells if _filled(cell, is_number=True)), "")
    if not any(character.isdigit() for character in first):
        return
    present = {cell for cell in cells if _filled(cell, is_number=True)}
    units = {match[2] for cell in present if (match := _WITH_UNIT.fullmatch(cell))}
    kinds = (
        (_COMMA, 2, "a number with a comma; write a point, and nothing between thousands"),
        (_FORMULA, 2, "a spreadsheet's formula; write the number alone"),
        (_WITH_UNIT, CODES + 1, "a number with a unit; write the number alone"),
    )
    for pattern, least, words in kinds:
        odd = {c for c in present if pattern.fullmatch(c) and not _DATE.fullmatch(c)}
        are_numbers = len(present) >= least and all(c in odd or _is_number(c) for c in present)
        if not odd or not are_numbers or (pattern is _WITH_UNIT and len(units) > 1):
            continue
        row, cell = next((i, cell) for i, cell in enumerate(cells) if cell in odd)
        raise UserError(
            f"{where(row, name)}: {quoted(cell)} reads as {words}, or set the column's role: "
            f"columns=({f'{name}=categorical'!r},)"
        )


def lines(name: str, columns: Columns, *, most: int = 40) -> list[str]:
    """Return lines for the terminal: each column's role, missing cells and reason.

    Args:
      name: of the data set.
      columns: its columns.
      most: wider tables show a line for each role instead.
    """
    if len(columns.schema) > most:
        counts: dict[str, list[str]] = {}
        for column in columns.schema:
            counts.setdefault(column.role, []).append(column.name)
        return [f"{name}: {len(columns.schema)} columns"] + [
            f"  {role:<12} {len(names):>4}: {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
            for role, names in counts.items()
        ]
    width = max(len(column.name) for column in columns.schema)
    rows = [f"{name}: {len(columns.schema)} columns"]
    for column in columns.schema:
        missing = f", {column.missing:.0%} missing" if column.missing else ""
        rows.append(f"  {column.name:<{width}}  {column.role:<11}  {column.reason}{missing}")
    return rows
