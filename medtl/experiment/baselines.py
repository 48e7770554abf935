"""Arms whose model is of scikit-learn, fitted on the same inputs, splits and seeds.

It is a classifier, or for a quantity a regressor. Inputs are those of the other arms, preprocessed
alike, flat and side by side; an image gives the features of the frozen backbone. Refuses several
diagnoses an example, and an image without a pretrained backbone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import is_classifier

from medtl import config as configs
from medtl import plugins
from medtl.errors import UserError
from medtl.training import probe

if TYPE_CHECKING:
    from medtl.experiment.arm import Arm


def make(arm: Arm) -> Any:
    """Make an arm's classifier, unfitted; its random state is the seed where the config gives none.

    Raises:
      UserError: it cannot be made, or it is no classifier with probabilities, for a quantity no
        regressor.
    """
    key = f"config.arm.{arm.name}.estimator"
    module = configs.default_module(f"arm.{arm.name}.estimator")
    plugin = plugins.resolve(arm.section.estimator, module, key=key)
    model = plugin()
    if arm.examples["target"].is_quantity:
        if not (hasattr(model, "fit") and hasattr(model, "predict")) or is_classifier(model):
            raise UserError(
                f"{key} is {plugin.text!r}; for config.data.task='regression' it must be a "
                "regressor with fit and predict, such as sklearn.linear_model:Ridge"
            )
    elif not (hasattr(model, "fit") and hasattr(model, "predict_proba")):
        raise UserError(
            f"{key} is {plugin.text!r}; it must be a classifier with fit and predict_proba"
        )
    if arm.experiment.examples["target"].multi_label:
        raise UserError(f"{key} takes one diagnosis an example, but the target has several")
    if "image" in arm.experiment.inputs and arm.experiment.loaded is None:
        raise UserError(
            f"{key} reads images as features of a pretrained backbone, but config.weights.path "
            f"names none; config.arm.{arm.name}.inputs can leave the image out"
        )
    parameters: dict[str, Any] = getattr(model, "get_params", dict)()
    if parameters.get("random_state", 0) is None:
        model.set_params(random_state=arm.seed)
    return model


def fit(arm: Arm) -> Callable[[np.ndarray], np.ndarray]:
    """Fit an arm's model; return the function rows int[n] -> probabilities float64[n, K].

    It learns from train of the target, and of the source too if the arm does.
    """
    model, target = make(arm), arm.examples["target"]
    learned = ["target"]
    if arm.section.joint or arm.section.source_stage:
        learned = ["source", "target"]
    rows = {d: arm.examples[d].indices("train") for d in learned}
    x = np.concatenate([_features(arm, d)[rows[d]] for d in learned])
    y = np.concatenate([_labels(arm, d)[rows[d]] for d in learned])
    weight = np.concatenate([arm.examples[d].weight[rows[d]] for d in learned])
    patient = np.concatenate([_patients(arm, d)[rows[d]] for d in learned])
    with plugins.blame("", key=f"config.arm.{arm.name}.estimator"):
        probe.fit(model, x, y, weight=weight, patient=patient)
    features = _features(arm, "target")

    def probabilities(rows: np.ndarray) -> np.ndarray:
        if target.is_quantity:
            return np.asarray(model.predict(features[rows]), np.float64).reshape(-1, 1)
        values = np.zeros((len(rows), len(target.classes)))
        values[:, model.classes_] = model.predict_proba(features[rows])
        return values

    return probabilities


def _labels(arm: Arm, domain: str) -> np.ndarray:
    """Return the labels as indices into the target's classes; a quantity in its unit."""
    classes = arm.examples["target"].classes
    there = arm.examples[domain].classes
    if there != classes:
        raise UserError(
            f"config.arm.{arm.name}.estimator learns from the source, too, whose classes differ: "
            f"{', '.join(there)}, not {', '.join(classes)}"
        )
    return arm.examples[domain].label


def _patients(arm: Arm, domain: str) -> np.ndarray:
    """Return the patients str[N], "" where unknown; those of two domains differ."""
    examples = arm.examples[domain]
    if examples.patient is None:
        return np.full(len(examples), "")
    known = examples.patient != ""
    return np.where(known, np.char.add(f"{domain} ", examples.patient.astype(str)), "")


def _features(arm: Arm, domain: str) -> np.ndarray:
    """Return the inputs side by side, f32[N, D]."""
    return arm.experiment.flat_features(domain, arm.examples[domain])
