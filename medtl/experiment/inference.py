"""What a finished stage is for: its checkpoint loaded, images scored with it, its backbone exported for PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from medtl import data, weights
from medtl.config import dataset
from medtl.data import cache as caches
from medtl.data import loading
from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.examples import Normalization
from medtl.experiment import run_folder
from medtl.models.model import Model
from medtl.training import factory
from medtl.training.checkpoint import Store, nested
from medtl.training.parallel import Parallel, keep_compiled
from medtl.training.step import make_eval_step, run_batches


def predict(
    folder: str | Path,
    *,
    manifest: str | Path,
    checkpoint: str | Path | None = None,
    output: str | Path | None = None,
) -> Path:
    """Scores a manifest, with or without labels, with a stage's checkpoint.

    Args:
      folder: the work folder of the run.
      manifest: CSV with `image_path`.
      checkpoint: the stage's folder; None: the target stage of the first arm and seed.
      output: CSV to write, with the columns of `predictions.csv`; None: `scored.csv` in the
        checkpoint's folder if one is given, else in the work folder.

    Returns:
      The path of what was written.
    """
    path = Path(output) if output else Path(checkpoint or folder) / "scored.csv"
    if not path.parent.is_dir():
        raise UserError(f"--output={path}: there is no folder {path.parent}")
    stored = load_checkpoint(folder, checkpoint)
    c = stored.config
    keep_compiled(caches.place(c.data.cache_dir) / "compiled")
    spec = dataset("manifest", path=str(manifest), label=c.data.target.label)
    examples = data.load(
        spec,
        image_size=c.data.image_size,
        channels=c.data.channels,
        resize=c.data.resize,
        cache=c.data.cache,
        cache_dir=c.data.cache_dir,
        key="--manifest",
        require_label=False,
        require_train=False,
    )
    parallel = Parallel.create("none")
    domain = stored.domain
    step = parallel.evaluate(make_eval_step(stored.model, domain, stored.normalization))
    batches = loading.eval_batches(examples, np.arange(len(examples)), c.evaluation.batch_size)
    logits = run_batches(step, parallel.replicate(stored.variables), batches)
    multi_label = stored.record["multi_label"][domain]
    probability = predictions.probabilities(logits, multi_label=multi_label)
    classes = tuple(stored.record["classes"][domain])
    unknown = np.full(probability.shape, np.nan) if multi_label else np.full(len(examples), -1)
    rows = predictions.Predictions(
        stored.record["arm"], "predict", examples.id, unknown, probability, stored.record["seed"]
    )
    predictions.write(path, [rows], classes)
    print(f"{len(examples)} images scored by {stored.name}: {path}")
    return path


def export(folder: str | Path, path: str | Path, *, checkpoint: str | Path | None = None) -> None:
    """Writes a trained backbone as torchvision-named safetensors, which PyTorch and `config.weights.path` load.

    Args:
      folder: the work folder of the run.
      path: the file to write.
      checkpoint: the stage's folder; None: the target stage of the first arm and seed.
    """
    stored = load_checkpoint(folder, checkpoint)
    weights.export(
        path,
        stored.config.model.name,
        {name: stored.variables[name]["backbone"] for name in ("params", "batch_stats")},
        normalization=stored.normalization,
        stages=stored.config.model.stages,
        stride_in=stored.config.model.stride_in,
        epsilon=stored.record["epsilon"],
        metadata={"medtl.checkpoint": stored.name},
    )


@dataclasses.dataclass(frozen=True)
class Stored:
    """A stage's chosen checkpoint, ready for use."""

    name: str
    record: dict[str, Any]
    config: Any
    model: Model
    variables: dict[str, Any]
    normalization: Normalization

    @property
    def domain(self) -> str:
        return self.record["stage"]


def load_checkpoint(folder: str | Path, checkpoint: str | Path | None = None) -> Stored:
    """The chosen checkpoint of a stage: model, variables and all it says of itself."""
    if checkpoint:
        place = Path(checkpoint)
    else:
        config = run_folder.load_config(folder)
        place = Path(folder) / f"seed_{config.seeds[0]}" / config.arms[0] / "target"
    if not (place / "checkpoints").is_dir():
        crossed = not checkpoint and config.evaluation.folds
        advice = (
            "a cross-validation keeps none: train once more with folds=0 for a model to use"
            if crossed
            else (f"give the folder of a stage, e.g. --checkpoint={folder}/seed_0/transfer/target")
        )
        raise UserError(f"no checkpoint in {place}; {advice}")
    with Store(place) as store:
        step = store.chosen_step()
        record, arrays = store.record(step), store.arrays(step)
    config = ConfigDict(record["config"])
    model = factory.model(
        config,
        {d: tuple(names) for d, names in record["classes"].items()},
        epsilon=record["epsilon"],
    )
    params = factory.overlaid(nested(arrays, "params"), nested(arrays, "ema"))
    variables = {"params": params, "batch_stats": {"backbone": {}, **nested(arrays, "batch_stats")}}
    n = record["normalization"]
    norm = Normalization(n["name"], tuple(n["mean"]), tuple(n["std"]))
    return Stored(f"{place}/checkpoints/{step}", record, config, model, variables, norm)
