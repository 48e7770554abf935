"""Mutated files of all families load whole or are refused; the benchmark tries 1,000 of them."""

import importlib
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_no_mutated_file_leaves_a_layer_random(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    counts, wrong = importlib.import_module("mutated_weights").run(90, seed=0)
    assert wrong == []
    assert all(outcomes["refused"] for outcomes in counts.values())
    assert sum(outcomes["same numbers"] for outcomes in counts.values()) > 3
    assert counts["NumPy"]["other numbers"] == 0
