"""From the metrics of each seed to means and standard deviations over the seeds, and all of it to JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from medtl.evaluation import metrics

Results = Mapping[Any, Mapping[str, Mapping[str, Mapping[str, Any]]]]


def summarize(results: Results, *, runs: str = "seeds") -> dict[str, Any]:
    """Means and standard deviations over the seeds.

    A mean over seeds of which one is NaN is NaN: the seeds stay comparable, and `undefined` names the seed.

    Args:
      results: seed -> arm -> split -> `Metrics.as_dict()`; every seed has the same arms and splits.
      runs: what the keys of `results` are: "seeds", or "cells" of a cross-validation.

    Returns:
      "arms": arm -> split -> the mean of each entry, `confusion` included; of one seed its very entries.
      "std": arm -> split -> metric -> standard deviation (n - 1 in the denominator), where there are several seeds.
      "seeds" (or "cells"): `results`, with strings as keys.

    Raises:
      ValueError: there is no seed, or the seeds differ in their arms or splits.
    """
    seeds = list(results)
    if not seeds:
        raise ValueError("summarize: there is no seed")
    layout = {arm: sorted(splits) for arm, splits in results[seeds[0]].items()}
    for seed in seeds[1:]:
        found = {arm: sorted(splits) for arm, splits in results[seed].items()}
        if found != layout:
            raise ValueError(f"summarize: seed {seed} has {found}; seed {seeds[0]} has {layout}")
    first = results[seeds[0]]
    cells = {
        arm: {split: {s: results[s][arm][split] for s in seeds} for split in first[arm]}
        for arm in first
    }
    summary: dict[str, Any] = {"arms": _each_cell(cells, _mean)}
    if len(seeds) > 1:
        summary["std"] = _each_cell(cells, _std)
    summary[runs] = {str(seed): results[seed] for seed in seeds}
    return summary


def to_json(value: Any) -> str:
    """JSON that every parser reads, indented, keys in their order, of what `plain` makes of the value.

    Raises:
      TypeError: JSON has nothing for a value.
    """
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value as JSON has it.

    NaN becomes null (JSON has none; the reason stands under "undefined" beside it) and an infinity the string
    "Infinity" or "-Infinity". Tuples, sets, NumPy scalars and arrays become what they hold, keys become strings; what is
    none of these stays as it is.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(v) for v in value)
    return value


def _each_cell(cells: Mapping, reduce) -> dict[str, dict[str, Any]]:
    return {
        arm: {split: reduce(by_seed) for split, by_seed in splits.items()}
        for arm, splits in cells.items()
    }


def _mean(by_seed: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    entries = list(by_seed.values())
    if len(entries) == 1:
        return dict(entries[0])
    mean: dict[str, Any] = {
        name: float(np.mean([entry[name] for entry in entries])) for name in ("n", *metrics.NAMES)
    }
    mean["n"] = int(mean["n"]) if mean["n"].is_integer() else mean["n"]
    mean["confusion"] = np.mean([entry["confusion"] for entry in entries], axis=0).tolist()
    undefined: dict[str, str] = {}
    for seed, entry in by_seed.items():
        for name, reason in entry.get("undefined", {}).items():
            undefined.setdefault(name, f"{seed if ' ' in str(seed) else f'seed {seed}'}: {reason}")
    return mean | ({"undefined": undefined} if undefined else {})


def _std(by_seed: Mapping[Any, Mapping[str, Any]]) -> dict[str, float]:
    return {
        name: float(np.std([entry[name] for entry in by_seed.values()], ddof=1))
        for name in metrics.NAMES
    }
