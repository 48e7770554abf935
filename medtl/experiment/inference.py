"""Use of a finished training stage: load its checkpoint, score examples, export the backbone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from medtl import config as configs
from medtl import data, plugins, weights
from medtl.config import dataset
from medtl.data import cache as caches
from medtl.data import loading
from medtl.data.prepared import OF_CELLS, with_present
from medtl.data.preprocessing import Fitted, Layout, apply
from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.examples import Examples, Normalization
from medtl.experiment import provenance, run_folder, trust
from medtl.models.model import Model
from medtl.training import factory
from medtl.training.checkpoint import Store, handed_on, nested
from medtl.training.evaluator import make_eval_step, run_batches
from medtl.training.initial import overlaid
from medtl.training.parallel import Parallel, keep_compiled
from medtl.training.trainable import ADAPTERS


def predict(
    folder: str | Path,
    *,
    manifest: str | Path,
    checkpoint: str | Path | None = None,
    output: str | Path | None = None,
    accept_code: bool = False,
) -> Path:
    """Score a manifest, with or without labels, with the checkpoint of a training stage.

    Args:
      folder: the work folder of the run.
      manifest: CSV with the columns of the model's inputs, such as `image_path`.
      checkpoint: the stage's folder; None: the target stage of the first arm and seed.
      output: CSV to write, with the columns of `predictions.csv`; None: `scored.csv` in the
        checkpoint's folder if one is given, else in the work folder.
      accept_code: as in `load_checkpoint`.

    Returns:
      The path of the CSV.
    """
    path = Path(output) if output else Path(checkpoint or folder) / "scored.csv"
    if not path.parent.is_dir():
        raise UserError(f"--output={path}: there is no folder {path.parent}")
    stored = load_checkpoint(folder, checkpoint, accept_code=accept_code)
    c = stored.config
    keep_compiled(caches.folder(c.data.cache_dir) / "compiled")
    domain = stored.domain
    examples = _examples(stored, str(manifest))
    parallel = Parallel.create("none")
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
    what = "images" if tuple(c.data.inputs) == ("image",) else "examples"
    print(f"{len(examples)} {what} scored by {stored.name}: {path}")
    return path


def _examples(stored: Stored, manifest: str) -> Examples:
    """Read what is to be scored, preprocessed as the training stage's own domain was.

    Raises:
      UserError: the model has an input that no manifest holds.
    """
    c, made = stored.config, stored.record.get("preprocessing")
    inputs = factory.input_names(c)
    unread = [n for n in inputs if n != "image" and (n not in OF_CELLS or made is None)]
    if unread:
        raise UserError(
            f"--mode=predict reads images and tables, but {stored.name} also needs "
            f"{', '.join(unread)}"
        )
    layout = Layout.from_json(made["layout"]) if made else None
    examples = data.load(
        dataset("manifest", path=manifest, label=c.data.target.label),
        image_size=c.data.image_size,
        channels=c.data.channels,
        resize=c.data.resize,
        cache=c.data.cache,
        cache_dir=c.data.cache_dir,
        key="--manifest",
        require_label=False,
        require_train=False,
        rules=data.FileRules.of(c.data),
        inputs=inputs,
        roles=layout.roles if layout else None,
    )
    if layout is None or made is None:
        return examples
    if lacking := layout.lacking(examples.columns):
        print(f"{manifest} lacks {', '.join(lacking)}: missing there")
    encoded = layout.encode(examples.columns, len(examples))
    fitted = Fitted.from_json(made["fitted"][stored.domain])
    cells = {n: v for n, v in apply(layout, fitted, encoded).items() if n in inputs}
    examples = dataclasses.replace(examples, inputs={**examples.inputs, **cells})
    return with_present(examples, inputs)


def export(folder: str | Path, path: str | Path, *, checkpoint: str | Path | None = None) -> None:
    """Write a trained backbone as safetensors with torchvision's names.

    PyTorch loads it, and `config.weights.path`.

    Args:
      folder: the run folder.
      path: the file to write.
      checkpoint: the stage's folder; None: the target stage of the first arm and seed.

    Raises:
      UserError: there is no such checkpoint, or its model reads no image.
    """
    stored = load_checkpoint(folder, checkpoint)
    if "image" not in factory.input_names(stored.config):
        raise UserError(f"{stored.name} has no image encoder to export")
    weights.export(
        path,
        stored.config.model.name,
        {
            name: stored.variables[name].get("encoders", {}).get("image", {})
            for name in ("params", "batch_stats")
        },
        normalization=stored.normalization,
        last_layer=stored.config.model.last_layer,
        epsilon=stored.record["epsilon"],
        metadata={"medtl.checkpoint": stored.name},
    )


@dataclasses.dataclass(frozen=True)
class Stored:
    """The chosen checkpoint of a training stage, ready for use.

    Attributes:
      name: its path.
      record: what the checkpoint records of its origin.
      config: the experiment's.
      model: the model.
      variables: the model's, on the host.
      normalization: of the images.
    """

    name: str
    record: dict[str, Any]
    config: Any
    model: Model
    variables: dict[str, Any]
    normalization: Normalization

    @property
    def domain(self) -> str:
        return self.record["stage"]


def load_checkpoint(
    folder: str | Path, checkpoint: str | Path | None = None, *, accept_code: bool = False
) -> Stored:
    """Load the chosen checkpoint of a training stage.

    Args:
      folder: the run folder.
      checkpoint: the stage's folder; None: the target stage of the first arm and seed.
      accept_code: run the code that the checkpoint names, see `trust`.

    Raises:
      UserError: there is none, or it names code that was not accepted.
    """
    is_crossed = False
    if checkpoint:
        stage = Path(checkpoint)
    else:
        config = run_folder.load_config(folder)
        is_crossed = configs.is_cross_validated(config)
        stage = Path(folder) / f"seed_{config.seeds[0]}" / config.arms[0] / "target"
    if not (stage / "checkpoints").is_dir():
        advice = (
            "a cross-validation keeps none: train once more with folds=0, leave_out='' for a model "
            "to use"
            if is_crossed
            else (
                "give the folder of a training stage, e.g. "
                f"--checkpoint={folder}/seed_0/transfer/target"
            )
        )
        raise UserError(f"no checkpoint in {stage}; {advice}")
    with Store(handed_on(stage)) as store:
        step = store.chosen_step()
        record, arrays = store.record(step), store.arrays(step)
    config = ConfigDict(configs.upgrade(record["config"]))
    texts = configs.plugin_strings(config)
    encoders = {key: text for key, text in texts.items() if key.startswith("config.model.")}
    trust.check(encoders, stage, accept=accept_code)
    provenance.check_files(record, plugins.source_files(encoders), stage, advice="put it back")
    classes = {domain: tuple(names) for domain, names in record["classes"].items()}
    model = factory.model_for(config, classes, epsilon=record["epsilon"])
    params = overlaid(nested(arrays, "params"), nested(arrays, "ema"))
    makes_more = ADAPTERS in params or config.stages[record["stage"]].swa > 0
    if makes_more and handed_on(stage) == stage:
        raise UserError(
            f"{stage} is not finished: its weights are merged or averaged after the last step; "
            "train to the end first"
        )
    variables = {"params": params, "batch_stats": nested(arrays, "batch_stats")}
    n = record["normalization"]
    normalization = Normalization(n["name"], tuple(n["mean"]), tuple(n["std"]))
    return Stored(f"{stage}/checkpoints/{step}", record, config, model, variables, normalization)
