"""A prepared TFDS data set in ArrayRecord files, read without TensorFlow.

A name ("breast_mnist:1.0.0", "name/config:version"; without a version the newest) is looked up
under `path`, else under $TFDS_DATA_DIR, else under ~/tensorflow_datasets. Without a name, `path` is
the folder that holds dataset_info.json. The image is the one Image feature; the diagnosis is the
feature that `label` names, else the one ClassLabel, else the one Sequence of it. `patient_id`,
`weight`, and the groups `site`, `subgroup` and `subgroup_<name>` are read where they exist, and so
is an `id` that differs from row to row; rows without one are "train/0", ...

Refuses data sets that are not prepared or in another file format (TFRecord needs TensorFlow), and
images that are not 8 or 16 bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from medtl.data import labels, splits
from medtl.data.table import Table
from medtl.errors import UserError, damaged, nearest
from medtl.examples import is_group


def find(path: str, name: str, *, key: str) -> pathlib.Path:
    """Return the folder of a prepared data set; imports nothing, so mistakes show at once.

    Raises:
      UserError: there is none, or its files are not ArrayRecord.
    """
    if not path and not name:
        raise UserError(
            f"{key}: kind 'tfds' needs name ('breast_mnist:1.0.0') or path (a prepared folder)"
        )
    folder = _by_name(path, name) if name else pathlib.Path(path)
    try:
        info = dict(json.loads((folder / "dataset_info.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        problem = (
            f"{name!r} is not prepared in {folder}"
            if name
            else f"{folder} has no readable dataset_info.json"
        )
        raise UserError(f"{key}: TFDS data set {problem}; {_how_to_prepare(name)}") from None
    if not (folder / "features.json").is_file():
        raise UserError(f"{key}: {folder} has no features.json; {_how_to_prepare(name)}")
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UserError(
            f"{key}: {folder} is in the format {file_format}, which is not read; "
            f"{_how_to_prepare(name)}"
        )
    return folder


def check(spec: Any, *, key: str) -> None:
    """Raise the errors of `find`; arguments as in `read`."""
    find(spec.path, spec.name, key=key)


def read(spec: Any, *, key: str, require_label: bool, image_size: int) -> Table:
    """Read everything but the images of a prepared data set; arguments as in `npz.read`."""
    folder = find(spec.path, spec.name, key=key)
    with damaged(f"{key}: {folder} is not a readable TFDS data set"):
        return _table(spec, folder, key, require_label)


def _table(spec: Any, folder: pathlib.Path, key: str, require_label: bool) -> Table:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        features, infos = builder.info.features, builder.info.splits
        split_names = {s: splits.ALIASES.get(s, s) for s in infos if infos[s].num_examples}
    except Exception as error:  # TFDS raises whatever its parsers raise
        raise UserError(f"{key}: TFDS cannot open {folder} ({error})") from None
    for unknown in sorted(s for s, name in split_names.items() if name not in splits.NAMES):
        logging.warning(
            "%s: the split %r is neither train, val nor test and is left out", folder, unknown
        )
    parts = sorted(
        (s for s, name in split_names.items() if name in splits.NAMES),
        key=lambda s: splits.NAMES.index(split_names[s]),
    )
    if not parts:
        raise UserError(
            f"{key}: {folder} has the splits {sorted(split_names)}; "
            "one must be train, validation or test"
        )
    rows = tuple((s, i) for s in parts for i in range(infos[s].num_examples))
    records = Records(str(folder), _image_feature(features, folder, key), rows)
    target = _label_feature(features, spec.label, folder, key) if require_label else ""
    groups = [name for name in features if is_group(name) and name != target]
    extra = [name for name in ("id", "patient_id", "weight") if name in features]
    values = _values(records, (target, *extra, *groups), key)
    answers: np.ndarray = np.full(len(records), -1, np.int32)
    classes: tuple[str, ...] = ()
    if target:
        answers, classes = _labels(
            values[target], features[target], target, spec.multi_label, folder, records, key
        )
    patients = values.get("patient_id")
    return Table(
        name=builder.info.name,
        origin=str(folder),
        id=_ids(values.get("id", ()), rows),
        label=answers,
        classes=classes,
        split=np.array([split_names[s] for s, _ in rows]),
        patient=None if patients is None else np.array([_known(p) for p in patients]),
        weight=_weights(values.get("weight"), folder, rows),
        line_or_row=np.array([i for _, i in rows]),
        unit="row",
        images=records,
        groups={name: np.array([_known(value) for value in values[name]]) for name in groups},
    )


def _ids(values: Sequence[Any], rows: Sequence[tuple[str, int]]) -> np.ndarray:
    """Return the feature "id" where it names each row, else the split and the number of the row."""
    ids = [_text(value) for value in values]
    is_name = len(set(ids)) == len(rows) and "" not in ids
    return np.array(ids if is_name else [f"{split}/{i}" for split, i in rows])


def _weights(
    values: Sequence[Any] | None, folder: pathlib.Path, rows: Sequence[tuple[str, int]]
) -> np.ndarray:
    if values is None:
        return np.ones(len(rows), np.float32)
    for (split, i), value in zip(rows, values, strict=True):
        if not (isinstance(value, int | float | np.number) and 0 <= value < np.inf):
            raise UserError(f"{folder}, {split} row {i}, feature weight: {value} is no number >= 0")
    return np.array(values, np.float32)


def _values(records: Records, names: Sequence[str], key: str) -> dict[str, list[Any]]:
    """Return the features of these names, one value per row; "" names none."""
    names = [name for name in names if name]
    if not names:
        return {}
    try:
        rows = [[example[name] for name in names] for example in records.examples()]
    except OSError as error:
        raise UserError(f"{key}: cannot read {records.folder} ({error})") from None
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


@dataclasses.dataclass
class Records:
    """The encoded images of a prepared data set; pickles without its open files.

    Attributes:
      folder: the folder of the prepared data set.
      image: the name of the image feature.
      records: for each row the TFDS split and the index in it.
    """

    folder: str
    image: str
    records: tuple[tuple[str, int], ...]
    _open: dict[str, Any] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> bytes:
        return self.example(index)[self.image]

    def example(self, index: int) -> dict[str, Any]:
        """Return all features of a row, the image as the bytes of its file."""
        split, record = self.records[index]
        try:
            if self._open is None:
                import tensorflow_datasets as tfds

                builder = tfds.builder_from_directory(self.folder)
                self._open = builder.as_data_source(
                    decoders={self.image: tfds.decode.SkipDecoding()}
                )
            return self._open[split][record]
        except Exception as error:  # the readers below TFDS have errors of their own
            raise OSError(f"{split} record {record}: {error}") from error

    def examples(self) -> Iterator[dict[str, Any]]:
        """Yield every row's `example`."""
        return (self.example(i) for i in range(len(self)))

    def frame(self, index: int) -> None:
        """Return None: a record holds one image."""

    def take(self, rows: np.ndarray) -> Records:
        return dataclasses.replace(self, records=tuple(self.records[i] for i in rows))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def _by_name(path: str, name: str) -> pathlib.Path:
    """Return root/name[/config]/version, or root/name where there is no version."""
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
    stem = name.partition(":")[0] or "NAME"
    return f"prepare it with `tfds build {stem} --file_format=array_record`"


def _image_feature(features: Any, folder: pathlib.Path, key: str) -> str:
    import tensorflow_datasets as tfds

    names = [name for name, f in features.items() if isinstance(f, tfds.features.Image)]
    if len(names) != 1:
        raise UserError(
            f"{key}: {folder} has the Image features {names} among {sorted(features)}; "
            "it must have one"
        )
    dtype = features[names[0]].np_dtype
    if dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{key}: {folder}, feature {names[0]!r} is {dtype}; it must be uint8 or uint16"
        )
    return names[0]


def _label_feature(features: Any, label: str, folder: pathlib.Path, key: str) -> str:
    import tensorflow_datasets as tfds

    if label in features:
        return label
    if label != "diagnosis":
        raise UserError(f"{key}.label: {folder} has no feature {label!r}{nearest(label, features)}")
    one = [name for name, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    several = [
        name
        for name, f in features.items()
        if isinstance(getattr(f, "feature", None), tfds.features.ClassLabel)
    ]
    names = one or several
    if len(names) != 1:
        raise UserError(
            f"{key}.label: {folder} has the ClassLabels {names}; "
            "name the feature that holds the diagnosis"
        )
    return names[0]


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
    for (split, record), numbers in zip(records.records, sets, strict=True):
        where = f"{folder}, {split} row {record}, feature {name}"
        if len(numbers) != 1 and not multi_label:
            raise UserError(
                f"{where}: {len(numbers)} labels; "
                f"set {key}.multi_label to True for several an image"
            )
        if any(
            labels.is_missing(_text(value))
            or (not isinstance(value, bytes | str) and not value >= 0)
            for value in numbers
        ):
            raise UserError(f"{where}: {numbers} is not a label")
        if names and max(numbers, default=0) >= len(names):
            raise UserError(f"{where}: {numbers} is not one of the {len(names)} classes")
    texts = [
        [names[int(v)] if names else labels.spelled(_text(v)) for v in numbers] for numbers in sets
    ]
    classes = names or labels.sorted_classes(set().union(*texts))
    index = {text: i for i, text in enumerate(classes)}
    if not multi_label:
        return np.array([index[numbers[0]] for numbers in texts], np.int32), classes
    label = np.zeros((len(sets), len(classes)), np.float32)
    for row, numbers in enumerate(texts):
        label[row, [index[text] for text in numbers]] = 1.0
    return label, classes


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _known(value: Any) -> str:
    """Return a patient as text, "" where unknown."""
    text = _text(value)
    return "" if labels.is_missing(text) else text
