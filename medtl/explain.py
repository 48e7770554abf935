"""Errors worth a look: an arm's most confident mistakes, with their images and where the model looked (Grad-CAM).

Kept beside what the arm did in a cell, since a cell's checkpoints do not stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medtl import saliency, workdir
from medtl.evaluation import to_json
from medtl.results import ERRORS
from medtl.run import Outcome, Run

PER_CELL = 6
SIDE = 160  # pixels of a thumbnail


def mistakes(run: Run, seed: int, arm: str, outcome: Outcome) -> None:
    """Writes the most confident mistakes of the experiment's first arm and seed, once in the data's own split and in each fold.

    Only the first repeat of a cross-validation, and of a learning curve only the model of all labels, are looked at.
    """
    config, cell = run.config, run.cell
    path = run.arm_folder(seed, arm) / ERRORS
    first = arm == config.arms[0] and seed == config.seeds[0] and not cell.repeat and cell.size is None
    if not first or outcome.variables is None or path.exists() or run.examples["target"].multi_label:
        return
    said = next((p for p in reversed(outcome.said)), None)  # test where there is one
    assert said is not None
    predicted = said.probability.argmax(axis=1)
    confidence = said.probability.max(axis=1)
    wrong = np.flatnonzero((predicted != said.label) & (said.label >= 0))
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:PER_CELL]
    target = run.examples["target"]
    row_of = {name: row for row, name in enumerate(target.id)}
    found: list[dict[str, Any]] = []
    if len(wrong):
        rows = [row_of[said.id[i]] for i in wrong]
        images = np.stack([np.asarray(target.image[row]) for row in rows])
        # Always as many images, so that one compiled program serves every cell.
        padded = np.concatenate([images, np.repeat(images[:1], PER_CELL - len(images), axis=0)])
        asked = np.concatenate([predicted[wrong], np.zeros(PER_CELL - len(wrong), predicted.dtype)])
        heat = np.asarray(run.explain(outcome.variables, padded, asked))
        for i, image, glow in zip(wrong, images, heat, strict=False):
            found.append(
                {
                    "arm": arm,
                    "id": str(said.id[i]),
                    "label": target.classes[said.label[i]],
                    "predicted": target.classes[predicted[i]],
                    "probability": float(confidence[i]),
                    **({"patient": str(said.patient[i])} if said.patient is not None else {}),
                    "image": saliency.png_data_uri(image, max_side=SIDE),
                    "saliency": saliency.png_data_uri(saliency.overlay(image, glow), max_side=SIDE),
                    "method": "Grad-CAM",
                }
            )
    workdir.write_text(path, to_json(found))
