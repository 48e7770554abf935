"""Evaluation in NumPy: metrics, predictions.csv, the summary over seeds and the table. Imports no JAX."""

from medtl.evaluation.summary import summarize, to_json

__all__ = ["summarize", "to_json"]
