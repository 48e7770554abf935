"""What a reader hands on: one domain's examples before their images are decoded, and where each of them came from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from medtl.examples import Examples, ImageSource


class Encoded(Protocol):
    """Images as the bytes of their files; the bytes are read when asked for, also by several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...

    def take(self, rows: np.ndarray) -> Encoded: ...


@dataclasses.dataclass(frozen=True)
class Table:
    """One domain's examples, its images still as they were found.

    Attributes:
      name: for reports.
      origin: the path (or the words) by which an error names the data set.
      id: str[N].
      label: int32[N], -1 unknown; or float32[N, K] of 0, 1 or NaN.
      classes: the K names.
      split: str[N], or None where the data set has none.
      patient: str[N], "" where a patient is not known; or None where none is.
      weight: float32[N].
      place: int64[N], where an error says that a row is: the line of the CSV, or the row counted from 0.
      place_word: "line" or "row".
      images: uint8[N, H, W] or [N, H, W, C], or `Encoded`.
      synthetic: True where the images were drawn by a program.
      groups: "site", "subgroup" or "subgroup_<name>" -> str[N], "" where unknown.
    """

    name: str
    origin: str
    id: np.ndarray
    label: np.ndarray
    classes: tuple[str, ...]
    split: np.ndarray | None
    patient: np.ndarray | None
    weight: np.ndarray
    place: np.ndarray
    place_word: str
    images: np.ndarray | Encoded
    synthetic: bool = False
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id)

    def where(self, row: int) -> str:
        """Such as "line 17"."""
        return f"{self.place_word} {self.place[row]}"

    def take(self, rows: np.ndarray) -> Table:
        """The given rows, in the given order."""
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
            place=self.place[rows],
            images=images,
            groups={name: values[rows] for name, values in self.groups.items()},
        )

    def unlabelled(self) -> Table:
        """The same examples with nothing known of their diagnosis, all in the split "test"."""
        return dataclasses.replace(
            self,
            label=np.full(len(self), -1, np.int32),
            classes=(),
            split=np.full(len(self), "test"),
        )


def examples(table: Table, image: np.ndarray | ImageSource, contents: Sequence[bytes]) -> Examples:
    """The finished examples.

    Args:
      table: validated, with a split.
      image: uint8[N, H, W, C], or an `ImageSource` of uint8[H, W, C].
      contents: one digest per row of the image as it was found; enters the fingerprint.
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
        image=image,
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
    )


def _patients(table: Table) -> np.ndarray | None:
    """An image of an unknown patient counts as a patient of its own."""
    if table.patient is None:
        return None
    return np.where(table.patient == "", np.char.add("?", table.id), table.patient)
