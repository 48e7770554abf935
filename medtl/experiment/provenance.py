"""What the numbers of a run depend on, and that a run is not gone on with on other data or weights."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import medtl
from medtl import weights
from medtl.errors import UserError
from medtl.examples import Examples, Normalization


def versions() -> dict[str, str]:
    """Of Python, medtl, and what the numbers depend on; and the device."""
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
    found = {name: metadata.version(name) for name in packages}
    device = jax.local_devices()[0]
    return {
        "python": platform.python_version(),
        "medtl": medtl.__version__,
        **found,
        "device": f"{jax.local_device_count()} x {device.device_kind} ({device.platform})",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def record(
    config: Any,
    examples: Mapping[str, Examples],
    loaded: weights.Pretrained | None,
    normalization: Normalization,
) -> dict[str, Any]:
    """What a stage's checkpoint says of where it comes from; JSON.

    Args:
      config: the experiment's.
      examples: domain -> its examples.
      loaded: the pretrained backbone.
      normalization: of the input.
    """
    return {
        "classes": {d: list(e.classes) for d, e in examples.items()},
        "multi_label": {d: e.multi_label for d, e in examples.items()},
        "fingerprint": {d: e.fingerprint for d, e in examples.items()},
        "split_hash": {d: e.split_hash for d, e in examples.items()},
        "normalization": dataclasses.asdict(normalization),
        "epsilon": loaded.epsilon if loaded else 1e-5,
        "weights": {"path": loaded.path, "sha256": loaded.sha256} if loaded else None,
        "config": config.to_dict(),
        "versions": versions(),
    }


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> None:
    """Refuses to go on from a checkpoint that was trained on other data or weights."""
    what = {
        "classes": "the classes have",
        "split_hash": "the split has",
        "fingerprint": "the images or labels have",
        "multi_label": "the labels have",
        "weights": "the weights have",
    }
    for name, words in what.items():
        old, new = there.get(name), here[name]
        if name == "weights":
            old, new = (w and w["sha256"] for w in (old, new))
        elif isinstance(old, Mapping):
            # Another arm may have needed a domain that none needs now.
            old, new = ({d: side[d] for d in old.keys() & new.keys()} for side in (old, new))
        if old != new:
            raise UserError(
                f"{words} changed since {folder} was trained; put them back, or give another --workdir"
            )
