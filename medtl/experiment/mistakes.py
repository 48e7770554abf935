"""Errors worth a look: an arm's most confident mistakes, with their images and where the model looked (Grad-CAM).

Kept beside what the arm did in a cell, since a cell's checkpoints do not stay.
"""

from __future__ import annotations

import numpy as np

from medtl import files
from medtl.evaluation import details, to_json
from medtl.experiment.arm import Outcome, Run
from medtl.experiment.results import ERRORS
from medtl.models import saliency

PER_CELL = 6
SIDE = 160  # pixels of a thumbnail


def mistakes(run: Run, seed: int, arm: str, outcome: Outcome) -> None:
    """Writes the most confident mistakes of the experiment's first arm and seed, once in the data's own split and in each fold.

    Only the first repeat of a cross-validation, and of a learning curve only the model of all labels, are looked at.
    """
    config, cell = run.config, run.cell
    path = run.arm_folder(seed, arm) / ERRORS
    first = (
        arm == config.arms[0] and seed == config.seeds[0] and not cell.repeat and cell.size is None
    )
    if (
        not first
        or outcome.variables is None
        or path.exists()
        or run.examples["target"].multi_label
    ):
        return
    target = run.examples["target"]
    found = details.confident_mistakes(
        outcome.said[-1], target.classes, most=PER_CELL
    )  # of test where there is one
    if found:
        row_of = {name: row for row, name in enumerate(target.id)}
        images = np.stack([np.asarray(target.image[row_of[entry["id"]]]) for entry in found])
        # Always as many images, so that one compiled program serves every cell.
        padded = np.concatenate([images, np.repeat(images[:1], PER_CELL - len(images), axis=0)])
        asked = np.zeros(PER_CELL, np.int64)
        asked[: len(found)] = [target.classes.index(entry["predicted"]) for entry in found]
        heat = np.asarray(run.forward.grad_cam(outcome.variables, padded, asked))
        for entry, image, glow in zip(found, images, heat, strict=False):
            entry["image"] = saliency.png_data_uri(image, max_side=SIDE)
            entry["saliency"] = saliency.png_data_uri(saliency.overlay(image, glow), max_side=SIDE)
            entry["method"] = "Grad-CAM"
    files.write_text(path, to_json(found))
