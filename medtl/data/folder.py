"""An image folder: FOLDER/CLASS/IMAGE, or FOLDER/SPLIT/CLASS/IMAGE with train, val and test.

Folders below a class belong to it. Refuses a file that is no image beside the images, and a class
without images. Imports no JAX.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from medtl.data import splits
from medtl.data.labels import sorted_classes
from medtl.data.manifest import Files
from medtl.data.table import Table
from medtl.errors import UserError

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
_SUFFIXES = (*_PICTURES, ".dcm", ".npy")
_IGNORED = ("thumbs.db", "desktop.ini", "readme", "readme.md", "readme.txt", "license", ".ds_store")


def read(spec: Any, *, key: str, require_label: bool, image_size: int) -> Table:
    """List the images of a folder; none is decoded.

    Args:
      spec: a `medtl.config.dataset`; `path` is read.
      key: the config key by which errors name this data set.
      require_label: False for images to be scored: they may be in any folder.
      image_size: not used.

    Raises:
      UserError: as the module's docstring lists.
    """
    root = pathlib.Path(spec.path)
    if not spec.path or not root.is_dir():
        raise UserError(
            f"{key}.path: there is no folder {spec.path!r} with a folder for each class"
        )
    below = [name.lower() for name in _folders(root)]
    named = {splits.ALIASES.get(name, name) for name in below}
    has_splits = bool(below) and named <= set(splits.NAMES)
    parts = {name: _images(root / name, key) for name in _folders(root)}
    if has_splits:
        parts = {
            f"{part}/{name}": _images(root / part / name, key)
            for part in _folders(root)
            for name in _folders(root / part)
        }
    if not parts:
        raise UserError(f"{key}.path: {root} holds no folders; it must have one for each class")
    paths = [path for images in parts.values() for path in images]
    classes = sorted_classes({name.rpartition("/")[2] for name in parts})
    index = {name: i for i, name in enumerate(classes)}
    folder_of = [name for name, images in parts.items() for _ in images]
    n = len(paths)
    label = np.array([index[name.rpartition("/")[2]] for name in folder_of], np.int32)
    split = None
    if has_splits:
        first = [name.partition("/")[0].lower() for name in folder_of]
        split = np.array([splits.ALIASES.get(name, name) for name in first])
    return Table(
        name=root.resolve().name,
        origin=str(root),
        id=np.array([path.relative_to(root).as_posix() for path in paths]),
        label=label if require_label else np.full(n, -1, np.int32),
        classes=classes if require_label else (),
        split=split if require_label else None,
        patient=None,
        weight=np.ones(n, np.float32),
        line_or_row=np.arange(n),
        unit="image",
        images=Files(tuple(map(str, paths)), (None,) * n),
    )


def _folders(root: pathlib.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: pathlib.Path, key: str) -> list[pathlib.Path]:
    images = []
    for parent, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = pathlib.Path(parent) / name
            if name.startswith(".") or name.lower() in _IGNORED:
                continue
            if path.suffix.lower() not in _SUFFIXES:
                raise UserError(
                    f"{key}.path: {path} is no image, by its name; the folder of a class holds "
                    "images alone"
                )
            images.append(path)
    if not images:
        raise UserError(f"{key}.path: {folder} holds no image; leave the class out, or add some")
    return images
