"""One domain's examples from what a config names: a manifest, an npz, a TFDS data set, the phantom, or a function of your own.

`check` answers at once, `load` reads everything; both refuse, with one `UserError`, what could not be trained on. A function of
your own is `function(spec, *, image_size, channels, resize) -> Examples`, which splits by itself. Imports no JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medtl import plugins as specs
from medtl.data import cache as caches
from medtl.data import images, manifest, npz, phantom, splits, tfds
from medtl.data import table as tables
from medtl.errors import UserError, nearest
from medtl.examples import Examples, is_group

KINDS = ("manifest", "npz", "tfds", "phantom")

__all__ = ["KINDS", "check", "check_domains", "load"]


def check(spec: Any, *, key: str, require_label: bool = True, require_train: bool = True) -> None:
    """Finds the mistakes that can be found without decoding images: fields, files, columns, labels, splits.

    Args:
      spec: a `medtl.config.dataset`.
      key: its config key, e.g. "config.data.target".
      require_label: as in `load`.
      require_train: as in `load`.

    Raises:
      UserError: with the config key, or the file, line and column.
    """
    for name, least in (("size", 0), ("train_size", 0), ("split_seed", 0)):
        if getattr(spec, name) < least:
            raise UserError(f"{key}.{name} is {getattr(spec, name)}; it must be {least} or more")
    if spec.kind == "tfds":
        tfds.find(spec.path, spec.name, key=key)
    elif spec.kind == "phantom":
        if spec.scanner not in phantom.SCANNERS:
            raise UserError(
                f"{key}.scanner is {spec.scanner!r}{nearest(spec.scanner, phantom.SCANNERS)}"
            )
        if not spec.size:
            raise UserError(f"{key}.size is 0; kind 'phantom' needs the number of images to draw")
        splits.check_fractions(spec.split, key, require_train)
    elif spec.kind in KINDS:
        _table(
            spec, key=key, require_label=require_label, require_train=require_train, image_size=0
        )
    else:
        _own(spec, key)


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
) -> Examples:
    """Reads, splits, checks and decodes one domain.

    Args:
      spec: a `medtl.config.dataset`.
      image_size: height and width of the images.
      channels: 1 (grey) or 3 (RGB).
      resize: "squash" | "crop" | "pad"; see `images.decode`.
      cache: "memory" | "disk" | "stream" | "auto"; see `cache.load`.
      cache_dir: a folder; empty: ~/.cache/medtl.
      key: the spec's config key, e.g. "config.data.target".
      require_label: False for examples to be scored: labels and splits are not looked at, every label is -1 and every split
        "test".
      require_train: False where nothing is trained: a set without a train split is taken.

    Returns:
      Examples whose image is uint8[N, image_size, image_size, channels] or an `ImageSource` of it.

    Raises:
      UserError: for any mistake in the data, with file, line and column.
    """
    for name, value, choices in (("resize", resize, images.RESIZE), ("cache", cache, caches.KINDS)):
        if value not in choices:
            raise UserError(f"config.data.{name} is {value!r}{nearest(value, choices)}")
    if channels not in (1, 3):
        raise UserError(f"config.data.channels is {channels}; it can be 1 (grey) or 3 (RGB)")
    if image_size < 1:
        raise UserError(f"config.data.image_size is {image_size}; it must be 1 or more")
    if spec.kind in ("phantom", "tfds"):
        check(spec, key=key, require_label=require_label, require_train=require_train)
    if spec.kind not in KINDS:
        return _from_own(
            spec,
            key,
            require_label,
            require_train,
            image_size=image_size,
            channels=channels,
            resize=resize,
        )
    table = _table(
        spec,
        key=key,
        require_label=require_label,
        require_train=require_train,
        image_size=image_size,
    )
    image, contents = caches.load(
        table, size=image_size, channels=channels, resize=resize, cache=cache, cache_dir=cache_dir
    )
    return tables.examples(table, image, contents)


def check_domains(source: Examples | None, target: Examples, *, all_held_out: bool = False) -> None:
    """Refuses a target whose val or test images were trained on in the source: equal pixels at the working size.

    Args:
      source: its examples; None: there is none.
      target: its examples.
      all_held_out: every target image is held out at some time, as in cross-validation.

    Raises:
      UserError: naming the first five pairs.
    """
    if source is None:
        return
    trained = source.indices("train")
    source_digests = caches.digests(source.image)
    known = {source_digests[i]: i for i in reversed(trained.tolist())}
    target_digests = caches.digests(target.image)
    held_out = np.arange(len(target)) if all_held_out else np.flatnonzero(target.split != "train")
    leaked = [
        (i, known[target_digests[i]]) for i in held_out.tolist() if target_digests[i] in known
    ]
    if leaked:
        pairs = ", ".join(
            f"{str(target.id[i])!r} ({target.split[i]}) = {str(source.id[j])!r}"
            for i, j in leaked[:5]
        )
        raise UserError(
            f"{len(leaked)} of the {len(held_out)} {'' if all_held_out else 'val and test '}images of the target {target.name} are also in train of the "
            f"source {source.name}: {pairs}{' ...' if len(leaked) > 5 else ''}; leave them out of one of the two"
        )


def _table(
    spec: Any, *, key: str, require_label: bool, require_train: bool, image_size: int
) -> tables.Table:
    """The examples with their split, checked; image_size 0 leaves an npz's images unread."""
    multi_label = spec.multi_label
    if spec.kind == "manifest":
        table = manifest.read(
            spec.path,
            label=spec.label,
            multi_label=multi_label,
            require_label=require_label,
            key=key,
        )
    elif spec.kind == "tfds":
        table = tfds.read(
            spec.path,
            spec.name,
            label=spec.label,
            multi_label=multi_label,
            require_label=require_label,
            key=key,
        )
    elif spec.kind == "npz":
        with_images = image_size > 0 or not require_label
        table = npz.read(
            spec.path,
            multi_label=multi_label,
            require_label=require_label,
            key=key,
            images=with_images,
        )
    else:
        table = phantom.draw(
            spec.size, scanner=spec.scanner, seed=spec.split_seed, image_size=image_size
        )
    return splits.complete(
        table,
        fractions=spec.split,
        seed=spec.split_seed,
        train_size=spec.train_size,
        key=key,
        require_label=require_label,
        require_train=require_train,
    )


def _own(spec: Any, key: str) -> Any:
    """The user's function with its options."""
    if ":" not in spec.kind:
        known = nearest(spec.kind, (*KINDS, "package.module:function"))
        raise UserError(f"{key}.kind is {spec.kind!r}{known}")
    return specs.resolve(spec.kind, "", key=f"{key}.kind")


def _from_own(
    spec: Any, key: str, require_label: bool, require_train: bool, **working: Any
) -> Examples:
    """Calls the user's function and holds what it returns to the same rules as a reader of ours."""
    function, args, kwargs = _own(spec, key)
    found = function(spec, *args, **kwargs, **working)
    if not isinstance(found, Examples):
        raise UserError(
            f"{key}.kind: {spec.kind} returned {type(found).__name__}; it must return medtl.base.Examples"
        )
    n = len(found)
    for name in ("image", "label", "split", "weight"):
        if len(getattr(found, name)) != n:
            raise UserError(
                f"{key}.kind: {spec.kind} returned {n} ids but {len(getattr(found, name))} of `{name}`"
            )
    for name, values in found.groups.items():
        if not is_group(name):
            raise UserError(
                f"{key}.kind: {spec.kind} returned a group {name!r}; it must be site, subgroup or subgroup_<name>"
            )
        if len(values) != n:
            raise UserError(
                f"{key}.kind: {spec.kind} returned {n} ids but {len(values)} of the group {name!r}"
            )
    shape = (working["image_size"], working["image_size"], working["channels"])
    first = np.asarray(found.image[0]) if n else np.zeros(shape, np.uint8)
    if first.shape != shape or first.dtype != np.uint8:
        raise UserError(
            f"{key}.kind: {spec.kind} returned images of {first.dtype}{list(first.shape)}; they must be uint8{list(shape)}"
        )
    table = tables.Table(
        name=found.name,
        origin=f"{key}.kind: {spec.kind}",
        id=found.id,
        label=found.label,
        classes=found.classes,
        split=found.split,
        patient=found.patient,
        weight=found.weight,
        place=np.arange(n),
        place_word="row",
        images=np.zeros((n, 0, 0), np.uint8),
    )
    splits.complete(
        table,
        fractions=spec.split,
        seed=spec.split_seed,
        train_size=0,
        key=key,
        require_label=require_label,
        require_train=require_train,
    )
    return found
