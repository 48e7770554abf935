"""Facts about data before training: kinds of image files, columns of a manifest, equal images.

Imports no JAX.
"""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from medtl.data import cache, dicom, kinds, labels, npy, schema
from medtl.data.images import read
from medtl.data.table import Encoded
from medtl.data.values import FileRules, UnreadableImageError, Values
from medtl.examples import Examples, known
from medtl.files import read_csv

SAMPLE = 200  # images of a domain that are looked at in their files
_WORKING = 2**13  # pixels; only a larger image is reduced before its values are looked at
_ROLES = {"image_path": "image"} | {s: s for s in ("id", "patient_id", "split", "weight")}


@dataclasses.dataclass(frozen=True)
class FileKind:
    """The images of one format, mode and bit depth, in a sample.

    Attributes:
      words: such as "8-bit RGB JPEG" or "16-bit grey PNG".
      width: of each image.
      height: of each image.
      values: float64[n, 3], the minimum, median and maximum of each image, in the file's own units.
    """

    words: str
    width: tuple[int, ...]
    height: tuple[int, ...]
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Cells:
    """One column of a manifest.

    Attributes:
      name: in the header.
      missing: rows whose cell is missing.
      different: how many different values the other cells have.
      missing_by_class: class -> (rows with a missing cell, rows).
    """

    name: str
    missing: int
    different: int
    missing_by_class: Mapping[str, tuple[int, int]]


def stored_images(spec: Any, *, key: str, image_size: int) -> np.ndarray | Encoded | None:
    """Return the images of a domain as they are stored; None for those of a user's function.

    Raises:
      UserError: as `medtl.data.load`.
    """
    kind = kinds.find(spec.kind, key=f"{key}.kind")
    if kind.is_user:
        return None
    return kind.read(spec, key=key, require_label=False, image_size=image_size).images


def file_kinds(
    images: np.ndarray | Encoded, *, rules: FileRules, sample: int = SAMPLE
) -> tuple[list[FileKind], list[str]]:
    """Look into image files.

    Args:
      images: as they are stored.
      rules: what is accepted.
      sample: at most this many, equally spaced.

    Returns:
      The kinds, the most frequent first; and the reasons why images cannot be read.
    """
    facts: dict[str, list[tuple[int, int, tuple[float, ...]]]] = collections.defaultdict(list)
    reasons = []
    for row in spaced(len(images), sample):
        try:
            words, pixels = _pixels(images, row, rules)
        except Exception as error:  # whatever Pillow and others raise on damaged files
            reasons.append(" ".join(str(error).split())[:200] or type(error).__name__)
            continue
        values = tuple(float(f(pixels)) for f in (np.min, np.median, np.max))
        facts[words].append((pixels.shape[1], pixels.shape[0], values))
    found = []
    for words, rows in sorted(facts.items(), key=lambda item: -len(item[1])):
        width, height, values = zip(*rows, strict=True)
        found.append(FileKind(words, width, height, np.array(values)))
    return found, reasons


def spaced(n: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0 to n - 1, equally spaced.

    >>> spaced(10, 4), spaced(2, 4), spaced(3, 0)
    ([0, 3, 6, 9], [0, 1], [])
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


def _pixels(images: np.ndarray | Encoded, row: int, rules: FileRules) -> tuple[str, np.ndarray]:
    if isinstance(images, np.ndarray):
        is_rgb = images.ndim == 4 and images.shape[-1] == 3
        return f"8-bit {'RGB' if is_rgb else 'grey'} array", images[row]
    data, frame = images[row], images.frame(row)
    image = read(data, size=_WORKING, rules=rules, frame=frame)
    if isinstance(image, Values):
        if not np.isfinite(image.pixels).all():
            raise UnreadableImageError(f"it is a {image.words} with NaN or infinite values")
        return image.words, image.pixels
    name = "DICOM" if dicom.is_dicom(data) else "array"
    if not (dicom.is_dicom(data) or npy.is_npy(data)):
        with Image.open(io.BytesIO(data)) as file:
            name = str(file.format)
    return f"8-bit {'grey' if image.mode == 'L' else image.mode} {name}", np.asarray(image)


def manifest_cells(path: str, label: str) -> tuple[list[Cells], dict[str, int]]:
    """Count the missing and the different cells of each column of a manifest.

    Args:
      path: the CSV file, which `medtl.data.load` has accepted.
      label: the name of the column of labels.

    Returns:
      The columns, in the order of the file; and the texts of the label column with their numbers,
      the most frequent first.
    """
    rows = [[cell.strip() for cell in row] for _, row in read_csv(path)]
    header, *body = [row for row in rows if any(row)]
    texts = [row[header.index(label)] if label in header else "" for row in body]
    classes = [labels.spelled(text) for text in texts]
    sizes = collections.Counter(classes)
    columns = []
    for i, name in enumerate(header):
        empty = [labels.is_missing(row[i]) for row in body]
        lacking = collections.Counter(c for c, lacks in zip(classes, empty, strict=True) if lacks)
        different = len({row[i] for row, lacks in zip(body, empty, strict=True) if not lacks})
        by_class = {c: (lacking[c], n) for c, n in sizes.most_common()}
        columns.append(Cells(name, sum(empty), different, by_class))
    return columns, dict(collections.Counter(texts).most_common())


def with_schema(column: Cells, examples: Examples) -> Cells:
    """Count the cells that the schema takes for missing, where the column is an input."""
    cells = getattr(examples.columns, "cells", {}).get(column.name)
    if cells is None or examples.multi_label:
        return column
    lacks = schema.is_missing(cells)
    by_class = {}
    for i, name in enumerate(examples.classes):
        members = known(examples.label) if examples.is_quantity else examples.label == i
        by_class[name] = (int(lacks[members].sum()), int(members.sum()))
    return dataclasses.replace(column, missing=int(lacks.sum()), missing_by_class=by_class)


def roles(examples: Examples, names: list[str], label: str) -> dict[str, tuple[str, str]]:
    """Return column -> (role, reason): of the schema where the examples have one, else by name."""
    columns = examples.columns.schema if examples.columns else ()
    given = {column.name: (column.role, column.reason) for column in columns}
    return {name: given.get(name) or (_role(name, examples, label), "") for name in names}


def _role(name: str, examples: Examples, label: str) -> str:
    if name == label:
        return "label"
    if name in examples.groups:
        return "site" if name == "site" else "subgroup"
    return _ROLES.get(name, "ignore")


def copies(domains: Mapping[str, Examples]) -> Iterator[tuple[str, str, int, int]]:
    """Yield (part, other part, images with an equal one in the other part, images) for all pairs.

    A part is a split of a domain, such as "target test". Within a part, all but one of equal images
    are counted.

    Args:
      domains: name -> examples; those without images are left out.
    """
    parts: dict[str, np.ndarray] = {}
    for name, examples in domains.items():
        if "image" in examples.inputs:
            digests = np.array([d.hex() for d in cache.digests(examples.image)])
            has = examples.present.get("image", np.ones(len(examples), bool))
            parts |= {f"{name} {s}": digests[has & (examples.split == s)] for s in examples.splits}
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[: i + 1]:
            n = len(parts[one])
            equal = (
                n - len(np.unique(parts[one]))
                if one == other
                else int(np.isin(parts[one], parts[other]).sum())
            )
            yield one, other, equal, n
