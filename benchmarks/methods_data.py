"""The data sets of methods.py as features: computed once, kept in one .npz a domain.

    python benchmarks/methods_data.py --folder=runs/methods

An image gives the pooled output of the frozen trunk of configs/covid_ct.py (ImageNet ResNet-50),
of layer2 and layer3, of layer3 for the flipped images, and of layer3 with BatchNorm statistics of
500 of the domain's train images (AdaBN). A table gives the columns of configs/heart.py as medtl
prepares them, fitted on each centre's train part.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from medtl import cli
from medtl.config import dataset
from medtl.data import cache, loading
from medtl.experiment import domains, experiment
from medtl.experiment.setup import Experiment
from medtl.training import adabn, parallel
from medtl.training.factory import Components

CONFIGS = Path(__file__).parents[1] / "configs"
SHARED = "../shared"
IMAGES = {
    "covid_ct": (224, dataset(path=f"{SHARED}/data/covid_ct/manifest.csv")),
    "sao_paulo": (
        224,
        dataset(path=f"{SHARED}/data/sao_paulo_ct/manifest.csv", split=(1.0, 0.0, 0.0)),
    ),
    **{
        f"lab_{x}": (
            224,
            dataset(path=f"{SHARED}/data/white_blood_cells/lab_{x}.csv", split=(1.0, 0.0, 0.0)),
        )
        for x in "ab"
    },
    "breastmnist": (112, dataset("npz", path=f"{SHARED}/data/breastmnist/breastmnist.npz")),
}
TABLES = {"cleveland": "source", "hungarian": "target"}
UPRIGHT = ("covid_ct", "sao_paulo", "breastmnist")  # others may be turned upside down, too
PLAIN_ONLY = ("sao_paulo", "lab_a")  # of these no method reads more


def main() -> None:
    """Compute what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", nargs="*", default=[*TABLES, *IMAGES])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    parallel.keep_compiled(cache.folder("") / "compiled")
    for name in args.only:
        path = args.folder / f"{name}.npz"
        if path.exists():
            continue
        wall, cpu = time.monotonic(), time.process_time()
        arrays = _of_table(name) if name in TABLES else _of_images(name)
        seconds = time.monotonic() - wall, time.process_time() - cpu
        np.savez(path, seconds=np.array(seconds), **arrays)
        print(f"{path}: {seconds[0]:.0f} s, {seconds[1]:.0f} s of CPU", flush=True)


def _of_table(name: str) -> dict[str, Any]:
    config = cli.load_config_file(str(CONFIGS / "heart.py"))
    opened, _ = experiment.open_experiment(config, Path(), training=False)
    examples = opened.examples[TABLES[name]]
    return {"plain": np.asarray(examples.inputs["table"]), **_about(examples)}


def _of_images(name: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for layer in ("layer3",) if name in PLAIN_ONLY else ("layer3", "layer2"):
        config = cli.load_config_file(str(CONFIGS / "covid_ct.py"))
        size, config.data.target = IMAGES[name]
        config.data.image_size, config.model.last_layer = size, layer
        config.arms, config.evaluation.batch_size, config.evaluation.positive = (
            ("target_only",),
            32,
            "",
        )
        # What several data sets here hold; the report of a run names them.
        config.data.allow = ("conflicting_labels", "duplicate_images", "near_duplicate_images")
        examples = domains.load(config, "target")
        opened = Experiment.create(
            config,
            Path(),
            Components.create(config),
            {"target": examples},
            training=False,
            train_size=1,
        )
        images, about = np.asarray(examples.image[:]), _about(examples)
        made |= about
        made["plain" if layer == "layer3" else "layer2"] = _features(opened, examples, images)
        if layer == "layer3":
            made["adabn"] = _features(opened, examples, images, _adapted(opened, examples))
        if layer == "layer3" and name not in PLAIN_ONLY:
            views = [_features(opened, examples, x) for x in _views(images, name in UPRIGHT)]
            made["views"] = np.stack([made["plain"], *views], axis=1)
    return made


def _views(images: np.ndarray, is_upright: bool) -> list[np.ndarray]:
    """Return the mirrored images; where up and down are alike, all three flips."""
    flipped = images[:, :, ::-1]
    return [flipped] if is_upright else [flipped, images[:, ::-1], images[:, ::-1, ::-1]]


def _adapted(opened: Experiment, examples: Any) -> Any:
    """Return the trunk with BatchNorm statistics of the domain's train images."""
    start = opened.initial(0, opened.model, "", pretrained=True)
    rows = examples.indices("train")
    batches = loading.eval_batches(examples, rows[:: max(1, len(rows) // 500)], 64)
    return adabn.adapted(
        opened.model, start, batches, normalization=opened.normalization, parallel=opened.parallel
    )


def _features(
    opened: Experiment, examples: Any, images: np.ndarray, variables: Any = None
) -> np.ndarray:
    """Return the pooled features f32[N, D]; by the loaded trunk where no variables are given."""
    names = np.arange(len(images)).astype(str)
    inputs = {"image": np.ascontiguousarray(images)}
    viewed = dataclasses.replace(examples, inputs=inputs, id=names)
    if variables is not None:
        rows = np.arange(len(images))
        placed = opened.parallel.place(variables)
        return opened.evaluator.features(placed, "target", viewed, rows, {})
    opened.evaluator._features.clear()
    return opened.evaluator.frozen_features(
        "target", viewed, lambda: opened.initial(0, opened.model, "", pretrained=True)
    )


def _about(examples: Any) -> dict[str, Any]:
    patient = np.arange(len(examples)).astype(str) if examples.patient is None else examples.patient
    return {
        "label": np.asarray(examples.label),
        "classes": np.array(examples.classes),
        "patient": patient,
        "split": examples.split,
    }


if __name__ == "__main__":
    main()
