"""Sums over the examples of each patient, from which resamples are sums again."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class SumTable:
    """Sums over the examples of each unit, built column by column."""

    units: int
    columns: dict[str, slice] = dataclasses.field(default_factory=dict)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    def add(
        self,
        name: str,
        unit: np.ndarray,
        value: np.ndarray | None = None,
        *,
        column: np.ndarray | None = None,
        width: int = 1,
    ) -> None:
        """Add `value` (1) of each example to `column` (0) of `width`, in its unit's row."""
        start = max((c.stop for c in self.columns.values()), default=0)
        self.columns[name] = slice(start, start + width)
        value = np.ones(len(unit)) if value is None else value
        offset = np.full(len(unit), start) if column is None else start + column
        self.parts.append((unit, offset, value))

    def matrix(self):
        """Return float64[columns, units], sparse: most units have few examples."""
        from scipy.sparse import coo_array

        unit, column, value = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
        shape = (max(c.stop for c in self.columns.values()), self.units)
        at = column.astype(np.int32), unit.astype(np.int32)
        return coo_array((value, at), shape=shape).tocsr()
