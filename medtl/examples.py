"""One domain's examples, and the normalization of their images. Imports no JAX."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from medtl.errors import UserError, nearest

ENCODED = "encoded_"  # a batch's key "encoded_image" holds a frozen encoder's output for "image"
PRESENT = "present_"  # a batch's key "present_image" is 0 for an example that has no image
RESERVED = ("label", "mask", "weight", "index", "position", "key")
_OF_MODULES = ("name", "parent", "scope", "factories")  # what a Linen module calls its own


def is_input(name: str) -> bool:
    """Return whether an input may have this name: an identifier that no other part of a batch uses.

    >>> is_input("table"), is_input("label"), is_input("encoded_image")
    (True, False, False)
    """
    return (
        name.isidentifier()
        and name not in (*RESERVED, *_OF_MODULES)
        and not name.startswith((ENCODED, PRESENT))
    )


def is_group(column: str) -> bool:
    """Return whether a column of this name holds groups that results are reported by.

    >>> is_group("site"), is_group("subgroup_sex"), is_group("subgroup_")
    (True, True, False)
    """
    return column in ("site", "subgroup") or (
        column.startswith("subgroup_") and column != "subgroup_"
    )


def is_quantity(label: np.ndarray) -> bool:
    """Return whether labels are numbers to be predicted, float[N], and no classes.

    >>> is_quantity(np.array([0.5, 2.0])), is_quantity(np.array([0, 1])), is_quantity(np.eye(2))
    (True, False, False)
    """
    return label.ndim == 1 and label.dtype.kind == "f"


def known(label: np.ndarray) -> np.ndarray:
    """Return bool[N], whether a label of each example is known.

    >>> known(np.array([0, -1])), known(np.array([-1.5, np.nan]))
    (array([ True, False]), array([ True, False]))
    """
    if label.ndim == 2:
        return ~np.isnan(label).all(axis=1)
    return ~np.isnan(label) if is_quantity(label) else label >= 0


def class_counts(label: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Count the examples of each class; a quantity has none.

    Args:
      label: int[N], an index into `classes`, -1 where unknown; or float[N, K] of 0, 1 or NaN
        (unknown); or float[N], a quantity.
      classes: the K names.

    >>> class_counts(np.array([0, 1, 1, -1]), ("ill", "well"))
    {'ill': 1, 'well': 2}
    """
    if is_quantity(label):
        return {}
    n = (
        np.nansum(label, axis=0)
        if label.ndim == 2
        else np.bincount(label[label >= 0], minlength=len(classes))
    )
    return dict(zip(classes, map(int, n), strict=True))


@dataclasses.dataclass(frozen=True)
class Normalization:
    """The input a backbone was trained on: `(x - mean) / std`, with x the RGB value in 0..255.

    Attributes:
      name: the name in reports, e.g. "torchvision".
      mean: one value per channel, in the units of x.
      std: one value per channel, in the units of x.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def for_channels(self, channels: int) -> Normalization:
        """Return the normalization for images with another number of channels.

        One channel (grey) takes the mean over RGB; other numbers repeat RGB in turn.

        >>> NORMALIZATIONS["centered"].for_channels(1)
        Normalization(name='centered', mean=(127.5,), std=(63.75,))
        """
        if channels == len(self.mean):
            return self
        if channels == 1:
            return Normalization(
                self.name, (float(np.mean(self.mean)),), (float(np.mean(self.std)),)
            )
        cycle = [i % len(self.mean) for i in range(channels)]
        return Normalization(
            self.name, tuple(self.mean[i] for i in cycle), tuple(self.std[i] for i in cycle)
        )


NORMALIZATIONS = {
    n.name: n
    for n in (
        Normalization("torchvision", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        Normalization("caffe", (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
        Normalization("centered", (127.5, 127.5, 127.5), (63.75, 63.75, 63.75)),
        # To [-1, 1]: TensorFlow's Inception and ResNet-v2, BiT, RadImageNet, SigLIP.
        Normalization("inception", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        Normalization("siglip", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        Normalization("lite", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),  # EfficientNet-Lite
        Normalization("dino", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        Normalization(
            "clip", (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.3231626)
        ),
        # torchxrayvision: to [-1024, 1024].
        Normalization("xrv", (127.5, 127.5, 127.5), (255 / 2048, 255 / 2048, 255 / 2048)),
    )
}
_NUMBERS = re.compile(r"\s*mean\(([^()]*)\)\s*,?\s*std\(([^()]*)\)\s*")


def parse_normalization(text: str, *, key: str) -> Normalization:
    """Return a normalization by its name, or one from numbers in units of 0..255.

    Args:
      text: one of `NORMALIZATIONS`, or "mean(m, ...) std(s, ...)" with one number or one a channel.
      key: the config's key, for errors.

    Raises:
      UserError: there is no such name, or the numbers are not finite, not as many, or a std is 0.

    >>> parse_normalization("mean(127.5) std(63.75)", key="config.weights.normalization").std
    (63.75,)
    """
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    if match := _NUMBERS.fullmatch(text):
        try:
            mean, std = (tuple(map(float, part.split(","))) for part in match.groups())
        except ValueError:
            mean = std = ()
        if mean and len(mean) == len(std) and np.isfinite((*mean, *std)).all() and min(std) > 0:
            return Normalization(f"mean {mean} std {std}", mean, std)
        raise UserError(
            f"{key}: {text!r} needs as many numbers in mean(...) as in std(...), all finite and "
            "std above 0"
        )
    raise UserError(
        f"{key} is {text!r}{nearest(text, ('auto', *NORMALIZATIONS))} Numbers are written like "
        "'mean(123.7, 116.3, 103.5) std(58.4, 57.1, 57.4)'"
    )


class ImageSource(Protocol):
    """Inputs that are read one by one on demand; Grain calls this a random-access data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Examples:
    """One domain's examples; the inputs are in memory, mapped from disk, or decoded on demand.

    Attributes:
      name: the name in reports, e.g. "covid_ct".
      inputs: name -> one row per example, an array or an `ImageSource`. "image" is
        uint8[N, H, W, C]; another input has any numeric dtype and shape, e.g. "table" f32[N, F].
        `is_input` says which names are allowed.
      label: int32[N], an index into `classes`, -1 where there is no label; or float32[N, K] of 0,
        1 or NaN (unknown) where an example may have several diagnoses; or float64[N], a quantity.
      id: str[N], unique.
      split: str[N], "train", "val" or "test".
      patient: str[N], or None where patients are not known.
      weight: float32[N], the example's weight in the loss.
      classes: the K names; of a quantity its name alone.
      fingerprint: sha256 over ids, labels, splits and the content of the inputs.
      split_hash: sha256 over (id, split) pairs.
      synthetic: True where a program drew the images.
      groups: "site", "subgroup" or "subgroup_<name>" -> str[N], "" where unknown; results are
        reported for each of them. No input of a model, and not part of the fingerprint.
      columns: of a clinical table, `medtl.data.schema.Columns`; the inputs "table" and "text" are
        made of them for each split, as their preprocessing is fitted on its train part.
      present: input -> bool[N], False for an example that lacks it.
      notes: sentences about the data for users, such as what a check accepted.
    """

    name: str
    inputs: Mapping[str, np.ndarray | ImageSource]
    label: np.ndarray
    id: np.ndarray
    split: np.ndarray
    patient: np.ndarray | None
    weight: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str
    split_hash: str
    synthetic: bool = False
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    columns: Any = None
    present: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.id)

    @property
    def image(self) -> np.ndarray | ImageSource:
        """Return the input "image"; raises KeyError where the examples have none."""
        return self.inputs["image"]

    @property
    def multi_label(self) -> bool:
        """Return whether an example may have several diagnoses."""
        return self.label.ndim == 2

    @property
    def is_quantity(self) -> bool:
        """Return whether the label is a number to be predicted, not a class."""
        return is_quantity(self.label)

    @functools.cached_property
    def scale(self) -> tuple[float, float]:
        """Return mean and standard deviation of a quantity over the train rows; (0, 1) if none."""
        train = self.label[self.split == "train"]
        if not self.is_quantity or not len(train):
            return 0.0, 1.0
        return float(train.mean()), float(train.std()) or 1.0

    @functools.cached_property
    def learned(self) -> np.ndarray:
        """Return the labels as training reads them: a quantity f32[N], standardized by `scale`."""
        if not self.is_quantity:
            return self.label
        mean, deviation = self.scale
        return ((self.label - mean) / deviation).astype(np.float32)

    def has(self, name: str, row: int) -> bool:
        """Return whether a row has an input, as far as `present` shows."""
        return name not in self.present or bool(self.present[name][row])

    def indices(self, split: str) -> np.ndarray:
        """Return int64[n], the rows of one split in file order."""
        return np.flatnonzero(self.split == split)

    @property
    def splits(self) -> Sequence[str]:
        """Return the splits that have rows, in the order train, val, test."""
        return [s for s in ("train", "val", "test") if np.any(self.split == s)]
