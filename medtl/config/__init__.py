"""Every field of an experiment (`fields`), and the check of a config (`check`). Imports no JAX."""

from medtl.config.fields import arm, dataset, default, stage

__all__ = ["arm", "dataset", "default", "stage"]
