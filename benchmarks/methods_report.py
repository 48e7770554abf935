"""The numbers of methods.py: AUROC and paired differences with intervals, and ranks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from methods_runs import DataSet, Run, runs_of
from scipy.stats import friedmanchisquare, rankdata, studentized_range

BASE = "target_only"
RESAMPLES = 1000
FEWEST = 10  # images of a class that counts
LEAST = 5  # methods on a data set that counts for the ranks


def report(
    folder: Path, data_sets: Mapping[str, DataSet], about: Mapping[str, str], seeds: Sequence[int]
) -> dict[str, Any]:
    """Return every method's results, and print them."""
    cells: dict[str, dict[str, Any]] = {}
    seconds = np.zeros(2)
    for name, data in data_sets.items():
        runs = runs_of(data, seeds)
        found = {m: folder / name / f"{m}.npz" for m in about}
        predictions = {m: dict(np.load(p)) for m, p in found.items() if p.exists()}
        if BASE not in predictions:  # a part that was not run yet
            continue
        for made in predictions.values():
            seconds += made["seconds"]
        for size in data.sizes:
            rows = [i for i, run in enumerate(runs) if run.size == size]
            labels = len(runs[rows[0]].train)
            cells[f"{name} {labels}"] = _cell(data, runs, rows, predictions)
    for cell, methods in cells.items():
        print(f"\n{cell}")
        for method, values in methods.items():
            low, high = values["difference_interval"]
            print(
                f"  {method:22s} {values['auroc']:.3f}   {values['difference']:+.3f} "
                f"({low:+.3f} to {high:+.3f})"
            )
    with_source = {n for n, data in data_sets.items() if data.source is not None}
    result = {
        "methods": dict(about),
        "cells": cells,
        "ranks": _ranks(cells, with_source),
        "gains": _gains(cells),
        "training_seconds": {"wall": round(seconds[0]), "cpu": round(seconds[1])},
        "seeds": list(seeds),
    }
    _show(result)
    return result


def _cell(
    data: DataSet, runs: Sequence[Run], rows: Sequence[int], predictions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return each method's AUROC on one data set with one number of labels."""
    rng = np.random.default_rng(0)
    label, patient = data.target["label"], data.target["patient"]
    tested = np.unique(np.concatenate([runs[i].test for i in rows]))
    _, number = np.unique(patient[tested], return_inverse=True)
    n = number.max() + 1
    drawn = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    drawn = np.concatenate([np.ones((1, n), int), drawn])  # the first is the data themselves
    weight = np.zeros((len(drawn), len(label)))
    weight[:, tested] = drawn[:, number]
    seeds = sorted({runs[i].seed for i in rows})
    share = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), RESAMPLES)
    share = np.concatenate([np.ones((1, len(seeds)), int), share]) / len(seeds)
    classes = np.flatnonzero(np.bincount(label[tested]) >= FEWEST)

    def log_loss(made: Mapping[str, np.ndarray], i: int) -> float:
        p = made[f"p{i}"][np.arange(len(runs[i].test)), label[runs[i].test]]
        return float(-np.log(np.clip(p, 1e-6, 1)).mean())

    values = {}
    for method, made in predictions.items():
        of_seed = np.zeros((len(drawn), len(seeds)))
        for s, seed in enumerate(seeds):
            of_run = [
                macro_auroc(label[runs[i].test], made[f"p{i}"], weight[:, runs[i].test], classes)
                for i in rows
                if runs[i].seed == seed
            ]
            of_seed[:, s] = np.mean(of_run, axis=0)
        values[method] = of_seed
    return {
        method: {
            **_interval("auroc", "interval", (x * share).sum(1)),
            **_interval("difference", "difference_interval", ((x - values[BASE]) * share).sum(1)),
            "by_seed": x[0].round(4).tolist(),
            "log_loss": round(float(np.mean([log_loss(predictions[method], i) for i in rows])), 4),
        }
        for method, x in values.items()
    }


def macro_auroc(
    label: np.ndarray, p: np.ndarray, weight: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Return f64[B], the mean over classes of the one-vs-rest AUROC under each row of weights.

    Args:
      label: int[n].
      p: float[n, K].
      weight: float[B, n].
      classes: those that count; of two, one stands for both.
    """
    chosen = classes[-1:] if p.shape[1] == 2 else classes
    values = []
    for c in chosen:
        is_positive = label == c
        above = p[is_positive, c][:, None] - p[~is_positive, c][None]
        won = (above > 0) + 0.5 * (above == 0)
        w, v = weight[:, is_positive], weight[:, ~is_positive]
        total = w.sum(1) * v.sum(1)
        wins = np.einsum("bn,bn->b", w @ won, v)
        values.append(np.where(total > 0, wins / np.maximum(total, 1), np.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no class in a resample
        return np.nanmean(values, axis=0)


def _interval(name: str, of_interval: str, values: np.ndarray) -> dict[str, Any]:
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return {
        name: round(float(values[0]), 4),
        of_interval: [round(float(low), 4), round(float(high), 4)],
    }


def _ranks(cells: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Rank the methods on each data set; the interval resamples data sets."""
    used = {c: m for c, m in cells.items() if c.split()[0] in names and len(m) >= LEAST}
    if not used:
        return {}
    complete = [m for m in next(iter(used.values())) if all(m in x for x in used.values())]
    sets = sorted({c.split()[0] for c in used})
    table = np.array(
        [
            np.mean(
                [
                    rankdata([-x[m]["auroc"] for m in complete])
                    for c, x in used.items()
                    if c.split()[0] == name
                ],
                axis=0,
            )
            for name in sets
        ]
    )
    k, n = len(complete), len(sets)
    if n < 3 or k < 3:
        return {}
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    low, high = np.quantile(table[drawn].mean(axis=1), (0.025, 0.975), axis=0)
    critical = studentized_range.ppf(0.95, k, np.inf) / 2**0.5 * (k * (k + 1) / (6 * n)) ** 0.5
    order = np.argsort(table.mean(0))
    return {
        "data_sets": sets,
        "friedman_p": float(friedmanchisquare(*table.T).pvalue),
        "nemenyi_critical_difference": round(float(critical), 2),
        "mean_rank": {
            complete[i]: {
                "rank": round(float(table[:, i].mean()), 2),
                "interval": [round(float(low[i]), 2), round(float(high[i]), 2)],
            }
            for i in order
        },
    }


def _gains(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return each method's mean difference over data sets, with an interval over data sets."""
    gains = {}
    for method in dict.fromkeys(m for cell in cells.values() for m in cell):
        by_set: dict[str, list[float]] = {}
        for c, cell in cells.items():
            if method in cell:
                by_set.setdefault(c.split()[0], []).append(cell[method]["difference"])
        means = np.array([np.mean(v) for v in by_set.values()])
        drawn = np.random.default_rng(0).integers(0, len(means), (RESAMPLES, len(means)))
        low, high = np.quantile(means[drawn].mean(axis=1), (0.025, 0.975))
        gains[method] = {
            "difference": round(float(means.mean()), 4),
            "interval": [round(float(low), 4), round(float(high), 4)],
            "better_cells": sum(
                c[method]["difference_interval"][0] > 0 for c in cells.values() if method in c
            ),
            "worse_cells": sum(
                c[method]["difference_interval"][1] < 0 for c in cells.values() if method in c
            ),
            "cells": sum(method in c for c in cells.values()),
            "data_sets": len(means),
        }
    return gains


def _show(result: Mapping[str, Any]) -> None:
    print("\nmean difference to target_only over data sets; cells better, worse, of")
    order = sorted(result["gains"].items(), key=lambda item: -item[1]["difference"])
    for method, g in order:
        low, high = g["interval"]
        print(
            f"  {method:22s} {g['difference']:+.3f} ({low:+.3f} to {high:+.3f})  "
            f"{g['better_cells']} {g['worse_cells']} of {g['cells']}, {g['data_sets']} data sets"
        )
    if ranks := result["ranks"]:
        p, critical = ranks["friedman_p"], ranks["nemenyi_critical_difference"]
        print(f"\nmean rank; Friedman p = {p:.3g}, critical difference {critical}")
        for method, r in ranks["mean_rank"].items():
            print(f"  {method:22s} {r['rank']:.1f} ({r['interval'][0]} to {r['interval'][1]})")
