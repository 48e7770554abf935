"""A made-up record of a run, for tests of the report."""

import numpy as np
from analysis_example import ARMS, SHIFT


def record():
    """What a run knows of itself."""
    rng = np.random.default_rng(2)
    training = []
    for arm in ARMS:
        for stage in ("source", "target") if arm == "transfer" else ("target",):
            steps = list(range(10, 2010, 10))
            parts = {f"{stage}/main": _falling(rng, 0.7, 0.25)}
            if arm == "pooled":
                parts |= {"source/main": _falling(rng, 0.7, 0.1), "lambda": [1.0] * 200}
            val = {
                "steps": steps[19::20],
                "auroc": (0.5 + 0.2 * SHIFT[arm] * (1 - np.exp(-np.arange(1, 11) / 3))).tolist(),
            }
            training.append(
                {"arm": arm, "seed": 0, "stage": stage, "steps": steps, "parts": parts, "val": val}
            )
    counts = {
        "train": {"other": 120, "covid": 110},
        "val": {"other": 40, "covid": 35},
        "test": {"other": 289, "covid": 254},
    }
    card = {
        "classes": ["other", "covid"],
        "patients": 216,
        "fingerprint": "9f2c" * 16,
        "splits": counts,
    }
    return {
        "name": "covid_ct",
        "command": (
            "medtl --config=configs/covid_ct.py --config.evaluation.folds=5 "
            "--config.evaluation.repeats=3 --workdir=runs/covid_ct"
        ),
        "config": {
            "name": "covid_ct",
            "seeds": [0],
            "evaluation": {"folds": 5, "repeats": 3},
            "weights": {"path": "resnet50.pth"},
        },
        "versions": {
            "python": "3.13.1",
            "jax": "0.12.0",
            "device": "2 x cpu (cpu)",
            "machine": "x86_64, 2 cores",
        },
        "weights": {
            "path": "weights/resnet50.pth",
            "sha256": "11ad3fa6" * 8,
            "summary": "161 of 161 arrays loaded",
        },
        "seconds": 421.7,
        "data": {
            "source": {"name": "sao_paulo", "synthetic": False, "allowed": [], **card},
            "target": {
                "name": "covid_ct",
                "synthetic": False,
                "allowed": ["weights: head/*"],
                **card,
            },
        },
        "training": training,
    }


def _falling(rng, start, end):
    x = np.linspace(0, 5, 200)
    return (end + (start - end) * np.exp(-x) + rng.normal(size=200) * 0.02).tolist()
