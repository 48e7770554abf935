"""predictions.csv: what each arm said of each example, so that any metric can be computed again.

Columns: `arm, split, id, label, prob_<class>...` and, only where there are several seeds, `seed`. A label is the class
by name, empty where it is unknown. Where an example may have several diagnoses, the positive ones are joined by "|",
and an unknown one stands among them with a "?" before its name. Probabilities have the 9 digits that give back every
float32. Refuses class names that the label column could not hold, and files of another layout.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from medtl.base import UserError, nearest

_COLUMNS = ["arm", "split", "id", "label"]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What one arm said of one split.

    Attributes:
      arm, split: their names.
      id: str[N].
      label: int[N], an index into the classes, -1 where unknown; or float[N, K] of 0, 1 or NaN (unknown).
      probability: float32[N, K].
      seed: of the run; None where it is not told.
    """

    arm: str
    split: str
    id: np.ndarray
    label: np.ndarray
    probability: np.ndarray
    seed: int | None = None


def probabilities(logits: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Logits f32[N, K] -> float64[N, K]: softmax, or sigmoid where an example may have several diagnoses."""
    z = logits.astype(np.float64)
    if multi_label:
        return np.exp(-np.logaddexp(0.0, -z))
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def write(path: str | os.PathLike[str], predictions: Sequence[Predictions], classes: Sequence[str]) -> None:
    """Writes predictions.csv whole or not at all.

    Args:
      path: the file; replaced where it exists.
      predictions: in the order of the file.
      classes: the K names, in the order of the probabilities' columns.

    Raises:
      UserError: a class has a name that the label column could not hold.
    """
    path = pathlib.Path(path)
    multi_label = any(p.label.ndim == 2 for p in predictions)
    for name in classes:
        if not name or (multi_label and ("|" in name or name.startswith("?"))):
            raise UserError(
                f"{path}: a class is called {name!r}; in `label`, empty, '|' and a leading '?' mean something else"
            )
    several = len({p.seed for p in predictions}) > 1
    # Python before 3.13 leaves a lone carriage return unquoted, and then reads a line's end in it.
    lone_return = any("\r" in text for text in itertools.chain(classes, *(p.id for p in predictions)))
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if lone_return else csv.QUOTE_MINIMAL)
        rows.writerow([*_COLUMNS, *(f"prob_{name}" for name in classes), *(["seed"] if several else [])])
        for p in predictions:
            last = [p.seed] if several else []
            for example, label, probability in zip(p.id, p.label, p.probability, strict=True):
                numbers = [f"{value:.9g}" for value in probability.tolist()]
                rows.writerow([p.arm, p.split, example, _label_text(label, classes), *numbers, *last])
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read(path: str | os.PathLike[str], *, multi_label: bool = False) -> tuple[list[Predictions], tuple[str, ...]]:
    """Reads predictions.csv back.

    Args:
      path: a file that `write` wrote.
      multi_label: whether an example may have several diagnoses, which the file does not say.

    Returns:
      The predictions, one for each arm, split and seed in the order in which they first appear; and the classes.

    Raises:
      UserError: the file is not one that `write` writes; names the line.
    """
    path = pathlib.Path(path)
    groups: dict[tuple[str, str, int | None], list[tuple[str, np.ndarray, list[float]]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        several = header[-1:] == ["seed"]
        named = header[4 : len(header) - several]
        if header[:4] != _COLUMNS or not named or not all(name.startswith("prob_") for name in named):
            raise UserError(f"{path}:1: the columns are {header}; they must be arm, split, id, label, prob_<class>...")
        classes = tuple(name.removeprefix("prob_") for name in named)
        for row in reader:
            try:
                arm, split, example, text = row[:4]
                numbers = [float(value) for value in row[4 : 4 + len(classes)]]
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} columns where the header has {len(header)}")
                label = _multi_hot(text, classes) if multi_label else _class_index(text, classes)
                seed = int(row[-1]) if several else None
            except ValueError as error:
                raise UserError(f"{path}:{reader.line_num}: {error}") from None
            groups.setdefault((arm, split, seed), []).append((example, label, numbers))
    frames = []
    for (arm, split, seed), members in groups.items():
        ids, labels, probabilities = zip(*members, strict=True)
        probability = np.array(probabilities, np.float32)
        frames.append(Predictions(arm, split, np.array(ids), np.stack(labels), probability, seed))
    return frames, classes


def _label_text(label: np.ndarray, classes: Sequence[str]) -> str:
    if label.ndim == 0:
        return classes[int(label)] if label >= 0 else ""
    marks = {0.0: None, 1.0: ""}
    found = ((marks.get(float(value), "?"), name) for value, name in zip(label, classes, strict=True))
    return "|".join(mark + name for mark, name in found if mark is not None)


def _class_index(text: str, classes: Sequence[str]) -> np.ndarray:
    return np.asarray(_index(text, classes) if text else -1, np.int32)


def _multi_hot(text: str, classes: Sequence[str]) -> np.ndarray:
    label = np.zeros(len(classes), np.float32)
    for part in text.split("|") if text else []:
        name = part.removeprefix("?")
        label[_index(name, classes)] = 1.0 if part == name else np.nan
    return label


def _index(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise ValueError(f"the label is {name!r}{nearest(name, classes)}")
    return classes.index(name)
