"""Cells that hold an embedding: "[0.1, 0.2]" as JSON writes it, or "[0.1 0.2]" as NumPy does.

Refuses embeddings of several lengths in one column, and values that are no finite numbers. Imports
no JAX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from medtl.errors import UserError, quoted

_LIST = re.compile(r"[\[(][\s\d.,eE+\-]*[\])]")
_MARKS = str.maketrans("[](),;", "      ")


def looks_like(cells: Sequence[str]) -> bool:
    """Return whether all cells are lists of two or more numbers of one length.

    >>> looks_like(["[1, 2]", "[0.5 -1e-3]"]), looks_like(["[1, 2]", "see [1]"])
    (True, False)
    """
    length = 0
    for cell in cells:
        if not _LIST.fullmatch(cell):
            return False
        numbers = cell.translate(_MARKS).split()
        if len(numbers) < 2 or (length and len(numbers) != length):
            return False
        length = len(numbers)
    return length > 0


def parse(cells: Sequence[str], where: Callable[[int], str]) -> np.ndarray:
    """Return float32[N, D], a row of NaN for an empty cell.

    Args:
      cells: lists of numbers, with or without brackets, separated by commas or spaces; "" where
        missing.
      where: row -> the words by which an error names its cell.

    Raises:
      UserError: a cell is no list of finite numbers, or not as long as the others.

    >>> parse(["[1, 2]", "", "3 4"], str).tolist()
    [[1.0, 2.0], [nan, nan], [3.0, 4.0]]
    """
    rows: dict[int, np.ndarray] = {}
    for row, cell in enumerate(cells):
        if not cell:
            continue
        try:
            rows[row] = np.array(cell.translate(_MARKS).split(), np.float32)
        except ValueError:
            hint = "; pandas shortens long arrays, lists (x.tolist()) stay whole" * ("..." in cell)
            raise UserError(f"{where(row)}: {quoted(cell)} is no list of numbers{hint}") from None
        if not np.isfinite(rows[row]).all():
            raise UserError(f"{where(row)}: {quoted(cell)} holds a value that is not finite")
    first = next(iter(rows), 0)
    length = len(rows.get(first, ()))
    matrix = np.full((len(cells), length), np.nan, np.float32)
    for row, values in rows.items():
        if len(values) != length:
            raise UserError(
                f"{where(row)}: an embedding of {len(values)} numbers, that of {where(first)} has "
                f"{length}"
            )
        matrix[row] = values
    return matrix
