"""A prepared TFDS data set in ArrayRecord files, read without TensorFlow.

It is found by name ("breast_mnist:1.0.0", "name/config:version"; the newest version where none is given) under `path`, else
under $TFDS_DATA_DIR, else under ~/tensorflow_datasets; or by `path` alone, the folder that holds dataset_info.json. The image is
the one Image feature; the diagnosis is the feature named in `label`, else the one ClassLabel; `patient_id` is read where it exists.

Refuses what is not prepared, what is in another file format (TFRecord needs TensorFlow), and images that are not 8 or 16 bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from medtl.data import manifest, splits
from medtl.data.table import Table
from medtl.errors import UserError, nearest


def find(path: str, name: str, *, key: str) -> pathlib.Path:
    """The folder of a prepared data set; imports nothing, so a mistake is told at once.

    Raises:
      UserError: where there is none, or its files are not ArrayRecord.
    """
    if not path and not name:
        raise UserError(
            f"{key}: kind 'tfds' needs name ('breast_mnist:1.0.0') or path (a prepared folder)"
        )
    folder = _by_name(path, name) if name else pathlib.Path(path)
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
    except (OSError, ValueError):
        what = (
            f"{name!r} is not prepared in {folder}"
            if name
            else f"{folder} has no readable dataset_info.json"
        )
        raise UserError(f"{key}: TFDS data set {what}; {_how_to_prepare(name)}") from None
    if not (folder / "features.json").is_file():
        raise UserError(f"{key}: {folder} has no features.json; {_how_to_prepare(name)}")
    form = info.get("fileFormat", "tfrecord")
    if form != "array_record":
        raise UserError(
            f"{key}: {folder} is in the format {form}, which is not read; {_how_to_prepare(name)}"
        )
    return folder


def read(
    path: str, name: str, *, label: str, multi_label: bool, require_label: bool, key: str
) -> Table:
    """Reads everything but the images of a prepared data set; arguments and errors as in `manifest.read`."""
    folder = find(path, name, key=key)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        named = {
            s: splits.ALIASES.get(s, s)
            for s in builder.info.splits
            if builder.info.splits[s].num_examples
        }
    except Exception as error:  # TFDS raises whatever its parsers raise
        raise UserError(f"{key}: TFDS cannot open {folder} ({error})") from None
    for unknown in sorted(s for s, as_ in named.items() if as_ not in splits.NAMES):
        logging.warning(
            "%s: the split %r is neither train, val nor test and is left out", folder, unknown
        )
    parts = sorted(
        (s for s, as_ in named.items() if as_ in splits.NAMES),
        key=lambda s: splits.NAMES.index(named[s]),
    )
    if not parts:
        raise UserError(
            f"{key}: {folder} has the splits {sorted(named)}; one must be train, validation or test"
        )
    records = Records(str(folder), _image_feature(features, folder, key), ())
    records = dataclasses.replace(
        records, at=tuple((s, i) for s in parts for i in range(builder.info.splits[s].num_examples))
    )
    target = _label_feature(features, label, folder, key) if require_label else ""
    patients = "patient_id" if "patient_id" in features else ""
    wanted = [name for name in (target, patients) if name]
    try:
        found = (
            [{name: example[name] for name in wanted} for example in records.examples()]
            if wanted
            else []
        )
    except OSError as error:
        raise UserError(f"{key}: cannot read {folder} ({error})") from None
    labels: np.ndarray = np.full(len(records), -1, np.int32)
    classes: tuple[str, ...] = ()
    if target:
        labels, classes = _labels(
            [e[target] for e in found], features[target], target, multi_label, folder, records, key
        )
    return Table(
        name=builder.info.name,
        origin=str(folder),
        id=np.array([f"{s}/{i}" for s, i in records.at]),
        label=labels,
        classes=classes,
        split=np.array([named[s] for s, _ in records.at]),
        patient=np.array([_text(e[patients]) for e in found]) if patients else None,
        weight=np.ones(len(records), np.float32),
        place=np.array([i for _, i in records.at]),
        place_word="row",
        images=records,
    )


@dataclasses.dataclass
class Records:
    """The encoded images of a prepared data set; pickles without its open files.

    Attributes:
      folder: of the prepared data set.
      image: the name of the image feature.
      at: for each row the TFDS split and the index in it.
    """

    folder: str
    image: str
    at: tuple[tuple[str, int], ...]
    _open: dict[str, Any] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> bytes:
        return self.example(index)[self.image]

    def example(self, index: int) -> dict[str, Any]:
        """All features of a row, the image as the bytes of its file."""
        split, place = self.at[index]
        try:
            if self._open is None:
                import tensorflow_datasets as tfds

                builder = tfds.builder_from_directory(self.folder)
                self._open = builder.as_data_source(
                    decoders={self.image: tfds.decode.SkipDecoding()}
                )
            return self._open[split][place]
        except Exception as error:  # the readers below TFDS have errors of their own
            raise OSError(f"{split} record {place}: {error}") from error

    def examples(self) -> Iterator[dict[str, Any]]:
        """Every row's `example`, one at a time."""
        return (self.example(i) for i in range(len(self)))

    def take(self, rows: np.ndarray) -> Records:
        return dataclasses.replace(self, at=tuple(self.at[i] for i in rows))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def _by_name(path: str, name: str) -> pathlib.Path:
    """root/name[/config]/version; root/name itself where no version is there."""
    root = pathlib.Path(
        path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    stem, _, version = name.partition(":")
    folder = root / stem
    if version:
        return folder / version
    versions = [
        p for p in folder.glob("*.*.*") if all(part.isdecimal() for part in p.name.split("."))
    ]
    return max(versions, key=lambda p: [int(part) for part in p.name.split(".")], default=folder)


def _how_to_prepare(name: str) -> str:
    return f"prepare it with `tfds build {name.partition(':')[0] or 'NAME'} --file_format=array_record`"


def _image_feature(features: Any, folder: pathlib.Path, key: str) -> str:
    import tensorflow_datasets as tfds

    found = [name for name, f in features.items() if isinstance(f, tfds.features.Image)]
    if len(found) != 1:
        raise UserError(
            f"{key}: {folder} has the Image features {found} among {sorted(features)}; one is needed"
        )
    if features[found[0]].np_dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{key}: {folder}, feature {found[0]!r} is {features[found[0]].np_dtype}; it must be uint8 or uint16"
        )
    return found[0]


def _label_feature(features: Any, label: str, folder: pathlib.Path, key: str) -> str:
    import tensorflow_datasets as tfds

    if label in features:
        return label
    if label != "diagnosis":
        raise UserError(f"{key}.label: {folder} has no feature {label!r}{nearest(label, features)}")
    found = [name for name, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    if len(found) != 1:
        raise UserError(
            f"{key}.label: {folder} has the ClassLabels {found}; name the feature that holds the diagnosis"
        )
    return found[0]


def _labels(
    values: list[Any],
    feature: Any,
    name: str,
    multi_label: bool,
    folder: pathlib.Path,
    records: Records,
    key: str,
) -> tuple[np.ndarray, tuple[str, ...]]:
    inner = getattr(feature, "feature", feature)
    names = tuple(getattr(inner, "names", None) or ())
    sets = [np.atleast_1d(np.asarray(value)).tolist() for value in values]
    for (split, place), numbers in zip(records.at, sets, strict=True):
        where = f"{folder}, {split} row {place}, feature {name}"
        if len(numbers) != 1 and not multi_label:
            raise UserError(
                f"{where}: {len(numbers)} labels; set {key}.multi_label to True for several an image"
            )
        if any(
            value in (b"", "") or (not isinstance(value, bytes | str) and not value >= 0)
            for value in numbers
        ):
            raise UserError(f"{where}: {numbers} is not a label")
    texts = [[names[int(v)] if names else _text(v) for v in numbers] for numbers in sets]
    classes = names or manifest.sorted_classes(set().union(*texts))
    index = {text: i for i, text in enumerate(classes)}
    if not multi_label:
        return np.array([index[numbers[0]] for numbers in texts], np.int32), classes
    label = np.zeros((len(sets), len(classes)), np.float32)
    for row, numbers in enumerate(texts):
        label[row, [index[text] for text in numbers]] = 1.0
    return label, classes


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
