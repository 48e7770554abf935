"""What the metrics are computed from: labels and predictions, and the settings.

Refuses shapes and values that do not fit each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from medtl.errors import UserError
from medtl.evaluation.checks import check_probability
from medtl.evaluation.metrics.user import Metric
from medtl.examples import is_quantity


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """One model's predictions of one evaluation set.

    Attributes:
      label: int[N], an index into the classes; or float[N, K] of 0, 1 or NaN (unknown) for several
        labels per example; or float[N], a quantity, whose predicted numbers are `probability`.
      probability: float64[N, K].
      patient: int64[N] from 0, the same numbering in all sets and arms.
      threshold: for two classes, the probability from which on the positive class is called; NaN:
        there is none.
      called: bool[N], for two classes, whether the positive class is called; None: by `threshold`.
    """

    label: np.ndarray
    probability: np.ndarray
    patient: np.ndarray
    threshold: float = 0.5
    called: np.ndarray | None = None

    def __post_init__(self) -> None:
        arrays = (self.label, self.probability, self.patient)
        label, probability, patient = (np.asarray(a) for a in arrays)
        n, shape = len(label), list(probability.shape)
        if probability.ndim != 2 or len(probability) != n or patient.shape != (n,):
            raise UserError(
                f"{n} labels, probability {shape} and patient {list(patient.shape)} differ"
            )
        if is_quantity(label):
            if shape[1] != 1:
                raise UserError(
                    f"labels of {shape[1]} classes are int[N]; float[N] is a quantity, of which "
                    f"{[n, 1]} are predicted"
                )
            if not (np.isfinite(label).all() and np.isfinite(probability).all()):
                raise UserError("labels and predictions of a quantity must be finite numbers")
            return
        if label.ndim == 2 and label.shape != probability.shape:
            raise UserError(
                f"label is {list(label.shape)} and probability {shape}; they must be equal"
            )
        if label.ndim == 1 and n and not (label.min() >= 0 and label.max() < shape[1]):
            raise UserError(
                f"label must be 0..{shape[1] - 1}: leave out examples whose label is unknown"
            )
        if n and not (np.issubdtype(patient.dtype, np.integer) and patient.min() >= 0):
            raise UserError("patient must be whole numbers of at least 0")
        check_probability(probability, n, shape[1])


@dataclasses.dataclass(frozen=True)
class Options:
    """The metrics' and the bootstrap's settings.

    Attributes:
      positive: index of the positive class in two-class tasks.
      specificity: at which `sensitivity_at_specificity` is read.
      sensitivity: at which `specificity_at_sensitivity` is read.
      prevalence: of the positive class, for `ppv` and `npv` of two-class tasks; 0: that of the
        evaluation set.
      ordinal: the classes are grades in rising order; adds `kappa_quadratic` and `grade_mae`.
      present_only: macro means leave out the classes that have no example.
      bins: of the ECE, at most; fewer where they would hold less than 10 examples.
      level: of the intervals.
      resamples: of the bootstrap, at most; see `bootstrap.resample`.
      seed: of the bootstrap.
      extra: name -> metric of the user's; see `metrics.from_config`.
    """

    positive: int = 1
    specificity: float = 0.9
    sensitivity: float = 0.9
    prevalence: float = 0.0
    ordinal: bool = False
    present_only: bool = False
    bins: int = 15
    level: float = 0.95
    resamples: int = 2000
    seed: int = 0
    extra: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
