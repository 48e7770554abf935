"""Settings that nested selection and sweeps try: values for config paths."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl import config as configs

TRACED_PATHS = {
    "objective.lambda_": "objective.lambda_",
    "stages.target.learning_rate": "learning_rate",
    "stages.target.weight_decay": "weight_decay",
}
"""Config path -> the name in `TrainState.values`: one compiled step serves all values."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting that nested selection tries.

    Attributes:
      name: the name of its folder; empty: the config as it is.
      values: config path -> value.
    """

    name: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def traced(self) -> dict[str, np.float32]:
        """The values that the state carries, by their name there."""
        return {
            name: np.float32(self.values[path])
            for path, name in TRACED_PATHS.items()
            if path in self.values
        }

    @property
    def is_traced(self) -> bool:
        """Whether the state carries all values: no step is compiled for the trial."""
        return self.values.keys() <= TRACED_PATHS.keys()

    @property
    def shares_source(self) -> bool:
        """Whether the source stage is that of the config as it is."""
        return all(p == "objective.lambda_" or p.startswith("stages.target.") for p in self.values)


def trials(section: Any, *, joint: bool) -> list[Trial]:
    """Return every combination of a section's values, such as `config.evaluation.tune`.

    Args:
      section: mirrors config paths; its leaves are the values to try.
      joint: False for an arm without λ, which then makes no trials of its own.
    """
    grid = {p: v for p, v in configs.paths(section).items() if joint or p != "objective.lambda_"}
    return combinations(grid) if grid else []


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """Return a trial for every combination of values; the last path's values change fastest.

    >>> [dict(t.values) for t in combinations({"a": (1, 2), "b": (3,)})]
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [
        Trial(f"trial_{i}", dict(zip(grid, values, strict=True)))
        for i, values in enumerate(itertools.product(*grid.values()))
    ]


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of the config with other values, config path -> value."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        for path, value in values.items():
            section = copy
            *parents, field = path.split(".")
            for parent in parents:
                section = section[parent]
            section[field] = type(section[field])(value)
    return copy
