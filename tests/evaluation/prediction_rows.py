"""Predictions for tests: rows of three classes with awkward names."""

import numpy as np

from medtl.evaluation.predictions import Predictions

CLASSES = ('covid, "mild"', "non_covid", "naïve\nline 漢字")


def frame(
    arm="transfer", split="val", seed=None, n=6, ids=None, label=None, dtype=np.float64, **more
):
    """Rows of probabilities that sum to 1, of every magnitude down to the subnormal."""
    rng = np.random.default_rng(n)
    ids = np.array([f"image{i}.png" for i in range(n)] if ids is None else ids)
    label = rng.integers(-1, 3, n).astype(np.int32) if label is None else label
    small = 10.0 ** rng.uniform(-45, -0.5, (len(ids), 2))
    probability = np.concatenate([small, 1 - small.sum(axis=1, keepdims=True)], axis=1).astype(
        dtype
    )
    return Predictions(arm, split, ids, label, probability, seed, **more)


def four(arm="a", split="test", ids="wxyz", **more):
    """Rows of four examples of two classes."""
    return frame(arm, split, n=4, ids=list(ids), label=np.array([0, 1, 0, 1]), **more)
