"""The features of a frozen backbone on disk, named by content: computed once for all runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medtl import plugins
from medtl.data import arrays, cache
from medtl.examples import Examples, Normalization
from medtl.weights import Pretrained


def path(config: Any, examples: Examples, loaded: Pretrained, normalization: Normalization) -> Path:
    """Return the file's path, which depends on everything that the features depend on.

    These are the pixels, the weights, the architecture, the normalization, the device and JAX.
    """
    c = config.model
    device = jax.local_devices()[0]
    parts = {
        "weights": [loaded.sha256, loaded.epsilon],
        "model": [
            c.name,
            c.last_layer,
            c.dtype,
            plugins.source_files({"config.model.name": c.name}),
        ],
        "normalization": dataclasses.asdict(normalization),
        "device": [jax.__version__, device.platform, device.device_kind],
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for digest in cache.digests(examples.image):
        key.update(digest)
    return cache.folder(config.data.cache_dir) / "features" / f"{key.hexdigest()}.npy"


def read(path: Path, n: int) -> np.ndarray | None:
    """Return f32[n, D], or None where the file is absent or damaged."""
    values = arrays.read(path, np.float32)
    if values is None or values.ndim != 2 or len(values) != n or not np.isfinite(values).all():
        return None
    return np.array(values)


def keep(path: Path, values: np.ndarray) -> bool:
    """Write features; return False if the folder cannot be written."""
    try:
        arrays.write(path, values.shape, np.float32, [values])
    except OSError:
        return False
    return True
