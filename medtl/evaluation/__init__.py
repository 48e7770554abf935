"""Evaluation in NumPy: metrics, predictions.csv, comparison of arms, report. Imports no JAX."""

from medtl.evaluation.summary import plain, summarize, to_json

__all__ = ["plain", "summarize", "to_json"]
