"""The features of a frozen backbone, kept on disk by content: computed once for all runs, arms, seeds and folds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medtl.data import cache
from medtl.examples import Examples, Normalization
from medtl.weights import Pretrained


def path(config: Any, examples: Examples, loaded: Pretrained, normalization: Normalization) -> Path:
    """Where they are kept, by all that they depend on: pixels, weights, architecture, normalisation, and what computes them."""
    model = {
        name: config.model[name] for name in ("name", "stages", "stride_in", "classifier", "dtype")
    }
    device = jax.local_devices()[0]
    on = [jax.__version__, device.platform, device.device_kind]
    told = [loaded.sha256, loaded.epsilon, model, dataclasses.asdict(normalization), on]
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for digest in cache.digests(examples.image):
        key.update(digest)
    return cache.place(config.data.cache_dir) / "features" / f"{key.hexdigest()}.npy"


def read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """f32[N, D] of this shape, or None where they are not there or damaged."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return (
        found
        if found.shape == shape and found.dtype == np.float32 and np.isfinite(found).all()
        else None
    )


def keep(path: Path, features: np.ndarray) -> bool:
    """Writes them whole or not at all; False without a place to write: they are computed again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        with part.open("wb") as file:
            np.save(file, features)
        os.replace(part, path)
    except OSError:
        return False
    return True
