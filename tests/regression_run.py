"""A table whose label is a number: scikit-learn's diabetes data, written as a CSV file."""

import csv

import numpy as np
from sklearn.datasets import load_diabetes
from tiny_run import changed

from medtl.config import arm, dataset, default, stage


def write_diabetes(path, rows=slice(None)):
    """Write the ten measurements of 442 patients and the progression of their disease."""
    data = load_diabetes()
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(f"x_{n}" for n in data.feature_names), "progression"])
        for i in np.arange(len(data.target))[rows]:
            writer.writerow([f"p{i}", *map(repr, data.data[i].tolist()), data.target[i]])
    return path


def regression(path, **fields):
    """Return the config of a short run of a linear model beside ridge regression."""
    c = default()
    c.arm.linear = arm("random", source_stage=False, joint=False)
    c.arm.ridge = arm(
        "random", source_stage=False, joint=False, estimator="sklearn.linear_model:Ridge(alpha=1.0)"
    )
    c.arms = ("linear", "ridge")
    c.data.task = "regression"
    c.data.inputs = ("table",)
    c.data.target = dataset("manifest", path=str(path), label="progression")
    c.data.source = dataset("manifest", path=str(path), label="progression")
    c.model.encoders.table = "linear"
    c.objective.losses.main.loss = "mean_squared_error_regression"
    c.checkpoint.metric = "mae"
    c.stages.target = stage(epochs=30, batch_size=32, learning_rate=3e-2)
    c.augment.flip = False
    c.seeds = (0,)
    c.evaluation.times = 5
    c.evaluation.resamples = 200
    c.parallel = "none"
    return changed(c, **fields)
