"""An arm's most confident mistakes, with their images and Grad-CAM maps, kept as `errors.json`.

They are found after the predictions are on disk. A map that fails is a note, not an error.
"""

from __future__ import annotations

import numpy as np

from medtl import files
from medtl.evaluation import operating, to_json
from medtl.evaluation.analysis import positive_class
from medtl.evaluation.mistakes import confident
from medtl.experiment.arm import Arm, Outcome
from medtl.experiment.results import ERRORS
from medtl.models import saliency

MOST = 6  # in each split
SIDE = 160  # pixels of a thumbnail


def are_due(arm: Arm, outcome: Outcome) -> bool:
    """Return whether an arm's mistakes are shown: the first arm's with the first seed.

    A cross-validation shows those of its first repeat, a learning curve those of the model that was
    trained on all labels.
    """
    config, split = arm.config, arm.split
    is_first = arm.name == config.arms[0] and arm.seed == config.seeds[0]
    is_shown = is_first and not split.repeat and split.size is None
    is_shown &= config.evaluation.mistakes != "none"
    is_new = bool(outcome.variables) and not (arm.folder / ERRORS).exists()
    has_image = "image" in arm.examples["target"].inputs
    target = arm.examples["target"]
    return is_shown and is_new and has_image and not (target.multi_label or target.is_quantity)


def write(arm: Arm, outcome: Outcome) -> None:
    """Write the most confident mistakes of one arm with their pictures."""
    target = arm.examples["target"]
    own = [p for p in outcome.predictions if p.arm == arm.name]
    last = own[-1]  # test where there is one
    section = arm.config.evaluation
    positive = positive_class(section.positive, target.classes)
    val = next((p for p in own if p.split == "val" and p is not last), None)
    mistakes = confident(
        last,
        target.classes,
        most=MOST,
        positive=positive,
        threshold=operating.choose(val, section.threshold, positive),
    )
    if mistakes and section.mistakes == "pictures":
        try:
            _add_pictures(arm, outcome, mistakes)
        except Exception as error:
            text = " ".join(str(error).split())
            print(f"Note: the report shows no Grad-CAM maps: {type(error).__name__}: {text[:200]}")
            mistakes = [{k: v for k, v in m.items() if k != "saliency"} for m in mistakes]
    files.write_text(arm.folder / ERRORS, to_json(mistakes))


def _add_pictures(arm: Arm, outcome: Outcome, mistakes: list[dict]) -> None:
    target = arm.examples["target"]
    row_of = {name: row for row, name in enumerate(target.id)}
    rows = [row_of[mistake["id"]] for mistake in mistakes]
    images = [np.asarray(target.image[row]) for row in rows]
    for mistake, image in zip(mistakes, images, strict=True):
        mistake["image"] = saliency.png_data_uri(image, max_side=SIDE)
    # Always the same number of examples, so that one compiled program serves every split.
    filled = rows + rows[:1] * (MOST - len(rows))
    inputs = {
        name: np.stack([np.asarray(values[row]) for row in filled])
        for name, values in target.inputs.items()
    }
    classes = np.zeros(MOST, np.int64)
    classes[: len(mistakes)] = [target.classes.index(m["predicted"]) for m in mistakes]
    maps = arm.experiment.evaluator.grad_cam(outcome.variables, inputs, classes)
    for mistake, image, heat in zip(mistakes, images, maps, strict=False):
        overlay = saliency.overlay(image, heat)
        mistake["saliency"] = saliency.png_data_uri(overlay, max_side=SIDE)
        mistake["method"] = "Grad-CAM"
