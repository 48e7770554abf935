"""What the numbers of a run depend on, and that a run is not gone on with on other data or weights."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import medtl
from medtl.base import UserError


def versions() -> dict[str, str]:
    """Of Python, medtl, and what the numbers depend on; and the device."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn")
    found = {name: metadata.version(name) for name in packages}
    device = jax.local_devices()[0]
    return {
        "python": platform.python_version(),
        "medtl": medtl.__version__,
        **found,
        "device": f"{jax.local_device_count()} x {device.device_kind} ({device.platform})",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
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
            raise UserError(f"{words} changed since {folder} was trained; put them back, or give another --workdir")
