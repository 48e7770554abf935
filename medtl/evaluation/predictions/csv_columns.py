"""A CSV file of a million rows as columns: text as numbers of its distinct cells, and numbers.

Refuses, with the line, rows of another length than the header, and text where a number belongs.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from medtl.errors import UserError
from medtl.files import check_length, read_csv

_CHUNK = 1 << 16  # rows whose cells are held as text at one time


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a file of N rows.

    Attributes:
      path: of the file.
      line: int64[N], on which each row starts.
      numeric: names of the K columns of numbers, in their order.
      numbers: float64[N, K].
      text: column -> its distinct cells, in order of first appearance.
      code: column -> int32[N], an index into them.
    """

    path: pathlib.Path
    line: np.ndarray
    numeric: tuple[str, ...]
    numbers: np.ndarray
    text: dict[str, list[str]]
    code: dict[str, np.ndarray]

    def where(self, row: int, column: str) -> str:
        """Name a cell, such as "a.csv, line 3, column id"."""
        return f"{self.path}, line {self.line[row]}, column {column}"

    def first(self, column: str, code: int) -> str:
        """Name the first of a column's equal cells."""
        return self.where(int(np.argmax(self.code[column] == code)), column)


class Codes(dict):
    """A value -> its number, in order of first appearance."""

    def __missing__(self, value: object) -> int:
        self[value] = code = len(self)
        return code


def read_columns(
    path: pathlib.Path,
    *,
    check: Callable[[pathlib.Path, int, list[str]], None],
    number: Callable[[str], bool],
) -> Columns:
    """Read a file whose first row names the columns; rows whose cells are all empty are left out.

    Args:
      path: the file.
      check: (path, line, header) -> None; raises UserError where the columns are not those
        expected. The header of an empty file is empty.
      number: whether the column of this name holds numbers; at least one does.

    Raises:
      UserError: the file is not as in the module's docstring, or has no row below the header.
    """
    records = read_csv(path)
    line, header = next(records, (1, []))
    check(path, line, header)
    numeric = [name for name in header if number(name)]
    codes = {name: Codes() for name in header if not number(name)}
    lines: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    coded: dict[str, list[np.ndarray]] = {name: [] for name in codes}
    while chunk := list(itertools.islice(records, _CHUNK)):
        for start, row in chunk:
            check_length(path, start, row, header)
        starts, rows = zip(*chunk, strict=True)
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        lines.append(np.array(starts, np.int64))
        numbers.append(_numbers(path, starts, {name: columns[name] for name in numeric}))
        for name, code in codes.items():
            numbered = map(code.__getitem__, columns[name])
            coded[name].append(np.fromiter(numbered, np.int32, len(rows)))
    if not lines:
        raise UserError(f"{path} has a header and no rows")
    return Columns(
        path,
        np.concatenate(lines),
        tuple(numeric),
        np.concatenate(numbers),
        {name: list(code) for name, code in codes.items()},
        {name: np.concatenate(parts) for name, parts in coded.items()},
    )


def _numbers(
    path: pathlib.Path, lines: Sequence[int], columns: dict[str, Sequence[str]]
) -> np.ndarray:
    """Parse K columns of n cells; return float64[n, K]."""
    try:
        parsed = [np.fromiter(map(float, c), np.float64, len(lines)) for c in columns.values()]
    except ValueError:
        for line, *cells in zip(lines, *columns.values(), strict=True):
            for name, cell in zip(columns, cells, strict=True):
                if not _is_number(cell):
                    reason = f"{cell!r} is not a number" if cell else "the cell is empty"
                    raise UserError(f"{path}, line {line}, column {name}: {reason}") from None
        raise
    return np.stack(parsed, axis=1)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
