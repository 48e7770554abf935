"""Clinical data for tests: columns and pixels whose signals add up to the diagnosis."""

import csv

import numpy as np
from PIL import Image
from tiny_run import changed

from medtl.config import arm, dataset, default, stage

WORDS = ("stable", "breathless", "comfortable", "hypoxic")


def write_clinical(folder, n=120, *, seed=0, lacks=0.0, images=True, shift=0.0):
    """Write clinical.csv and its images; each modality holds a third of the signal."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    signal = rng.normal(size=(n, 3))
    label = signal.sum(axis=1) + rng.normal(size=n) * 0.3 > 0
    rows = []
    for i, (one, two, three) in enumerate(signal):
        pixels = np.clip(120 + 30 * one + rng.normal(size=(16, 16)) * 10, 0, 255)
        if images:
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        word = WORDS[1 + 2 * rng.integers(2)] if three > 0 else WORDS[2 * rng.integers(2)]
        row = {
            "image_path": f"{i}.png",
            "crp": f"{two + shift:.4f}",
            "sex": rng.choice(["F", "M"]),
            "notes": f"the patient is {word} since day {i}",
            "diagnosis": "ill" if label[i] else "well",
        }
        gone = rng.random(3) < lacks
        if gone.all():
            gone[rng.integers(3)] = False
        if gone[0]:
            row["image_path"] = ""
        if gone[1]:
            row["crp"] = row["sex"] = ""
        if gone[2]:
            row["notes"] = ""
        if not images:
            del row["image_path"]
        rows.append({"id": f"{folder.name}_{i}", **row})
    path = folder / "clinical.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def clinical(path, source=None, **fields):
    """Return the config of a short run on such a table."""
    c = default()
    c.arm.own = arm("random", source_stage=False, joint=False)
    c.arms = ("own",)
    c.data.image_size = 16
    c.data.inputs = ("table",)
    c.data.target = dataset("manifest", path=str(path))
    c.data.source = dataset("manifest", path=str(source or path))
    c.data.preprocessing.text_features = 128
    c.model.last_layer = "layer1"
    c.model.encoders.table = "linear"
    c.stages.source = stage(epochs=10, batch_size=16, learning_rate=1e-2)
    c.stages.target = stage(epochs=10, batch_size=16, learning_rate=1e-2)
    c.augment.flip = False
    c.seeds = (0,)
    c.evaluation.times = 2
    c.evaluation.resamples = 200
    c.parallel = "none"
    return changed(c, **fields)


def scores(path):
    """Return id -> the probability of "ill" in a table of predictions."""
    with open(path, newline="") as file:
        return {row["id"]: float(row["prob_ill"]) for row in csv.DictReader(file)}
