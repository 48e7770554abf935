"""Checks for copies of images, which make a result look better than it is.

A finding is an error, unless its name is in `config.data.allow`; then it is a note that the report
repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medtl.data import cache as caches
from medtl.data import labels
from medtl.data.copies import Prints, nearest
from medtl.data.splits import NAMES
from medtl.data.table import Table
from medtl.data.values import settle
from medtl.errors import UserError
from medtl.examples import Examples, ImageSource, is_quantity

_LEAST_SIDE = 24  # pixels; smaller images are alike without being copies
_SHOWN, _NOTED = 5, 100  # pairs in an error and in a note


def within(
    table: Table, image: np.ndarray | ImageSource, *, allow: Sequence[str], all_held_out: bool
) -> tuple[str, ...]:
    """Look for equal and nearly equal images in one domain.

    Args:
      table: the examples, with a split.
      image: their decoded images; a user's source that is read on demand is not searched.
      allow: names of `values.CHECKS`.
      all_held_out: every image is held out at some time, as in cross-validation; images of one
        patient then never are in two parts.

    Returns:
      Notes on findings that are allowed.

    Raises:
      UserError: images that are equal have different labels, or images of two splits are equal or
        nearly equal. Names up to five pairs.
    """
    if not caches.is_quick(image):
        return ()
    digests = caches.digests(image)
    places = _Places(table, all_held_out)
    notes, advice = [], "leave them out of one split"
    pairs: dict[int, int]
    equal = _equal(digests)
    if pairs := _conflicts(table, equal):
        finding = f"{_count(pairs)} a copy with another label: "
        finding += _shown(table, pairs, "=", allow)
        notes.append(
            settle(f"{table.origin}: {finding}", "correct them", "conflicting_labels", allow)
        )
    if pairs := {row: other for rows in equal for row, other in places.pairs(rows)}:
        finding = f"{places.share(pairs)} have a copy in {places.other}: "
        finding += _shown(table, pairs, "=", allow)
        notes.append(settle(f"{table.origin}: {finding}", advice, "duplicate_images", allow))
    if pairs := {} if table.synthetic else _near(image, places, digests):
        finding = f"{places.share(pairs)} have a near copy in {places.other}: "
        finding += _shown(table, pairs, "~", allow)
        notes.append(settle(f"{table.origin}: {finding}", advice, "near_duplicate_images", allow))
    return tuple(notes)


def between(
    source: Examples | None,
    target: Examples,
    *,
    allow: Sequence[str] = (),
    all_held_out: bool = False,
) -> tuple[str, ...]:
    """Look for val and test images of the target among those that the source trains on.

    Images are compared where both domains have some.

    Args:
      source: its examples; None: there is none.
      target: its examples.
      allow: names of `values.CHECKS`.
      all_held_out: every target image is held out at some time, as in cross-validation.

    Returns:
      Notes on findings that are allowed.

    Raises:
      UserError: naming the first five pairs; or a class is written in two ways.
    """
    classes = () if source is None or target.is_quantity else (*source.classes, *target.classes)
    if source and (pair := labels.twins(classes)):
        raise UserError(
            f"classes of the source {source.name} and the target {target.name}: "
            f"{labels.twin_words(*pair)}"
        )
    if source is None or "image" not in source.inputs or "image" not in target.inputs:
        return ()
    train = source.indices("train")
    train = train[[source.has("image", row) for row in train.tolist()]]
    held_out = np.arange(len(target)) if all_held_out else np.flatnonzero(target.split != "train")
    held_out = held_out[[target.has("image", row) for row in held_out.tolist()]]
    digests = caches.digests(source.image)
    row_of = {digests[i]: i for i in reversed(train.tolist())}
    digests = caches.digests(target.image)
    pairs = {i: row_of[digests[i]] for i in held_out.tolist() if digests[i] in row_of}
    sign, are_in = "=", "are also"
    if not pairs and not (source.synthetic or target.synthetic):
        one, two = (_prints(x.image) for x in (target, source))
        if one is not None and two is not None:
            near = nearest(one.take(held_out), two.take(train), lambda r, c: np.ones(len(r), bool))
            pairs = {int(held_out[i]): int(train[j]) for i, j in near.items()}
            sign, are_in = "~", "have near copies"
    if not pairs:
        return ()
    shown = ", ".join(
        f"{str(target.id[i])!r} ({target.split[i]}) {sign} {str(source.id[j])!r}"
        for i, j in list(pairs.items())[:_SHOWN]
    )
    finding = (
        f"{len(pairs)} of the {len(held_out)} {'' if all_held_out else 'val and test '}images "
        f"of the target {target.name} {are_in} in train of the source {source.name}: "
        f"{shown}{' ...' if len(pairs) > _SHOWN else ''}"
    )
    return (settle(finding, "leave them out of one of the two", "shared_with_source", allow),)


class _Places:
    """The parts of the data that must not share an image, and which of two parts is held out.

    Attributes:
      other: the words for another part.
    """

    def __init__(self, table: Table, all_held_out: bool):
        assert table.split is not None
        n = len(table)
        split = table.split
        self.other = "another fold" if all_held_out else "an earlier split"
        self._order = np.argmax(split[:, None] == np.array(NAMES), axis=1)
        self._place, self._words = self._order, "val and test images"
        self._n = int((self._order > 0).sum())
        if all_held_out:
            self._order, self._words, self._n = np.arange(n), "images", n
            self._place = self._order
            if table.patient is not None:
                number = np.unique(table.patient, return_inverse=True)[1]
                self._place = np.where(table.patient == "", n + np.arange(n), number)

    def cross(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return bool[P], whether `rows` are held out from parts to which `others` belong."""
        is_later = self._order[others] < self._order[rows]
        return is_later & (self._place[others] != self._place[rows])

    def both_sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that may be held out, and those from which one may be."""
        order = self._order
        return np.flatnonzero(order > order.min()), np.flatnonzero(order < order.max())

    def pairs(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield each of some rows that is held out from another of them, with the first such."""
        firsts = rows[np.unique(self._place[rows], return_index=True)[1]]
        others = firsts[np.argsort(self._order[firsts])][: len(NAMES)]
        for row in rows:
            fitting = others[self.cross(np.full(len(others), row), others)]
            if len(fitting):
                yield int(row), int(fitting[0])

    def share(self, pairs: Mapping[int, int]) -> str:
        return f"{len(pairs)} of the {self._n} {self._words}"


def _equal(digests: Sequence[bytes]) -> list[np.ndarray]:
    """Return the rows of each group of equal images."""
    groups: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        groups.setdefault(digest, []).append(row)
    return [np.array(rows) for rows in groups.values() if len(rows) > 1]


def _conflicts(table: Table, equal: Sequence[np.ndarray]) -> dict[int, int]:
    """Return row -> the first row with an equal image, where their known labels differ."""
    pairs: dict[int, int] = {}
    for rows in equal:
        one, all_ = table.label[rows[0]], table.label[rows].astype(np.float64)
        differ = (all_ != one) & ~np.isnan(all_) & ~np.isnan(one)
        pairs |= {int(row): int(rows[0]) for row in rows[differ.reshape(len(rows), -1).any(1)]}
    return pairs


def _near(
    image: np.ndarray | ImageSource, places: _Places, digests: Sequence[bytes]
) -> dict[int, int]:
    prints = _prints(image)
    if prints is None:
        return {}
    number = np.unique(np.array(digests), return_inverse=True)[1]
    held_out, others = places.both_sides()

    def fits(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        rows, columns = held_out[i], others[j]
        return places.cross(rows, columns) & (number[rows] != number[columns])

    near = nearest(prints.take(held_out), prints.take(others), fits)
    return {int(held_out[i]): int(others[j]) for i, j in near.items()}


def _prints(image: np.ndarray | ImageSource) -> Prints | None:
    """Return the prints of images; None where they are too small, or a user reads them."""
    if not len(image) or not caches.is_quick(image) or min(image[0].shape[:2]) < _LEAST_SIDE:
        return None
    return Prints.of(caches.thumbnails(image))


def _count(pairs: Mapping[int, int]) -> str:
    return "1 image has" if len(pairs) == 1 else f"{len(pairs)} images have"


def _shown(table: Table, pairs: Mapping[int, int], sign: str, allow: Sequence[str]) -> str:
    """Name the first pairs with their splits, lines and labels; more of them in a note."""
    split = table.split
    assert split is not None

    def named(row: int) -> str:
        label = table.label[row]
        if is_quantity(table.label):
            return f"{str(table.id[row])!r} ({split[row]}, {table.where(row)}, {label:g})"
        present = np.flatnonzero(label == 1) if label.ndim else [label]
        names = "|".join(table.classes[c] for c in present) or "|"
        return f"{str(table.id[row])!r} ({split[row]}, {table.where(row)}, {names})"

    most = _NOTED if allow else _SHOWN
    first = list(pairs.items())[:most]
    shown = ", ".join(f"{named(row)} {sign} {named(other)}" for row, other in first)
    return shown + " ..." * (len(pairs) > most)
