"""Importance weights of the source's examples, from train of both domains of one split.

Refuses images without a pretrained backbone, and weights that are no weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medtl import data, plugins
from medtl.data import source_weights
from medtl.data.source_weights import effective_size
from medtl.errors import UserError
from medtl.examples import Examples

if TYPE_CHECKING:
    from medtl.experiment.setup import Experiment
    from medtl.experiment.splits import Split

_KEY = "config.objective.source_weights"


def plugin(config: Any) -> plugins.Plugin:
    """Resolve `objective.source_weights`."""
    return plugins.resolve(config.objective.source_weights, source_weights.__name__, key=_KEY)


def check(experiment: Experiment) -> None:
    """Refuse weights of images that no pretrained backbone turns into features."""
    if "image" in experiment.inputs and experiment.loaded is None:
        raise UserError(
            f"{_KEY} compares the domains by the features of a pretrained backbone, but "
            "config.weights.path names none"
        )


def weighted(experiment: Experiment, examples: Mapping[str, Examples], split: Split) -> Examples:
    """Return the source's examples; their weights are multiplied by importance weights.

    Those are computed once for each split, from the train parts alone, and the effective sample
    size is printed. The examples outside train keep their weights.

    Args:
      experiment: the opened experiment.
      examples: domain -> examples, the target's with the split.
      split: of the target.

    Raises:
      UserError: the plug-in fails, or returns something else than weights.
    """
    cache, text = experiment.cache.weights, experiment.config.objective.source_weights
    key = (text, tuple(experiment.inputs), split.part.tobytes())
    source = examples["source"]
    if key not in cache:
        rows = source.indices("train")
        made = _made(experiment, examples)
        weight = np.array(source.weight, np.float32, copy=True)
        weight[rows] *= made
        size = effective_size(weight[rows])
        cache[key] = weight, size, len(rows)
        where = f"{split.path.replace('_', ' ').replace('/', ', ')}: " if split.path else ""
        print(f"{where}{_sentence(text, size, size, len(rows))}")
    return dataclasses.replace(source, weight=cache[key][0])


def _made(experiment: Experiment, examples: Mapping[str, Examples]) -> np.ndarray:
    """Return the plug-in's weights of the source's train rows, checked, with the mean 1."""
    weigh = plugin(experiment.config)
    train = {d: e.indices("train") for d, e in examples.items()}
    features = [
        experiment.flat_features(d, examples[d])[train[d]].astype(np.float64)
        for d in ("source", "target")
    ]
    given = {}
    if plugins.accepted(weigh, ("patients",)):
        patients = [
            e.patient[train[d]] for d, e in sorted(examples.items()) if e.patient is not None
        ]
        given["patients"] = tuple(patients) if len(patients) == 2 else None
    rng = np.random.default_rng((data.split_seed(experiment.config.data.source), 5))
    weights = np.asarray(weigh(*features, rng, **given))
    n = len(features[0])
    is_number = weights.dtype.kind in "iuf" and weights.shape == (n,)
    if not is_number or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError(
            f"{_KEY}: {weigh.text!r} returned {weights.dtype}{list(weights.shape)} for {n} source "
            "examples; it must return a finite weight of at least 0 for each, and not only 0"
        )
    return weights / weights.mean()


def notes(experiment: Experiment) -> list[str]:
    """Return sentences for the report: the effective sample size under each weighting."""
    made: dict[tuple, list[tuple[float, int]]] = {}
    for (text, inputs, _), (_, size, n) in experiment.cache.weights.items():
        made.setdefault((text, inputs), []).append((size, n))
    return [
        _sentence(text, min(sizes)[0], max(sizes)[0], sizes[0][1])
        + " They assume that p(diagnosis | input) is the same in both domains."
        for (text, _), sizes in made.items()
    ]


def _sentence(text: str, low: float, high: float, n: int) -> str:
    between = f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"
    few = "; few examples carry the weight" if low < 0.1 * n else ""
    return f"Source weights {text}: effective sample size {between} of {n:,} ({low / n:.0%}){few}."
