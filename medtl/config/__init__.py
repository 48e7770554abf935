"""The config of an experiment: its fields, their check, and configs of older versions.

`fields` declares every field once; `check` refuses configs that cannot run. Imports no JAX.
"""

from medtl.config.fields import AUTO, arm, dataset, default, stage
from medtl.config.lookup import (
    default_module,
    describe,
    grid,
    is_cross_validated,
    paths,
    plugin_strings,
)
from medtl.config.upgrade import upgrade

__all__ = [
    "AUTO",
    "arm",
    "dataset",
    "default",
    "default_module",
    "describe",
    "grid",
    "is_cross_validated",
    "paths",
    "plugin_strings",
    "stage",
    "upgrade",
]
