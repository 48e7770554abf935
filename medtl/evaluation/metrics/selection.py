"""The criterion that ranks checkpoints and settings: defined on the examples it is taken on.

A metric over all classes is undefined where an example of one is missing, and then no state would
be better than another. What replaces it depends on the labels alone, so all states of a training
stage, and all settings, are ranked by one thing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from medtl.evaluation.metrics.names import NAMES, rank
from medtl.evaluation.metrics.point import compute
from medtl.evaluation.metrics.user import Metric
from medtl.examples import class_counts, is_quantity

_TIE = 1e-9


@dataclasses.dataclass(frozen=True)
class Criterion:
    """What models are ranked by.

    Attributes:
      metric: its name.
      present_only: whether means over the classes leave out those that have no example.
      note: why it is not the metric that was asked for, in words; empty where it is.
    """

    metric: str
    present_only: bool = False
    note: str = ""

    def score(
        self,
        label: np.ndarray,
        probability: np.ndarray,
        *,
        classes: Sequence[str],
        positive: str = "",
        extra: Mapping[str, Metric] | None = None,
    ) -> float:
        """Return the score, higher is better; NaN where the predictions leave it undefined.

        A small val ranks many states equally, often at an AUROC of 1: of equals the one of the
        lower loss is better. For that the score is less than the metric, by less than 1e-9.

        The arguments are those of `metrics.compute`.
        """
        values = compute(
            label,
            probability,
            classes=classes,
            positive=positive,
            extra=extra,
            present_only=self.present_only,
        )
        loss = values[_fallback(label)]
        tie = 0.0 if math.isnan(loss) or self.metric == _fallback(label) else loss / (1 + loss)
        return rank(self.metric, values[self.metric]) - _TIE * tie


def criterion(
    metric: str,
    label: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str = "",
    extra: Mapping[str, Metric] | None = None,
) -> Criterion:
    """Choose what ranks models on examples with these labels.

    It is the metric itself where it is defined; else the metric over the classes present; else the
    loss. A metric is defined if it is for good or for random predictions: what a model predicts is
    not known yet.

    Args:
      metric: one of `NAMES` or of `extra`.
      label: int[N], -1 where unknown; or float[N, K], see `metrics.compute`.
      classes: the K names.
      positive: the positive one of two classes.
      extra: the user's metrics.

    Returns:
      The criterion; the loss is undefined, too, where no example has a label.

    >>> criterion("auroc", np.array([0, 1, 0]), classes=("a", "b", "c")).note
    "no 'c'; checkpoints and settings are ranked by auroc over the other classes"
    >>> criterion("auroc", np.array([0, 0]), classes=("a", "b")).metric
    'loss'
    """
    label = np.asarray(label)
    probes = _probes(label, len(classes))

    def is_defined(tried: Criterion) -> bool:
        scores = (
            tried.score(label, p, classes=classes, positive=positive, extra=extra) for p in probes
        )
        return any(not math.isnan(score) for score in scores)

    if is_defined(Criterion(metric)):
        return Criterion(metric)
    if is_quantity(label):
        return Criterion("mae", note=f"no defined {metric}; the mae ranks checkpoints and settings")
    absent = [name for name, n in class_counts(label, classes).items() if not n]
    if len(absent) == len(classes):
        return Criterion("loss", note="no label; the last checkpoint is taken")
    reason = "no " + " and no ".join(map(repr, absent)) if absent else f"no defined {metric}"
    ranked = f"{reason}; checkpoints and settings are ranked by"
    over_present = Criterion(
        metric, present_only=True, note=f"{ranked} {metric} over the other classes"
    )
    if metric in NAMES and absent and len(classes) > 2 and is_defined(over_present):
        return over_present
    return Criterion("loss", note=f"{ranked} the loss, as {metric} is undefined")


def _fallback(label: np.ndarray) -> str:
    """Return the metric that is defined wherever an example has a label."""
    return "mae" if is_quantity(label) else "loss"


def _probes(label: np.ndarray, k: int) -> list[np.ndarray]:
    """Return random probabilities float64[N, K], and some that are nearly right."""
    noise = np.random.default_rng(0).dirichlet(np.ones(k), len(label))
    if is_quantity(label):
        return [np.random.default_rng(0).normal(size=(len(label), 1))]
    if label.ndim == 2:
        return [noise, 0.1 * noise + 0.9 * np.nan_to_num(label)]
    return [noise, 0.1 * noise + 0.9 * (label[:, None] == np.arange(k))]
