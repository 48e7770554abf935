"""Checks the examples that a user's function returned. Imports no JAX."""

from __future__ import annotations

from typing import Any

import numpy as np

from medtl.data import table as tables
from medtl.data.values import TASKS
from medtl.errors import UserError
from medtl.examples import RESERVED, Examples, is_group, is_input


def checked(
    examples: Any, origin: str, image_shape: tuple[int, int, int], *, task: str = TASKS[0]
) -> tables.Table:
    """Check names, lengths and shapes, and return the rows as a table without images.

    Args:
      examples: the function's result.
      origin: the config key and the function, for errors.
      image_shape: height, width and channels of the input "image", where there is one.
      task: one of `values.TASKS`; the classes of an ordinal label are in rising order.

    Raises:
      UserError: naming the function and the wrong value.
    """
    if not isinstance(examples, Examples):
        raise UserError(
            f"{origin} returned {type(examples).__name__}; it must return medtl.examples.Examples"
        )
    n = len(examples)
    lengths: dict[str, Any] = {
        "`label`": examples.label,
        "`split`": examples.split,
        "`weight`": examples.weight,
    }
    if examples.patient is not None:
        lengths["`patient`"] = examples.patient
    for name in examples.inputs:
        if not is_input(name):
            raise UserError(
                f"{origin} returned an input {name!r}; a name is an identifier other than "
                f"{', '.join(RESERVED)} and does not begin with 'encoded_'"
            )
    for name in examples.groups:
        if not is_group(name):
            raise UserError(
                f"{origin} returned a group {name!r}; it must be site, subgroup or subgroup_<name>"
            )
    lengths |= {f"the input {name!r}": values for name, values in examples.inputs.items()}
    lengths |= {f"the group {name!r}": values for name, values in examples.groups.items()}
    for name, values in lengths.items():
        if len(values) != n:
            raise UserError(f"{origin} returned {n} ids but {len(values)} of {name}")
    if not examples.inputs:
        raise UserError(f"{origin} returned no inputs; a model needs at least one, such as 'image'")
    if examples.is_quantity != (task == "regression"):
        what = "numbers" if examples.is_quantity else "classes"
        raise UserError(f"{origin} returned {what}, but config.data.task is {task!r}")
    if n:
        _check_inputs(examples, origin, image_shape)
        _check_classes(examples, origin)
    return _table(examples, origin)


def _check_inputs(examples: Examples, origin: str, image_shape: tuple[int, ...]) -> None:
    for name, values in examples.inputs.items():
        row = np.asarray(values[0])
        what = f"{row.dtype}{list(row.shape)}"
        if name == "image" and (row.shape != image_shape or row.dtype != np.uint8):
            raise UserError(
                f"{origin} returned images of {what}; they must be uint8{list(image_shape)}"
            )
        if row.dtype.kind not in "biuf":
            raise UserError(f"{origin} returned the input {name!r} of {what}; it must hold numbers")


def _check_classes(examples: Examples, origin: str) -> None:
    if examples.is_quantity:
        if not np.isfinite(examples.label).all():
            raise UserError(f"{origin} returned a label that is not a finite number")
    elif examples.label.ndim == 1 and examples.label.min() >= 0:
        for c in sorted(set(range(len(examples.classes))) - set(examples.label.tolist())):
            raise UserError(
                f"{origin} returned the class {examples.classes[c]!r}, which no example has; "
                "leave it out of `classes`"
            )


def _table(examples: Examples, origin: str) -> tables.Table:
    n = len(examples)
    return tables.Table(
        name=examples.name,
        origin=origin,
        id=examples.id,
        label=examples.label,
        classes=examples.classes,
        split=examples.split,
        patient=examples.patient,
        weight=examples.weight,
        line_or_row=np.arange(n),
        unit="row",
        images=np.zeros((n, 0, 0), np.uint8),
    )
