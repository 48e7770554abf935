"""Where checkpoints and settings cannot be ranked by `checkpoint.metric`: found before training.

Imports no JAX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.config import paths
from medtl.evaluation import metrics
from medtl.examples import Examples
from medtl.experiment.splits import Split, where

_SHOWN = 3  # splits that a note names


def notes(
    config: Any,
    examples: Mapping[str, Examples],
    splits: Sequence[Split],
    extra: Mapping[str, metrics.Metric],
) -> list[str]:
    """Return a sentence for each reason why val ranks by something else than `checkpoint.metric`.

    Args:
      config: the experiment's.
      examples: domain -> examples.
      splits: of the target.
      extra: the user's metrics.
    """
    if config.checkpoint.select != "best" and not paths(config.evaluation.tune):
        return []
    # A subset of train labels leaves val as it is.
    parts = {where(s) if s.fold is not None else "target": s.part for s in splits if s.size is None}
    found: dict[str, list[str]] = {}
    for domain, e in examples.items():
        for name, part in (parts if domain == "target" else {domain: e.split}).items():
            rows = np.flatnonzero(part == "val")
            if len(rows) and (note := criterion(config, e, rows, extra).note):
                found.setdefault(note, []).append(name)
    return [f"{_named(names)}: val has {note}." for note, names in found.items()]


def criterion(
    config: Any, examples: Examples, rows: np.ndarray, extra: Mapping[str, metrics.Metric]
) -> metrics.Criterion:
    """Return what ranks models on the rows int[n]; see `metrics.criterion`."""
    return metrics.criterion(
        config.checkpoint.metric,
        examples.label[rows],
        classes=examples.classes,
        positive=config.evaluation.positive,
        extra=extra,
    )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
