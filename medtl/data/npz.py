"""An `.npz` in MedMNIST's layout.

Its arrays are {train,val,test}_images, uint8[n, H, W] or [n, H, W, 3], and {train,val,test}_labels,
[n, 1] or [n, K]: one-hot for one diagnosis, else with `multi_label`. Class names come from an array
`classes` where the file has one. A file with the name of a MedMNIST set (breastmnist.npz,
breastmnist_224.npz) gets MedMNIST's names; for any other they are "0", "1", ... In BreastMNIST 0 is
malignant and 1 is normal or benign.

Refuses pickled arrays, images that are not uint8, and labels that are missing or not whole numbers
below 65,536.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from medtl import files
from medtl.data import splits
from medtl.data.table import Table
from medtl.errors import UserError, damaged

_MOST_CLASSES = 2**16
# As in medmnist's INFO, but without commas, so that a name is a plain CSV cell.
CLASSES = {
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature_granulocytes",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "breastmnist": ("malignant", "normal_or_benign"),
    "chestmnist": (
        "atelectasis",
        "cardiomegaly",
        "effusion",
        "infiltration",
        "mass",
        "nodule",
        "pneumonia",
        "pneumothorax",
        "consolidation",
        "edema",
        "emphysema",
        "fibrosis",
        "pleural",
        "hernia",
    ),
    "dermamnist": (
        "actinic_keratoses",
        "basal_cell_carcinoma",
        "benign_keratosis",
        "dermatofibroma",
        "melanoma",
        "melanocytic_nevi",
        "vascular_lesions",
    ),
    "octmnist": ("choroidal_neovascularization", "diabetic_macular_edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
}


def read(spec: Any, *, key: str, require_label: bool, image_size: int) -> Table:
    """Read an npz.

    Args:
      spec: a `medtl.config.dataset`; `path` and `multi_label` are read. With several labels an
        image, a row of labels is K answers: 0, 1, or NaN for unknown.
      key: the config key by which errors name this data set.
      require_label: False for a file to be scored; its labels are ignored.
      image_size: 0 leaves the images unread, which is quick, unless only they give the number of
        examples.

    Raises:
      UserError: as the module's docstring lists.
    """
    path, images = spec.path, image_size > 0 or not require_label
    if not os.path.isfile(path):
        raise UserError(
            f"{key}.path: there is no file {path or '(empty)'}; it is the path of an .npz"
        )
    with damaged(f"{key}.path: {path} is not a readable .npz"), open(path, "rb") as file:
        arrays = files.open_npz(file)
        _check_sizes(arrays)
        return _table(path, arrays, spec.multi_label, require_label, key, images)


def _check_sizes(arrays: Any) -> None:
    """Raise ValueError where a header has a shape of another size than its member of the file.

    NumPy would allocate the array before it reads it.
    """
    for name in arrays.files:
        member = arrays.zip.NameToInfo.get(f"{name}.npy")
        if member is None:
            continue
        with arrays.zip.open(member) as file:
            layout = np.lib.format
            is_first = layout.read_magic(file) == (1, 0)
            read = layout.read_array_header_1_0 if is_first else layout.read_array_header_2_0
            shape, _, dtype = read(file)
            if any(side < 0 for side in shape) or (
                not dtype.hasobject
                and file.tell() + math.prod(shape) * dtype.itemsize != member.file_size
            ):
                raise ValueError(f"{name} has the shape {list(shape)}, but another size")


def _table(
    path: str,
    arrays: Mapping[str, np.ndarray],
    multi_label: bool,
    require_label: bool,
    key: str,
    images: bool,
) -> Table:
    present = [s for s in splits.NAMES if f"{s}_images" in arrays]
    if not present:
        raise UserError(
            f"{path} has the arrays {', '.join(arrays) or '(none)'}; "
            "it needs train_images and train_labels"
        )
    pixels, labels = [], []
    for name in present:
        if require_label:
            if f"{name}_labels" not in arrays:
                raise UserError(f"{path} has {name}_images but no {name}_labels")
            labels.append(
                _labels(arrays[f"{name}_labels"], f"{path}, {name}_labels", multi_label, key)
            )
        pixels.append(
            _images(arrays, name, path) if images else np.zeros((len(labels[-1]), 0, 0), np.uint8)
        )
        if labels and len(labels[-1]) != len(pixels[-1]):
            raise UserError(
                f"{path}: {len(pixels[-1])} {name}_images but {len(labels[-1])} {name}_labels"
            )
    shapes = {a.shape[1:] for a in pixels} | {a.shape[1:] for a in labels}
    if len(shapes) != 1 + bool(labels):
        raise UserError(f"{path}: the splits differ in the shape of their images or labels")
    counts = [len(a) for a in pixels]
    n = sum(counts)
    label = np.concatenate(labels) if labels else np.full(n, -1, np.int32)
    return Table(
        name=pathlib.Path(path).stem,
        origin=path,
        id=np.array(
            [
                f"{name}/{i}"
                for name, count in zip(present, counts, strict=True)
                for i in range(count)
            ]
        ),
        label=label,
        classes=_classes(path, arrays, label) if require_label else (),
        split=np.repeat(present, counts),
        patient=None,
        weight=np.ones(n, np.float32),
        line_or_row=np.concatenate([np.arange(count) for count in counts]),
        unit="row",
        images=np.concatenate(pixels),
    )


def _images(arrays: Mapping[str, np.ndarray], split: str, path: str) -> np.ndarray:
    value = arrays[f"{split}_images"]
    if value.dtype != np.uint8 or not (
        value.ndim == 3 or (value.ndim == 4 and value.shape[-1] in (1, 3))
    ):
        raise UserError(
            f"{path}, {split}_images is {value.dtype}{list(value.shape)}; "
            "it must be uint8[n, H, W], [n, H, W, 1] or [n, H, W, 3]"
        )
    return value


def _labels(value: np.ndarray, where: str, multi_label: bool, key: str) -> np.ndarray:
    """Return int32[n], or float32[n, K]."""
    if value.dtype.kind not in "biuf" or value.ndim not in (1, 2) or 0 in value.shape[1:]:
        raise UserError(
            f"{where} is {value.dtype}{list(value.shape)}; it must hold numbers, [n, 1] or [n, K]"
        )
    if multi_label:
        answers = value.reshape(len(value), -1).astype(np.float32)
        for row, column in np.argwhere(~(np.isnan(answers) | (answers == 0) | (answers == 1))):
            raise UserError(
                f"{where}, row {row}: {answers[row, column]:g} is not 0, 1 or NaN (unknown)"
            )
        return answers
    if value.ndim == 2 and value.shape[1] > 1 and _is_one_hot(value):
        return value.argmax(1).astype(np.int32)
    if value.ndim == 2 and value.shape[1] != 1:
        raise UserError(
            f"{where} has {value.shape[1]} columns; "
            f"set {key}.multi_label to True for several labels an image, or write one-hot rows"
        )
    numbers = value.reshape(len(value))
    is_class = (numbers >= 0) & (numbers < _MOST_CLASSES) & (numbers == np.floor(numbers))
    for row in np.flatnonzero(~is_class):
        raise UserError(
            f"{where}, row {row}: {numbers[row]} is not a class number 0, 1, ... below "
            f"{_MOST_CLASSES:,}; kind='manifest' and 'features' can read numbers to be predicted"
        )
    return numbers.astype(np.int32)


def _is_one_hot(value: np.ndarray) -> bool:
    return bool((((value == 0) | (value == 1)).all(1) & (value.sum(1) == 1)).all())


def _classes(path: str, arrays: Mapping[str, np.ndarray], label: np.ndarray) -> tuple[str, ...]:
    count = label.shape[1] if label.ndim == 2 else int(label.max(initial=-1)) + 1
    if "classes" in arrays:
        names = tuple(str(name) for name in arrays["classes"].reshape(-1))
    else:
        names = CLASSES.get(pathlib.Path(path).stem.split("_")[0].lower(), ())
        if len(names) != count:
            return tuple(str(i) for i in range(count))
    if len(names) < count or len(set(names)) != len(names):
        raise UserError(
            f"{path}: `classes` has {len(set(names))} different names, "
            f"the labels have {count} classes"
        )
    return names
