"""A CSV file of a million rows as columns: text as numbers of its distinct cells, numbers as float64.

Refuses, with the line, what is not a comma-separated file in UTF-8, rows of another length than the header, and what is not
a number where one belongs.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from medtl.errors import UserError

_CHUNK = 1 << 16  # rows whose cells are held as text at one time


@dataclasses.dataclass(frozen=True)
class Sheet:
    """The cells of a file of N rows.

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
        """Such as "a.csv, line 3, column id"."""
        return f"{self.path}, line {self.line[row]}, column {column}"

    def first(self, column: str, code: int) -> str:
        """Where a column's distinct cell stands first."""
        return self.where(int(np.argmax(self.code[column] == code)), column)


class Codes(dict):
    """A value -> its number, in order of first appearance."""

    def __missing__(self, value: object) -> int:
        self[value] = code = len(self)
        return code


def read(
    path: pathlib.Path, *, check: Callable[[str, list[str]], None], number: Callable[[str], bool]
) -> Sheet:
    """Reads a file whose first row names the columns; rows whose cells are all empty do not count.

    Args:
      path: the file.
      check: (where, header) -> None; raises UserError where the columns are not those expected. Of an empty file the header
        is empty.
      number: whether the column of this name holds numbers; at least one does.

    Raises:
      UserError: the file is not as in the module's docstring, or has no row below the header.
    """
    records = _records(path)
    line, header = next(records, (1, []))
    check(f"{path}, line {line}", header)
    numeric = [name for name in header if number(name)]
    codes = {name: Codes() for name in header if not number(name)}
    lines: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    coded: dict[str, list[np.ndarray]] = {name: [] for name in codes}
    while chunk := list(itertools.islice(records, _CHUNK)):
        for start, row in chunk:
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {start}: {len(row)} cells, but the header has {len(header)} columns; "
                    "a cell that holds a comma needs quotes"
                )
        starts, rows = zip(*chunk, strict=True)
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        lines.append(np.array(starts, np.int64))
        numbers.append(_numbers(path, starts, {name: columns[name] for name in numeric}))
        for name, known in codes.items():
            coded[name].append(
                np.fromiter(map(known.__getitem__, columns[name]), np.int32, len(rows))
            )
    if not lines:
        raise UserError(f"{path} has a header and no rows")
    return Sheet(
        path,
        np.concatenate(lines),
        tuple(numeric),
        np.concatenate(numbers),
        {name: list(known) for name, known in codes.items()},
        {name: np.concatenate(parts) for name, parts in coded.items()},
    )


def _records(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """(the line on which it starts, its cells) of each row that holds something, the header included."""
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if any(row):
                    yield line, row
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a CSV file in UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not a CSV file ({error})") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None


def _numbers(
    path: pathlib.Path, lines: Sequence[int], columns: dict[str, Sequence[str]]
) -> np.ndarray:
    """K columns of n cells -> float64[n, K]."""
    try:
        parsed = [
            np.fromiter(map(float, cells), np.float64, len(lines)) for cells in columns.values()
        ]
    except ValueError:
        for line, *cells in zip(lines, *columns.values(), strict=True):
            for name, cell in zip(columns, cells, strict=True):
                if not _is_number(cell):
                    said = f"{cell!r} is not a number" if cell else "the cell is empty"
                    raise UserError(f"{path}, line {line}, column {name}: {said}") from None
        raise
    return np.stack(parsed, axis=1)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
