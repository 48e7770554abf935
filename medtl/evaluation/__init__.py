"""Evaluation in NumPy: metrics, predictions.csv, the summary over seeds and the table. Imports no JAX."""

from medtl.evaluation.summary import plain, summarize, to_json

__all__ = ["plain", "summarize", "to_json"]
