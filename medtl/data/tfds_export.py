"""Examples written as a prepared TFDS data set in ArrayRecord files, without TensorFlow.

`tfds.builder_from_directory` reads it, and so does the kind `tfds`. The images are PNGs of the
decoded pixels, so nothing else of the image files is carried over, such as tags that name a
patient. Features: `image`, `label` (a ClassLabel, or a Sequence of it where an example may have
several diagnoses), `id`, `weight`, and where they are known `patient_id` and the groups. The splits
are train, validation and test. Imports no JAX.

Refuses a folder that exists, labels that are unknown, and images that are not 8-bit.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medtl import __version__
from medtl.errors import UserError
from medtl.examples import Examples

VERSION = "1.0.0"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_SHARD = 2**28  # bytes of pixels


def dataset_name(name: str) -> str:
    """Return a name that TFDS accepts: letters, digits and "_", a letter first.

    >>> dataset_name("COVID-CT (2020)"), dataset_name("2020")
    ('covid_ct_2020', 'set_2020')
    """
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return words if words[:1].isalpha() else f"set_{words}".rstrip("_")


def write(examples: Examples, data_dir: str | os.PathLike, *, name: str = "") -> Path:
    """Write a prepared data set.

    Args:
      examples: one domain's; the input "image" is uint8[N, H, W, C].
      data_dir: the folder of data sets; `path` of the kind `tfds`.
      name: of the data set; "": the examples' name as `dataset_name` spells it.

    Returns:
      The folder DATA_DIR/NAME/1.0.0.

    Raises:
      UserError: the module's docstring lists why.
      OSError: a file cannot be written.
    """
    from tensorflow_datasets import folder_dataset

    name = name or dataset_name(examples.name)
    _check(examples)
    folder = Path(data_dir).expanduser() / name / VERSION
    if folder.exists():
        raise UserError(f"{folder} exists; delete it, or give another folder")
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = folder.parent / f".{VERSION}.{os.getpid()}.tmp"
    unfinished.mkdir(mode=0o700)
    try:
        features = _features(examples)
        infos = [
            _write_split(examples, split, features, unfinished, name)
            for split in _present(examples)
        ]
        folder_dataset.write_metadata(
            data_dir=unfinished,
            features=features,
            split_infos=infos,
            version=VERSION,
            check_data=False,
            description=f"{examples.name}, written by medtl {__version__}.\n"
            f"Fingerprint: {examples.fingerprint}",
        )
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _present(examples: Examples) -> list[str]:
    return [split for split in _SPLITS if np.any(examples.split == split)]


def _check(examples: Examples) -> None:
    if "image" not in examples.inputs:
        raise UserError(f"{examples.name} has no images; a TFDS data set is written of images")
    if len(examples) and np.asarray(examples.image[0]).dtype != np.uint8:
        raise UserError(f"{examples.name}: the images must be uint8")
    lacking = int((~examples.present.get("image", np.ones(len(examples), bool))).sum())
    if lacking:
        raise UserError(f"{examples.name}: {lacking} examples lack their image; leave them out")
    unknown = np.isnan(examples.label) if examples.multi_label else examples.label < 0
    if unknown.any():
        row = np.argwhere(unknown)[0][0]
        raise UserError(
            f"{examples.name}: {str(examples.id[row])!r} has an unknown label, which a ClassLabel "
            "cannot hold; leave it out"
        )
    for one in examples.classes:
        if one.splitlines() != [one] or one != one.strip():
            raise UserError(f"{examples.name}: a class of TFDS is one line of text, not {one!r}")


def _features(examples: Examples) -> Any:
    from tensorflow_datasets import features

    shape = np.asarray(examples.image[0]).shape
    label = features.ClassLabel(names=list(examples.classes))
    return features.FeaturesDict(
        {
            "image": features.Image(shape=shape, encoding_format="png"),
            "label": features.Sequence(label) if examples.multi_label else label,
            "id": features.Text(),
            "weight": features.Scalar(np.float32),
            **({} if examples.patient is None else {"patient_id": features.Text()}),
            **{group: features.Text() for group in examples.groups},
        }
    )


def _write_split(examples: Examples, split: str, features: Any, folder: Path, name: str) -> Any:
    """Write the shards of a split and return its SplitInfo."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    rows = examples.indices(split)
    per_shard = max(1, _SHARD // max(1, np.asarray(examples.image[0]).size))
    shards = np.split(rows, range(per_shard, len(rows), per_shard))
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=name,
        split=_SPLITS[split],
        filetype_suffix="array_record",
    )
    serializer, nbytes = ExampleSerializer(features.get_serialized_info()), 0
    for i, shard in enumerate(shards):
        path = template.sharded_filepath(shard_index=i, num_shards=len(shards))
        writer = ArrayRecordWriter(str(path), "group_size:1")
        try:
            for example in _rows(examples, shard):
                record = serializer.serialize_example(features.encode_example(example))
                nbytes += len(record)
                writer.write(record)
        finally:
            writer.close()
    return tfds.core.SplitInfo(
        name=_SPLITS[split],
        shard_lengths=[len(shard) for shard in shards],
        num_bytes=nbytes,
        filename_template=template,
    )


def _rows(examples: Examples, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    for row in rows.tolist():
        label = examples.label[row]
        example = {
            "image": _png(np.asarray(examples.image[row])),
            "label": np.flatnonzero(label == 1).tolist() if label.ndim else int(label),
            "id": str(examples.id[row]),
            "weight": float(examples.weight[row]),
        }
        if examples.patient is not None:
            patient = str(examples.patient[row])  # "?ID" is an unknown patient
            example["patient_id"] = "" if patient == f"?{examples.id[row]}" else patient
        yield example | {group: str(values[row]) for group, values in examples.groups.items()}


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()
