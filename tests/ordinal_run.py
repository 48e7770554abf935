"""A generated table whose label is one of ordered grades, by a known cumulative-link model."""

import csv

import numpy as np
from tiny_run import changed

from medtl.config import arm, dataset, default, stage

CUTPOINTS = np.array([-2.0, -0.5, 0.8, 2.5])
WEIGHTS = np.array([1.5, -1.0, 0.5])
NAMES = ("none", "mild", "moderate", "severe", "very severe")


def write_grades(path, n=400, *, seed=0, names=("0", "1", "2", "3", "4")):
    """Write three measurements and a grade; the odds are proportional."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    latent = x @ WEIGHTS + rng.logistic(size=n)
    grade = (latent[:, None] > CUTPOINTS).sum(axis=1)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "a", "b", "c", "grade"])
        writer.writerows([f"p{i}", *x[i], names[grade[i]]] for i in range(n))
    return path, x, grade


def ordinal(path, **fields):
    """Return the config of a short run on such a table."""
    c = default()
    c.arm.own = arm("random", source_stage=False, joint=False)
    c.arms = ("own",)
    c.data.task = "ordinal"
    c.data.inputs = ("table",)
    c.data.target = dataset("manifest", path=str(path), label="grade")
    c.data.source = dataset("manifest", path=str(path), label="grade")
    c.model.encoders.table = "linear"
    c.checkpoint.metric = "loss"
    c.stages.target = stage(epochs=40, batch_size=64, learning_rate=3e-2)
    c.augment.flip = False
    c.seeds = (0,)
    c.evaluation.times = 4
    c.evaluation.resamples = 200
    c.parallel = "none"
    return changed(c, **fields)
