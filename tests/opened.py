"""Experiments that tests open, and what their runs leave."""

import csv

import numpy as np
from tiny_run import tiny

from medtl.experiment import inference
from medtl.experiment.arm import Arm
from medtl.experiment.experiment import open_experiment, train


def arms_of(config, folder):
    """Return the config's first arm with every seed and split, ready to train."""
    experiment, by_seed = open_experiment(config, folder, training=True)
    name = config.arms[0]
    return [Arm(experiment, split, seed, name) for seed in config.seeds for split in by_seed[seed]]


def backbone_file(folder, seed=0):
    """Return the path of a backbone's random weights, as a run exports them."""
    config = tiny(arms=("scratch",), seeds=(seed,))
    config.stages.target.epochs = 0
    train(config, folder / "run")
    inference.export(folder / "run", folder / "backbone.safetensors")
    return str(folder / "backbone.safetensors")


def rows_of(folder):
    """Return the rows of a run's predictions.csv as dicts."""
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def assert_arms_agree(folder, one, other, *, atol):
    """Two arms of a run give every test example the same probabilities."""
    rows, p = rows_of(folder), probabilities_of(folder)
    first, second = (
        {r["id"]: x for r, x in zip(rows, p, strict=True) if (r["arm"], r["split"]) == (a, "test")}
        for a in (one, other)
    )
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], atol=atol)


def probabilities_of(folder):
    """Return the class probabilities f64[n, K] in a run's predictions.csv."""
    rows = rows_of(folder)
    names = [name for name in rows[0] if name.startswith("prob_")]
    return np.array([[float(row[name]) for name in names] for row in rows])
