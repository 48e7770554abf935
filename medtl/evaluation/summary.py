"""Means and standard deviations over the seeds of each seed's metrics, and all of it as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from medtl.evaluation import ensembles

Results = Mapping[Any, Mapping[str, Mapping[str, Mapping[str, Any]]]]


def summarize(results: Results, *, runs: str = "seeds") -> dict[str, Any]:
    """Compute means and standard deviations over the seeds.

    A mean is over the seeds or splits for which the metric is defined, as in `bootstrap.resample`;
    `left_out` names the first of the others. Arms are tested on the same examples, so that they
    lack a class in the same ones.

    Args:
      results: seed -> arm -> split -> entry of `metrics.describe`; every seed has the same arms and
        splits.
      runs: what the keys of `results` are: "seeds", or "splits" of a cross-validation.

    Returns:
      "arms": arm -> split -> the mean of each entry, `confusion` included; of one seed its entries.
      There, "undefined" has the reason of each metric that is NaN for all seeds, "left_out" the
      first seed that is left out, and why, of those that are NaN for some.
      "std": arm -> split -> metric -> standard deviation (n - 1 in the denominator) over the values
      that are not NaN, where there are several seeds; NaN for an ensemble of them, as it is one
      model.
      "seeds" (or "splits"): `results`, with strings as keys.

    Raises:
      ValueError: there is no seed, or the seeds differ in their arms or splits.
    """
    seeds = list(results)
    if not seeds:
        raise ValueError("summarize: there is no seed")
    layout = {arm: sorted(splits) for arm, splits in results[seeds[0]].items()}
    for seed in seeds[1:]:
        other = {arm: sorted(splits) for arm, splits in results[seed].items()}
        if other != layout:
            raise ValueError(f"summarize: seed {seed} has {other}; seed {seeds[0]} has {layout}")

    def reduced(reduce: Callable[[Mapping], dict[str, Any]]) -> dict[str, Any]:
        first = results[seeds[0]]
        return {
            arm: {split: reduce(_models(results, arm, split)) for split in first[arm]}
            for arm in first
        }

    summary: dict[str, Any] = {"arms": reduced(_mean)}
    if len(seeds) > 1:
        summary["std"] = reduced(_std)
    summary[runs] = {str(seed): results[seed] for seed in seeds}
    return summary


def metric_names(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics of an entry of `metrics.describe`."""
    return [name for name in entry if name not in ("n", "confusion", "undefined", "left_out")]


def to_json(value: Any) -> str:
    """Write `plain(value)` as indented JSON that every parser reads, keys in their order.

    Raises:
      TypeError: JSON cannot hold a value.

    >>> print(to_json({"auroc": float("nan")}).strip())
    {
      "auroc": null
    }
    """
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Turn a value into one that JSON can hold.

    NaN becomes null (JSON has none; "undefined" beside it has the reason) and an infinity the
    string "Infinity" or "-Infinity". Tuples, sets, NumPy scalars and arrays become lists and
    numbers, keys become strings; everything else stays as it is.
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


def _models(results: Results, arm: str, split: str) -> dict[Any, Mapping[str, Any]]:
    """Return seed -> entry; an ensemble of the seeds is one model, with the first seed."""
    seeds = list(results)
    entries = [results[seed][arm][split] for seed in seeds]
    return {seeds[i]: entries[i] for i in ensembles.models(arm, entries)}


def _mean(by_seed: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    entries = list(by_seed.values())
    if len(entries) == 1:
        return dict(entries[0])
    names = ("n", *metric_names(entries[0]))
    mean: dict[str, Any] = {name: _mean_of_defined([e[name] for e in entries]) for name in names}
    mean["n"] = int(mean["n"]) if mean["n"].is_integer() else mean["n"]
    if "confusion" in entries[0]:
        mean["confusion"] = np.mean([entry["confusion"] for entry in entries], axis=0).tolist()
    reasons: dict[str, str] = {}
    for seed, entry in by_seed.items():
        for name, reason in entry.get("undefined", {}).items():
            reasons.setdefault(name, f"{seed if ' ' in str(seed) else f'seed {seed}'}: {reason}")
    nowhere = {name for name in reasons if math.isnan(mean.get(name, math.nan))}
    sides = {
        "undefined": {name: reason for name, reason in reasons.items() if name in nowhere},
        "left_out": {name: reason for name, reason in reasons.items() if name not in nowhere},
    }
    return mean | {side: names for side, names in sides.items() if names}


def _std(by_seed: Mapping[Any, Mapping[str, Any]]) -> dict[str, float]:
    entries = list(by_seed.values())
    deviations = {}
    for name in metric_names(entries[0]):
        values = np.array([entry[name] for entry in entries], np.float64)
        values = values[~np.isnan(values)]
        deviations[name] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return deviations


def _mean_of_defined(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
