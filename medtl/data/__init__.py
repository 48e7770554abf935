"""One domain's examples, from the data that a config names.

The data is a manifest, an npz, a TFDS data set, the phantom, or the result of a user's
function `function(spec, *, image_size, channels, resize) -> Examples`, which makes the split
itself. `check` finds most mistakes at once, `load` reads everything; both refuse with one
`UserError` what could not be trained on. Imports no JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.data import cache as caches
from medtl.data import clinical, images, kinds, labels, leaks, splits, user
from medtl.data import table as tables
from medtl.data.values import FileRules
from medtl.errors import UserError, nearest
from medtl.examples import Examples

__all__ = ["FileRules", "check", "check_domains", "fractions", "load", "split_seed", "train_labels"]
check_domains = leaks.between
_NO_RULES = FileRules()


def check(
    spec: Any,
    *,
    key: str,
    require_label: bool = True,
    require_train: bool = True,
    rules: FileRules = _NO_RULES,
    inputs: Sequence[str] = ("image",),
) -> None:
    """Find the mistakes that can be found without decoding images: fields, files, labels, splits.

    Args:
      spec: a `medtl.config.dataset`.
      key: its config key, e.g. "config.data.target".
      require_label: as in `load`.
      require_train: as in `load`.
      rules: as in `load`.
      inputs: as in `load`.

    Raises:
      UserError: with the config key, or the file, line and column.
    """
    kind = _kind(spec, key)
    if kind.is_user:
        return
    if kind.check is not None:
        kind.check(spec, key=key)
    else:
        _table(spec, kind, key, require_label, require_train, rules, image_size=0, inputs=inputs)


def train_labels(
    spec: Any,
    *,
    key: str,
    rules: FileRules = _NO_RULES,
    inputs: Sequence[str] = ("image",),
    all_splits: bool = False,
) -> int | None:
    """Return the number of examples to train on, without decoding images.

    Args:
      spec: a `medtl.config.dataset`.
      key: its config key.
      rules: as in `load`.
      inputs: as in `load`.
      all_splits: count those of val and test, too.

    Returns:
      The number; None for a kind that has to be read in full.

    Raises:
      UserError: as `check`.
    """
    kind = _kind(spec, key)
    if kind.is_user or kind.check is not None:
        return None
    table = _table(spec, kind, key, True, True, rules, image_size=0, inputs=inputs)
    return len(table) if all_splits else int(np.sum(table.split == "train"))


def load(
    spec: Any,
    *,
    image_size: int,
    channels: int,
    resize: str,
    cache: str,
    cache_dir: str,
    key: str,
    require_label: bool = True,
    require_train: bool = True,
    rules: FileRules = _NO_RULES,
    all_held_out: bool = False,
    inputs: Sequence[str] = ("image",),
    roles: Mapping[str, str] | None = None,
) -> Examples:
    """Read, split, check and decode one domain.

    Args:
      spec: a `medtl.config.dataset`.
      image_size: height and width of the images.
      channels: 1 (grey) or 3 (RGB).
      resize: "squash" | "crop" | "pad"; see `images.decode`.
      cache: "memory" | "disk" | "stream" | "auto"; see `cache.load`.
      cache_dir: a folder; empty: ~/.cache/medtl.
      key: the spec's config key, e.g. "config.data.target".
      require_label: False for examples to be scored: labels and splits are ignored, every label is
        -1 and every split "test".
      require_train: False where nothing is trained: a data set without a train split is accepted.
      rules: how image files are read, and what the checks accept.
      all_held_out: every example is held out at some time, as in cross-validation.
      inputs: of the model, `config.data.inputs`.
      roles: column -> role for examples to be scored, see `clinical.read`.

    Returns:
      Examples whose image is uint8[N, image_size, image_size, channels] or an `ImageSource` of it.
      The columns of a clinical table are in `columns`; `preprocessing` makes inputs of them.

    Raises:
      UserError: for any mistake in the data, with file, line and column.
    """
    _check_settings(image_size=image_size, channels=channels, resize=resize, cache=cache)
    kind, shape = _kind(spec, key), (image_size, image_size, channels)
    if kind.is_user:
        examples = kind.read(spec, image_size=image_size, channels=channels, resize=resize)
        rows = user.checked(examples, f"{key}.kind: {spec.kind}", shape, task=rules.task)
        rows = _complete(rows, spec, kind, key, require_label, require_train, rules, all_held_out)
        notes = (*examples.notes, *rows.notes)
        if require_label and "image" in examples.inputs:
            notes += leaks.within(
                rows, examples.image, allow=rules.allow, all_held_out=all_held_out
            )
        return dataclasses.replace(examples, notes=notes)
    table = _table(
        spec, kind, key, require_label, require_train, rules,
        image_size=image_size, inputs=inputs,
        all_held_out=all_held_out, roles=roles,
    )  # fmt: skip
    image: Any = None
    contents: list[bytes] = []
    if "image" in table.present or (table.columns is None and not table.inputs):
        shown = table.with_image
        if len(shown):
            image, contents = caches.load(
                shown, size=image_size, channels=channels, resize=resize, cache=cache,
                cache_dir=cache_dir, rules=rules,
            )  # fmt: skip
        if require_label:  # then some row has an image: `clinical` refuses others
            notes = leaks.within(shown, image, allow=rules.allow, all_held_out=all_held_out)
            table = dataclasses.replace(table, notes=(*table.notes, *notes))
        if len(shown) < len(table):
            image, contents = clinical.with_blanks(table, image, contents, shape)
    contents += [clinical.digest(table.columns)] if table.columns else []
    contents += [np.ascontiguousarray(values).tobytes() for values in table.inputs.values()]
    return tables.examples(table, image, contents)


def _check_settings(*, image_size: int, channels: int, resize: str, cache: str) -> None:
    for name, value, choices in (("resize", resize, images.RESIZE), ("cache", cache, caches.KINDS)):
        if value not in choices:
            raise UserError(f"config.data.{name} is {value!r}{nearest(value, choices)}")
    if channels not in (1, 3):
        raise UserError(f"config.data.channels is {channels}; it can be 1 (grey) or 3 (RGB)")
    if image_size < 1:
        raise UserError(f"config.data.image_size is {image_size}; it must be 1 or more")


def fractions(spec: Any, *, key: str = "config.data") -> tuple[float, ...]:
    """Return the fractions of train, val and test that a domain without a split gets.

    Args:
      spec: a `medtl.config.dataset`.
      key: its config key, for errors.

    Raises:
      UserError: there is no such kind, or no such option of it.
    """
    return _kind(spec, key).fractions(spec)


def split_seed(spec: Any, *, key: str = "config.data") -> int:
    """Return the seed of a domain's split, train subset and folds.

    The spec's `split_seed`; for a phantom, plus the option `seed`. Arguments and errors as in
    `fractions`.
    """
    return _kind(spec, key).split_seed(spec)


def _kind(spec: Any, key: str) -> kinds.Kind:
    for name in ("train_size", "split_seed"):
        if getattr(spec, name) < 0:
            raise UserError(f"{key}.{name} is {getattr(spec, name)}; it must be 0 or more")
    return kinds.find(spec.kind, key=f"{key}.kind")


def _table(
    spec: Any,
    kind: kinds.Kind,
    key: str,
    require_label: bool,
    require_train: bool,
    rules: FileRules,
    *,
    image_size: int,
    inputs: Sequence[str],
    roles: Mapping[str, str] | None = None,
    all_held_out: bool = False,
) -> tables.Table:
    """Read the examples; image_size 0 leaves the images unread."""
    unread = [name for name in inputs if name not in (*kind.inputs, clinical.AUTO)]
    if unread:
        raise UserError(
            f"config.data.inputs has {unread[0]!r}, but {key}.kind {spec.kind!r} reads "
            f"{', '.join(kind.inputs)} alone"
        )
    if rules.task == "regression" and not kind.has_task:
        raise UserError(
            f"config.data.task is 'regression', but {key}.kind {spec.kind!r} reads classes; "
            "'manifest' and 'features' read numbers, and so can a function of your own"
        )
    answer: dict[str, Any] = {"require_label": require_label}
    answer |= {"task": rules.task} if kind.has_task else {}
    if "table" in kind.inputs and (tuple(inputs) != ("image",) or spec.columns or roles):
        table = clinical.read(
            spec, key=key, inputs=inputs, roles=roles, allow=rules.allow, **answer
        )
    else:
        table = kind.read(spec, key=key, image_size=image_size, **answer)
    if rules.task == "ordinal" and require_label:
        label, classes = labels.in_order(
            table.label, table.classes, rules.grades, origin=table.origin
        )
        table = dataclasses.replace(table, label=label, classes=classes)
    return _complete(table, spec, kind, key, require_label, require_train, rules, all_held_out)


def _complete(
    table: tables.Table,
    spec: Any,
    kind: kinds.Kind,
    key: str,
    require_label: bool,
    require_train: bool,
    rules: FileRules,
    all_held_out: bool,
) -> tables.Table:
    """Split and check the examples; those of a user's function are split already."""
    return splits.complete(
        table,
        fractions=kind.fractions(spec),
        seed=kind.split_seed(spec),
        train_size=0 if kind.is_user else spec.train_size,
        key=key,
        require_label=require_label,
        require_train=require_train,
        allow=rules.allow,
        all_held_out=all_held_out,
    )
