"""Pixel values in a file's own units, and the window that makes 8-bit greys of them. No JAX."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%", re.ASCII)
_BLOCK = 2**20  # pixels that are converted at once


# What `data.allow` may name.
CHECKS = (
    "patient_in_two_splits",
    "look_alikes",
    "conflicting_labels",
    "duplicate_images",
    "near_duplicate_images",
    "shared_with_source",
    "text_names_class",
    "rows_without_inputs",
    "identifying_tags",
    "burned_in_annotation",
)


TASKS = ("classification", "ordinal", "regression")


class UnreadableImageError(Exception):
    """The reason why bytes are not a readable image."""


@dataclasses.dataclass(frozen=True)
class FileRules:
    """How image files and labels are read, and what the checks of the data accept.

    Attributes:
      window: (low, high) in the file's own units, shown as black and white in files of more than 8
        bits; a bound may be a percentile of the image, such as "99%". (): the range that the file
        states; one that states none is refused.
      max_pixels: the most pixels that are decoded at once: of a JPEG at 1/2, 1/4 or 1/8, of a
        pyramid at its smallest sufficient level. Larger PNGs and TIFFs are reduced in strips, up to
        100 times this; others are refused.
      allow: names of the findings that are accepted; see `CHECKS`.
      task: one of `TASKS`, what the label is.
      grades: of an ordinal label, from the lowest to the highest; (): they are numbers.
    """

    window: tuple[float | str, ...] = ()
    max_pixels: int = 200_000_000
    allow: tuple[str, ...] = ()
    task: str = TASKS[0]
    grades: tuple[str, ...] = ()

    @classmethod
    def of(cls, section: Any) -> FileRules:
        """Read them from `config.data`."""
        grades = tuple(section.grades)
        allow = tuple(section.allow)
        return cls(tuple(section.window), section.max_pixels, allow, section.task, grades)


@dataclasses.dataclass(frozen=True)
class Values:
    """An image of which 8 bits are not enough.

    Attributes:
      pixels: real numbers [H, W], or [H, W, 3] for RGB.
      words: the kind of its values for errors, e.g. "16-bit grey PNG".
      stated: (low, high), the range that the file itself gives to be shown; (): none.
      is_inverted: whether low values are white.
    """

    pixels: np.ndarray
    words: str
    stated: tuple[float, ...] = ()
    is_inverted: bool = False

    def windowed(self, window: Sequence[float | str] = ()) -> np.ndarray:
        """Return uint8 of the same shape: round(255 * (v - low) / (high - low)), clipped to 0..255.

        Args:
          window: see `FileRules`; () takes the range that the file states.

        Raises:
          UnreadableImageError: NaN or infinite values, or no window is stated.

        >>> Values(np.array([[-1000, 0, 3000]], np.int16), "CT").windowed((-1000, 1000)).tolist()
        [[0, 128, 255]]
        """
        if not np.isfinite(self.pixels).all():
            raise UnreadableImageError(f"it is a {self.words} with NaN or infinite values")
        bounds = tuple(window) or self.stated
        if not bounds:
            raise UnreadableImageError(
                f"it is a {self.words} with values from {self.pixels.min():g} to "
                f"{self.pixels.max():g} and states no window; set config.data.window to "
                "(low, high) in these units, or to ('0%', '100%') for each image's own range"
            )
        low, high = (_number(bound, self.pixels) for bound in bounds)
        scale = 255.0 / (high - low) if high > low else 0.0
        out = np.empty(self.pixels.shape, np.uint8)
        rows = max(1, _BLOCK // max(1, self.pixels[0].size))
        for start in range(0, len(out), rows):  # a float64 of a large image would be too large
            part = (self.pixels[start : start + rows].astype(np.float64) - low) * scale
            out[start : start + rows] = np.rint(np.clip(part, 0, 255))
        return np.subtract(255, out, out) if self.is_inverted else out


def settle(finding: str, advice: str, check: str, allow: Sequence[str]) -> str:
    """Return a finding as a note where it is allowed.

    Args:
      finding: a sentence without a full stop.
      advice: how to mend the data.
      check: the name in `CHECKS`.
      allow: the names that are accepted.

    Raises:
      UserError: it is not allowed.
    """
    if check in allow:
        return f"{finding} (allowed: {check})"
    raise UserError(f"{finding}; {advice}, or add {check!r} to config.data.allow")


def is_bound(bound: float | str) -> bool:
    """Return whether a value may be a bound of a window: a number, or a percentile as text.

    >>> is_bound(-1000), is_bound("99.5%"), is_bound("101%"), is_bound("wide")
    (True, True, False, False)
    """
    if isinstance(bound, int | float):
        return bool(np.isfinite(bound))
    match = _PERCENT.fullmatch(str(bound))
    return match is not None and float(match[1]) <= 100


def is_window(window: Sequence[float | str]) -> bool:
    """Return whether it is (), or two bounds of one kind of which the first is lower.

    >>> is_window(()), is_window((-160, 240)), is_window((1, 0)), is_window(("1%", "99%"))
    (True, True, False, True)
    """
    if len(window) != 2 or not all(map(is_bound, window)):
        return not window
    low, high = (float(str(bound).rstrip("%")) for bound in window)
    return isinstance(window[0], str) == isinstance(window[1], str) and low < high


def _number(bound: float | str, pixels: np.ndarray) -> float:
    if isinstance(bound, str):
        return float(np.percentile(pixels, float(bound.rstrip("%"))))
    return float(bound)
