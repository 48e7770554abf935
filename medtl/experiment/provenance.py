"""Refuses to resume a run on other data, weights, settings or plug-in files; records versions."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import medtl
from medtl import config as configs
from medtl import weights
from medtl.errors import UserError
from medtl.examples import Examples, Normalization
from medtl.experiment import run_folder
from medtl.experiment.trials import with_values
from medtl.training import factory, hosts

_IDENTITY = {
    "classes": "the classes have",
    "split_hash": "the split has",
    "fingerprint": "the inputs or labels have",
    "multi_label": "the labels have",
    "weights": "the weights have",
}


@functools.cache
def _versions() -> dict[str, str]:
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "scipy",
        "scikit-learn",
    )
    device = jax.local_devices()[0]
    spread = f" of {hosts.count()} processes" if hosts.count() > 1 else ""
    return {
        "python": platform.python_version(),
        "medtl": medtl.__version__,
        **{name: metadata.version(name) for name in packages},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform}){spread}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, medtl and the libraries behind the numbers, and the device."""
    return dict(_versions())  # a run records them with each checkpoint; reading them takes files


def record(
    config: Any,
    examples: Mapping[str, Examples],
    loaded: weights.Pretrained | None,
    normalization: Normalization,
    plugin_files: Mapping[str, str],
) -> dict[str, Any]:
    """Return what a checkpoint records of its origin, as JSON.

    Args:
      config: the experiment's, with the values of a trial.
      examples: domain -> examples.
      loaded: the pretrained backbone.
      normalization: of the images.
      plugin_files: file or module of a plug-in string -> sha256.
    """
    scales = {d: e.scale for d, e in examples.items() if e.is_quantity}
    return {
        "classes": {d: list(e.classes) for d, e in examples.items()},
        "multi_label": {d: e.multi_label for d, e in examples.items()},
        **({"scale": scales} if scales else {}),
        "fingerprint": {d: e.fingerprint for d, e in examples.items()},
        "split_hash": {d: e.split_hash for d, e in examples.items()},
        "features": {
            d: np.asarray(e.inputs["features"]).shape[1]
            for d, e in examples.items()
            if "features" in e.inputs
        },
        "normalization": dataclasses.asdict(normalization),
        "epsilon": factory.epsilon(config, loaded),
        "weights": {"path": loaded.path, "sha256": loaded.sha256} if loaded else None,
        "plugins": dict(plugin_files),
        "config": config.to_dict(),
        "versions": versions(),
    }


def check_same(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    folder: Path,
    tried: Mapping[str, Any] | None = None,
) -> None:
    """Compare the record of a checkpoint with that of this run.

    Args:
      there: the checkpoint's record.
      here: this run's.
      folder: of the checkpoint, for errors.
      tried: a trial's values by config path, not compared: they follow from the values to try and
        the trial's number, and do not matter to a source stage that trials share.

    Raises:
      UserError: data, weights, plug-in files or settings have changed; names the first.
    """
    advice = "put them back, or give another --workdir"
    for name, words in _IDENTITY.items():
        old, new = there.get(name), here[name]
        if name == "weights":
            old, new = (w and w["sha256"] for w in (old, new))
        elif isinstance(old, Mapping):
            # Another arm may have needed a domain that none needs now.
            old, new = ({d: side[d] for d in old.keys() & new.keys()} for side in (old, new))
        if old != new:
            raise UserError(f"{words} changed since {folder} was trained; {advice}")
    check_files(there, here["plugins"], folder, advice="put it back, or give another --workdir")
    old_config, new_config = (
        with_values(ConfigDict(configs.upgrade(side["config"])), tried or {})
        for side in (there, here)
    )
    if differing := run_folder.differences(old_config, new_config):
        shown = "; ".join(differing[:3])
        raise UserError(f"the settings have changed since {folder} was trained: {shown}; {advice}")


def check_files(
    there: Mapping[str, Any], files: Mapping[str, str], folder: Path, *, advice: str
) -> None:
    """Compare plug-in files with those that the record of a checkpoint names.

    Args:
      there: the checkpoint's record; older versions recorded no files.
      files: file or module of a plug-in string -> sha256.
      folder: of the checkpoint, for errors.
      advice: what the user can do.

    Raises:
      UserError: a file has changed; names the first.
    """
    for path, digest in files.items():
        if there.get("plugins", {}).get(path, digest) != digest:
            raise UserError(f"{path} has changed since {folder} was trained; {advice}")
