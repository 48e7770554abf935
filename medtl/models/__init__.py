"""Backbones: Linen modules from normalized images to a feature map, with torchvision's names.

Importing this package does not import JAX; `backbone` does.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

from medtl import plugins
from medtl.errors import UserError, nearest
from medtl.models.architectures import NAMES, Architecture, parse

__all__ = ["DTYPES", "FUSIONS", "NAMES", "Architecture", "backbone", "parse"]

DTYPES = ("float32", "bfloat16")
FUSIONS = ("concat", "gated", "late")


def backbone(
    text: str,
    *,
    last_layer: str = "",
    dtype: str = "float32",
    axis_name: str | None = None,
    epsilon: float | None = None,
    remat: bool = False,
) -> functools.partial:
    """Return a callable that makes the backbone; it takes Linen's `name` and `parent`.

    The module maps normalized images f32[B, H, W, C] to dtype[B, h, w, D] or dtype[B, D]:
    `module.apply(variables, x, train, mask=None, use_batch_stats=None)`. Its `groups()` gives the
    names of its parameters by layer. A user's own module takes those of the settings below that are
    among its fields; its `last_layer` and `remat` are set only where they differ from the default,
    and options in `text` come first.

    Args:
      text: one of `NAMES` with options, e.g. "resnet50(stride_in='1x1')", or a Linen module of the
        user's own, "file.py:Net(width=8)" or "package.module:Net".
      last_layer: the last layer that is kept, e.g. "layer3"; "": all are.
      dtype: compute dtype, one of `DTYPES`; parameters are float32.
      axis_name: axis of `jax.pmap` over which BatchNorm takes its statistics.
      epsilon: of BatchNorm; Keras-applications ResNets were trained with 1.001e-5. None: the
        architecture's, or 1e-5.
      remat: the backward pass computes the inside of each block again, to save memory.

    Raises:
      UserError: there is no such backbone, or not with these options or settings.

    >>> make = backbone("resnet18", last_layer="layer2")
    >>> list(make().groups())
    ['stem', 'layer1', 'layer2']
    """
    if dtype not in DTYPES:
        raise UserError(
            f"config.model.dtype: {dtype!r} is not a compute dtype{nearest(dtype, DTYPES)}"
        )
    import jax.numpy as jnp

    architecture = parse(text)
    usual = architecture.epsilon if architecture else 1e-5
    settings = {
        "last_layer": last_layer,
        "dtype": jnp.dtype(dtype),
        "axis_name": axis_name,
        "epsilon": usual if epsilon is None else epsilon,
        "remat": remat,
    }
    if architecture:
        architecture.groups(last_layer)  # raises where there is no such layer
        module, name = architecture.module
        factory = getattr(importlib.import_module(module), name)
        fields = {field.name for field in dataclasses.fields(factory)}  # not all have a BatchNorm
        taken = {field: value for field, value in settings.items() if field in fields}
        return functools.partial(factory, **architecture.fields, **taken)
    changed = {"last_layer": last_layer, "remat": remat, "dtype": dtype != "float32"}
    return _own_module(text, settings, [field for field in changed if changed[field]])


def _own_module(text: str, settings: dict[str, Any], changed: list[str]) -> functools.partial:
    """Return the callable that makes a user's own module.

    Args:
      text: the plug-in string.
      settings: field -> value.
      changed: the fields that the user changed, which the module must have.
    """
    from flax import linen as nn

    key = "config.model.name"
    plugin = plugins.resolve(text, __name__, key=key)
    module = plugin.function
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise UserError(f"{key}: {text!r} must be a flax.linen.Module class")
    fields = {field.name for field in dataclasses.fields(module) if field.init}
    for field in changed:
        if field not in fields:
            raise UserError(
                f"config.model.{field}: {plugin.name} in {text!r} has no field {field!r}; "
                f"add one to it, or leave config.model.{field} at its default"
            )
    taken = {
        name: value
        for name, value in settings.items()
        if name in fields and (name in changed or name not in ("last_layer", "remat"))
    }
    plugin(**{**taken, "parent": None})  # one that cannot be made is an error here, at start
    return functools.partial(module, *plugin.args, **{**taken, **plugin.kwargs})
