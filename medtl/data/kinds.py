"""The kinds of data that are built in; a config names one with its options: "phantom(size=500)".

Each function takes the options of its kind and returns a `Kind`. Any other kind is a user's
function, such as "file.py:load(option=1)". Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from medtl import plugins
from medtl.data import features as precomputed
from medtl.data import folder as folders
from medtl.data import manifest as manifests
from medtl.data import npz as npzs
from medtl.data import phantom as phantoms
from medtl.data import tfds as prepared
from medtl.data.table import Table
from medtl.errors import UserError, nearest

NAMES = ("manifest", "npz", "folder", "features", "tfds", "phantom")
SPLIT = (0.7, 0.15, 0.15)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How to read examples of one kind, and how to split those that have no split.

    Attributes:
      read: `read(spec, *, key, require_label, image_size) -> Table`; spec is a
        `medtl.config.dataset`, and image_size 0 leaves the images unread. For a user's function
        `read(spec, *, image_size, channels, resize) -> Examples`.
      check: `check(spec, *, key)`, for a kind that is slow to read; None: reading without images
        is the check.
      split: the fractions of train, val and test where the config names none.
      seed: added to the config's `split_seed`.
      is_user: `read` is a function of the user, which makes the split itself.
      inputs: the inputs that it can read; those of columns by `medtl.data.clinical`.
      has_task: `read` takes `task`, so that the label may be a quantity.
    """

    read: Callable[..., Any]
    check: Callable[..., None] | None = None
    split: tuple[float, ...] = SPLIT
    seed: int = 0
    is_user: bool = False
    inputs: tuple[str, ...] = ("image",)
    has_task: bool = False

    def fractions(self, spec: Any) -> tuple[float, ...]:
        """Return the fractions of train, val and test where the data has no split."""
        return tuple(spec.split) or tuple(self.split)

    def split_seed(self, spec: Any) -> int:
        """Return the seed of the split, of the train subset and of the folds."""
        return int(spec.split_seed) + self.seed


def manifest() -> Kind:
    """Return the kind that reads a CSV file with one line per example.

    See `medtl.data.manifest`, and `medtl.data.clinical` where more than images are read.
    """
    return Kind(manifests.read, inputs=("image", "table", "text", "features"), has_task=True)


def npz() -> Kind:
    """Return the kind that reads an `.npz` in MedMNIST's layout; see `medtl.data.npz`."""
    return Kind(npzs.read)


def folder() -> Kind:
    """Return the kind that reads a folder of images for each class; see `medtl.data.folder`."""
    return Kind(folders.read)


def features(columns: str = "*") -> Kind:
    """Return the kind that reads precomputed features; see `medtl.data.features`.

    Args:
      columns: CSV: a pattern of the columns' names.
    """
    read = functools.partial(precomputed.read, columns=columns)
    return Kind(read, inputs=("features",), has_task=True)


def tfds() -> Kind:
    """Return the kind that reads a prepared TFDS data set; see `medtl.data.tfds`."""
    return Kind(prepared.read, check=prepared.check)


def phantom(
    size: int = 2000,
    scanner: str = "a",
    split: tuple[float, ...] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Kind:
    """Return the kind that draws synthetic images; see `medtl.data.phantom`.

    Args:
      size: the number of images.
      scanner: "a" or "b", the scanner that the images imitate.
      split: the fractions of train, val and test.
      seed: the seed of the bodies, and of the split.

    Raises:
      ValueError: an option has no such value.
    """
    for name, value, least in (("size", size, 1), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, {least} or more")
    if scanner not in phantoms.SCANNERS:
        raise ValueError(f"scanner is {scanner!r}{nearest(str(scanner), phantoms.SCANNERS)}")

    def read(spec: Any, *, key: str, require_label: bool, image_size: int) -> Table:
        return phantoms.draw(size, scanner=scanner, seed=seed, image_size=image_size)

    return Kind(read, split=split, seed=seed)


def find(text: str, *, key: str) -> Kind:
    """Return the kind that a config names.

    Args:
      text: the config's value, e.g. "phantom(size=500)" or "file.py:load(option=1)".
      key: the config's key, e.g. "config.data.target.kind".

    Raises:
      UserError: there is no such kind or function (names the nearest), or no such option.

    >>> find("phantom(size=500, seed=3)", key="config.data.target.kind").seed
    3
    """
    parsed = plugins.parse(text, key=key)
    if parsed.module:
        return Kind(plugins.resolve(text, "", key=key), is_user=True)
    if parsed.name not in NAMES:
        raise UserError(f"{key} is {text!r}{nearest(parsed.name, (*NAMES, 'file.py:function'))}")
    plugin = plugins.resolve(text, __name__, key=key)
    try:
        return plugin.function(*plugin.args, **plugin.kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key} is {text!r}: {error}") from None
