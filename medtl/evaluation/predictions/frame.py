"""The predictions of one model on one split, and probabilities from logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from medtl.examples import known

TRUE, PREDICTED = "y_true", "prediction"  # the columns of a quantity
MODEL = ("seed", "repeat", "fold", "size")  # the columns that tell an arm's models apart
PROB = "prob_"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of one model on one split.

    Attributes:
      arm, split: their names.
      id: str[N], unique.
      label: int[N], an index into the classes, -1 where unknown; or float[N, K] of 0, 1 or NaN
        (unknown); or float[N], a quantity, NaN where unknown.
      probability: float[N, K]; of a quantity float[N, 1], the predicted numbers.
      seed: of the run; None where unknown.
      repeat, fold: of the cross-validation; None where there is none.
      size: the number of target labels the model was trained on; None where unknown.
      patient: str[N]; None where patients are unknown.
      groups: "site", "subgroup" or "subgroup_<name>" -> str[N], "" where unknown.
    """

    arm: str
    split: str
    id: np.ndarray
    label: np.ndarray
    probability: np.ndarray
    seed: int | None = None
    repeat: int | None = None
    fold: int | None = None
    size: int | None = None
    patient: np.ndarray | None = None
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> tuple[int | None, int | None, int | None, int | None]:
        """(seed, repeat, fold, size), which tell the arm's models apart."""
        return self.seed, self.repeat, self.fold, self.size

    @property
    def where(self) -> str:
        """Split and model in words, such as "test, seed 0, fold 3"."""
        parts = zip(MODEL, self.model, strict=True)
        return ", ".join([self.split, *(f"{name} {n}" for name, n in parts if n is not None)])

    @property
    def labelled(self) -> np.ndarray:
        """bool[N], whether a label of the example is known."""
        return known(self.label)

    @property
    def without_patient(self) -> np.ndarray:
        """bool[N], whether the patient is unknown, so that the example counts as its own."""
        if self.patient is None:
            return np.ones(len(self.id), bool)
        return self.patient == alone(self.id)

    def take(self, rows: np.ndarray) -> Predictions:
        """Return the predictions of these rows, int[n]."""
        return dataclasses.replace(
            self,
            id=self.id[rows],
            label=self.label[rows],
            probability=self.probability[rows],
            patient=None if self.patient is None else self.patient[rows],
            groups={name: values[rows] for name, values in self.groups.items()},
        )


def alone(ids: np.ndarray) -> np.ndarray:
    """Return str[N], the patients of examples whose patient is unknown: each its own."""
    return np.strings.add("?", ids)


def probabilities(logits: np.ndarray, *, multi_label: bool) -> np.ndarray:
    """Turn logits f32[N, K] into probabilities float64[N, K].

    Args:
      logits: the model's outputs.
      multi_label: whether an example may have several diagnoses: sigmoid instead of softmax.

    >>> probabilities(np.zeros((1, 2), np.float32), multi_label=False)
    array([[0.5, 0.5]])
    """
    from scipy.special import expit, softmax

    z = logits.astype(np.float64)
    return expit(z) if multi_label else softmax(z, axis=1)


def in_units(outputs: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Turn outputs f32[N, 1] for a standardized quantity into numbers in its units, float64[N, 1].

    Args:
      outputs: the model's.
      scale: mean and standard deviation that the label was standardized by.

    >>> in_units(np.array([[0.0], [2.0]], np.float32), (100.0, 10.0)).tolist()
    [[100.0], [120.0]]
    """
    mean, deviation = scale
    return mean + deviation * outputs.astype(np.float64)
