"""Use of a finished training stage: load its checkpoint, score examples, export the backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from medtl import config as configs
from medtl import data, files, plugins, weights
from medtl.config import dataset
from medtl.data import cache as caches
from medtl.data import loading
from medtl.data.prepared import OF_CELLS, with_present
from medtl.data.preprocessing import Fitted, Layout, apply
from medtl.errors import UserError
from medtl.evaluation import label_shift, predictions
from medtl.evaluation.predictions import Predictions
from medtl.examples import Examples, Normalization
from medtl.experiment import ensemble, frozen, provenance, run_folder, trust
from medtl.models.model import Model
from medtl.training import adabn, factory
from medtl.training.checkpoint import Store, handed_on, nested
from medtl.training.evaluator import Evaluator, make_eval_step, run_batches
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
    """Score a manifest, with or without labels, with the checkpoint of one or several stages.

    Several are an ensemble: the mean of their probabilities. Further rows have the arm's name with
    "+tta" for the views of `evaluation.test_time`, and with "+em" or "+bbse" for the class
    frequencies that `evaluation.label_shift` estimates from the manifest.

    Args:
      folder: the work folder of the run.
      manifest: CSV with the columns of the model's inputs, such as `image_path`.
      checkpoint: the stage's folder, or one that holds several target stages; None: the target
        stage of the first arm and seed, or those of all seeds with `evaluation.ensembles`, and of
        all folds with `checkpoint.keep_folds`.
      output: CSV to write, with the columns of `predictions.csv`; None: `scored.csv` in the
        checkpoint's folder if one is given, else in the work folder.
      accept_code: as in `load_checkpoint`.

    Returns:
      The path of the CSV.
    """
    path = Path(output) if output else Path(checkpoint or folder) / "scored.csv"
    if not path.parent.is_dir():
        raise UserError(f"--output={path}: there is no folder {path.parent}")
    names = ensemble.members(folder, checkpoint)
    scored: dict[str, list[Predictions]] = {}
    stored = load_checkpoint(folder, names[0], accept_code=accept_code)
    classes = tuple(stored.record["classes"][stored.domain])
    for name in names:
        stored = load_checkpoint(folder, name, accept_code=accept_code)
        if tuple(stored.record["classes"][stored.domain]) != classes:
            raise UserError(f"{name} has other classes than {names[0]}; score them one by one")
        for p in _scores(stored, str(manifest), Path(folder)):
            scored.setdefault(p.arm, []).append(p)
    rows = [ensemble.mean(of_arm) for of_arm in scored.values()]
    predictions.write(path, rows, classes)
    what = "images" if tuple(stored.config.data.inputs) == ("image",) else "examples"
    by = stored.name if len(names) == 1 else f"{len(names)} models in {checkpoint or folder}"
    print(f"{len(rows[0].id)} {what} scored by {by}: {path}")
    return path


def _scores(stored: Stored, manifest: str, folder: Path) -> list[Predictions]:
    """Score a manifest with one model; also over views, and for other class frequencies."""
    c, domain = stored.config, stored.domain
    keep_compiled(caches.folder(c.data.cache_dir) / "compiled")
    examples = _examples(stored, manifest)
    rows, parallel = np.arange(len(examples)), Parallel.create("none")
    variables = parallel.replicate(stored.variables)
    step = parallel.evaluate(make_eval_step(stored.model, domain, stored.normalization))
    batches = loading.eval_batches(examples, rows, c.evaluation.batch_size)
    logits = run_batches(step, variables, batches)
    multi_label = stored.record["multi_label"][domain]
    scale = stored.record.get("scale", {}).get(domain)
    if scale:
        probability = predictions.in_units(logits, tuple(scale))
    else:
        probability = predictions.probabilities(logits, multi_label=multi_label)
    unknown = np.full(probability.shape, np.nan) if multi_label else np.full(len(examples), -1)
    unknown = np.full(len(examples), np.nan) if scale else unknown
    arm, seed = stored.record["arm"], stored.record["seed"]
    made = [Predictions(arm, "predict", examples.id, unknown, probability, seed)]
    if c.evaluation.test_time and "image" in factory.input_names(c):
        evaluator = Evaluator(c, parallel, stored.model, stored.normalization, None)
        mean = evaluator.mean_over_views(variables, domain, examples, rows, multi_label=multi_label)
        made.append(dataclasses.replace(made[0], arm=f"{arm}+tta", probability=mean))
    for method in c.evaluation.label_shift:
        val = ensemble.val_of(folder, stored.name, arm, seed)
        shift = label_shift.estimate(method, val, made[0])
        made.append(label_shift.corrected(made[0], shift, method))
        entry = {"arm": arm, "method": method, **dataclasses.asdict(shift)}
        classes = stored.record["classes"][domain]
        print("\n".join(label_shift.notes([entry], classes)))
    return made


def _examples(stored: Stored, manifest: str) -> Examples:
    """Read what is to be scored, preprocessed as the training stage's own domain was.

    Raises:
      UserError: the model has an input that no manifest holds.
    """
    c, made = stored.config, stored.record.get("preprocessing")
    inputs = factory.input_names(c)
    is_features = inputs == ("features",) and made is None
    unread = [n for n in inputs if n != "image" and (n not in OF_CELLS or made is None)]
    if unread and not is_features:
        raise UserError(
            f"--mode=predict reads images and tables, but {stored.name} also needs "
            f"{', '.join(unread)}"
        )
    # An arm of images alone reads no cells, whatever other arms of the run read.
    layout = Layout.from_json(made["layout"]) if made and set(inputs) & set(OF_CELLS) else None
    kind = c.data[stored.domain].kind if is_features else "manifest"
    roles = _roles(layout, c.data[stored.domain].columns)
    examples = unlabelled(c, manifest, inputs, roles or None, kind=kind)
    if layout is None or made is None:
        if is_features:
            _check_length(stored, examples, manifest)
        return examples
    lacking = layout.lacking(examples.columns)
    if "image" in inputs and not examples.present["image"].any():
        names = [name for name, role in roles.items() if role == "image"]
        lacking.insert(0, (names or ["image_path"])[-1])
    if lacking:
        print(f"{manifest} lacks {', '.join(lacking)}: missing there")
    encoded = layout.encode(examples.columns, len(examples))
    fitted = Fitted.from_json(made["fitted"][stored.domain])
    cells = {n: v for n, v in apply(layout, fitted, encoded).items() if n in inputs}
    examples = dataclasses.replace(examples, inputs={**examples.inputs, **cells})
    return with_present(examples, inputs)


def _roles(layout: Layout | None, given: Sequence[str]) -> dict[str, str]:
    """Return the roles of the columns that scoring reads: inputs, images and ids.

    Args:
      layout: of the inputs; None: the model reads no cells.
      given: the roles in the config, "COLUMN=ROLE".
    """
    pairs = (text.rpartition("=")[::2] for text in given)
    read = ("image", "id", "patient_id", "ignore")
    return {name: role for name, role in pairs if role in read} | (layout.roles if layout else {})


def _check_length(stored: Stored, examples: Examples, path: str) -> None:
    """Refuse features of another number than those of training."""
    there = stored.record.get("features", {}).get(stored.domain)
    here = np.asarray(examples.inputs["features"]).shape[1]
    if there is not None and here != there:
        raise UserError(f"{path} has {here} features, but {stored.name} reads {there}")


def unlabelled(
    config: Any,
    manifest: str,
    inputs: Sequence[str] = ("image",),
    roles: Mapping[str, str] | None = None,
    *,
    kind: str = "manifest",
) -> Examples:
    """Read a manifest as the config reads its images; labels and splits are not read.

    Args:
      config: as `medtl.config.default` makes it.
      manifest: the CSV file.
      inputs: of the model.
      roles: column -> role, as in `data.load`.
      kind: the reader, a plug-in string.
    """
    c = config.data
    return data.load(
        dataset(kind, path=manifest, label=c.target.label),
        image_size=c.image_size,
        channels=c.channels,
        resize=c.resize,
        cache=c.cache,
        cache_dir=c.cache_dir,
        key="--manifest",
        require_label=False,
        require_train=False,
        rules=data.FileRules.of(c),
        inputs=inputs,
        roles=roles,
    )


def export(
    folder: str | Path,
    path: str | Path,
    *,
    checkpoint: str | Path | None = None,
    accept_code: bool = False,
) -> None:
    """Write a trained model, backbone and head, as safetensors with torchvision's names.

    `config.weights.path` takes the file, and PyTorch by `Diagnosis` of the file that is written
    beside it, `NAME_loader.py`. The head of a model with several inputs, and one that is not
    linear, are left out.

    Args:
      folder: the run folder.
      path: the file to write.
      checkpoint: the stage's folder; None: the target stage of the first arm and seed.
      accept_code: as in `load_checkpoint`.

    Raises:
      UserError: there is no such checkpoint, or its model reads no image.
    """
    stored = load_checkpoint(folder, checkpoint, accept_code=accept_code)
    inputs = factory.input_names(stored.config)
    if "image" not in inputs:
        raise UserError(f"{stored.name} has no image encoder to export")
    path, head = Path(path), _head(stored) if inputs == ("image",) else None
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
        head=head,
    )
    if inputs != ("image",):
        print(f"{path}: the image encoder alone, as its head also reads {', '.join(inputs[1:])}")
        return
    if head is None:
        print(f"{path}: the image encoder alone, as its head is not of dense layers")
        return
    loader = path.with_name(f"{path.stem}_loader.py")
    source = Path(weights.__file__).with_name("torch_loader.py").read_text(encoding="utf-8")
    files.write_text(loader, source)
    print(f"{path}: the backbone and the head; {loader} loads them in PyTorch")


def _head(stored: Stored) -> weights.ExportedHead | None:
    """Return the head's layers; None where it has others than dense ones."""
    params = stored.variables["params"]["heads"][stored.model.head_of[stored.domain]]
    if "logits" not in params:
        return None
    names = [*sorted(n for n in params if n.startswith("hidden_")), "logits"]
    return weights.ExportedHead(
        [(params[name]["kernel"], params[name]["bias"]) for name in names],
        stored.record["classes"][stored.domain],
        "sigmoid" if stored.record["multi_label"][stored.domain] else "softmax",
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
        record = store.record(step)
    config = ConfigDict(configs.upgrade(record["config"]))
    texts = configs.plugin_strings(config)
    encoders = {key: text for key, text in texts.items() if key.startswith("config.model.")}
    trust.check(encoders, stage, accept=accept_code)
    provenance.check_files(record, plugins.source_files(encoders), stage, advice="put it back")
    with Store(handed_on(stage), frozen.load(stage, record, config)) as store:
        arrays = store.arrays(step)
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
    if config.stages[record["stage"]].adapt_batch_norm:
        variables["batch_stats"] = adabn.read(stage)
    n = record["normalization"]
    normalization = Normalization(n["name"], tuple(n["mean"]), tuple(n["std"]))
    return Stored(f"{stage}/checkpoints/{step}", record, config, model, variables, normalization)
