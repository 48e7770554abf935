"""Metrics of a diagnosis against its label: one engine for training, reports and resamples.

`compute` gives the metrics that training logs, `describe` the entry of metrics.json, and a `Scorer`
all metrics of thousands of resamples. What is undefined is NaN with a reason, never 0.
"""

from medtl.evaluation.metrics.inputs import EvaluationSet, Options
from medtl.evaluation.metrics.names import (
    ALL_NAMES,
    LOWER_IS_BETTER,
    NAMES,
    PROPORTIONS,
    QUANTITY_CRITERIA,
    QUANTITY_NAMES,
    rank,
)
from medtl.evaluation.metrics.point import compute, describe
from medtl.evaluation.metrics.quantities import QuantityScorer, quantity_support
from medtl.evaluation.metrics.scorer import Scorer, support
from medtl.evaluation.metrics.selection import Criterion, criterion
from medtl.evaluation.metrics.thresholds import operating_threshold
from medtl.evaluation.metrics.user import Metric, from_config

__all__ = [
    "ALL_NAMES",
    "LOWER_IS_BETTER",
    "NAMES",
    "PROPORTIONS",
    "QUANTITY_CRITERIA",
    "QUANTITY_NAMES",
    "Criterion",
    "EvaluationSet",
    "Metric",
    "Options",
    "QuantityScorer",
    "Scorer",
    "compute",
    "criterion",
    "describe",
    "from_config",
    "operating_threshold",
    "quantity_support",
    "rank",
    "support",
]
