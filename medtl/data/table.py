"""One domain's examples as a reader returns them: images not decoded, and where each is from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from medtl.data.schema import Columns
from medtl.examples import Examples, ImageSource


class Encoded(Protocol):
    """Images as the bytes of their files, read on demand, also by several threads at once.

    `frame` is the image's frame in its file, counted from 0; None: the file has one image.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...

    def frame(self, index: int) -> int | None: ...

    def take(self, rows: np.ndarray) -> Encoded: ...


@dataclasses.dataclass(frozen=True)
class Table:
    """One domain's examples, with their images as they are stored.

    Attributes:
      name: the name in reports.
      origin: the path (or the words) by which an error names the data set.
      id: str[N].
      label: int32[N], -1 unknown; or float32[N, K] of 0, 1 or NaN; or float64[N], a quantity.
      classes: the K names; of a quantity its name alone.
      split: str[N], or None where the data set has none.
      patient: str[N], "" where the patient is unknown; or None where all are.
      weight: float32[N].
      line_or_row: int64[N], the number by which an error names a row: its line in the CSV file, or
        the row counted from 0.
      unit: "line" or "row", whichever `line_or_row` holds.
      images: uint8[N, H, W] or [N, H, W, C], or `Encoded`.
      synthetic: True where a program drew the images.
      groups: "site", "subgroup" or "subgroup_<name>" -> str[N], "" where unknown.
      columns: of a clinical table; None: there are none.
      inputs: arrays [N, ...] that are inputs as they are, by name.
      present: input -> bool[N], False for a row that lacks it; an input that is not in it is
        present everywhere.
      notes: sentences about the data for users, such as what a check accepted.
    """

    name: str
    origin: str
    id: np.ndarray
    label: np.ndarray
    classes: tuple[str, ...]
    split: np.ndarray | None
    patient: np.ndarray | None
    weight: np.ndarray
    line_or_row: np.ndarray
    unit: str
    images: np.ndarray | Encoded
    synthetic: bool = False
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    columns: Columns | None = None
    inputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    present: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.id)

    def where(self, row: int) -> str:
        """Return the words by which an error names a row, such as "line 17"."""
        return f"{self.unit} {self.line_or_row[row]}"

    def take(self, rows: np.ndarray) -> Table:
        """Return the given rows, in the given order."""
        images = (
            self.images[rows] if isinstance(self.images, np.ndarray) else self.images.take(rows)
        )
        return dataclasses.replace(
            self,
            id=self.id[rows],
            label=self.label[rows],
            split=None if self.split is None else self.split[rows],
            patient=None if self.patient is None else self.patient[rows],
            weight=self.weight[rows],
            line_or_row=self.line_or_row[rows],
            images=images,
            groups={name: values[rows] for name, values in self.groups.items()},
            columns=self.columns.take(rows) if self.columns else None,
            inputs={name: values[rows] for name, values in self.inputs.items()},
            present={name: values[rows] for name, values in self.present.items()},
        )

    @property
    def with_image(self) -> Table:
        """Return the rows that have an image."""
        rows = np.flatnonzero(self.present.get("image", np.ones(len(self), bool)))
        return self if len(rows) == len(self) else self.take(rows)

    def unlabelled(self) -> Table:
        """Return the same examples without labels, all in the split "test"."""
        return dataclasses.replace(
            self,
            label=np.full(len(self), -1, np.int32),
            classes=(),
            split=np.full(len(self), "test"),
        )


def examples(
    table: Table, image: np.ndarray | ImageSource | None, contents: Sequence[bytes]
) -> Examples:
    """Return a table as `Examples`.

    Args:
      table: validated, with a split.
      image: uint8[N, H, W, C], or an `ImageSource` of uint8[H, W, C]; None: no input is an image.
      contents: digests of the content, such as one per row of the stored image; part of the
        fingerprint.

    Raises:
      ValueError: the table has no split.
    """
    if table.split is None:
        raise ValueError("the table has no split")
    pairs = [[str(i), str(s)] for i, s in zip(table.id, table.split, strict=True)]
    split_hash = hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()
    fingerprint = hashlib.sha256(json.dumps([pairs, table.classes]).encode())
    fingerprint.update(np.ascontiguousarray(table.label).tobytes())
    fingerprint.update(b"".join(contents))
    return Examples(
        name=table.name,
        inputs={**({} if image is None else {"image": image}), **table.inputs},
        label=table.label,
        id=table.id,
        split=table.split,
        patient=_patients(table),
        weight=table.weight,
        classes=table.classes,
        fingerprint=fingerprint.hexdigest(),
        split_hash=split_hash,
        synthetic=table.synthetic,
        groups=table.groups,
        columns=table.columns,
        present=table.present,
        notes=table.notes,
    )


def _patients(table: Table) -> np.ndarray | None:
    """Return the patients; an image of an unknown patient counts as a patient of its own."""
    if table.patient is None:
        return None
    return np.where(table.patient == "", np.char.add("?", table.id), table.patient)
