"""`--mode=embed`: the features of an image encoder as `.npz` files, for any tool and for medtl.

`kind="features"` reads them back. The encoder is the pretrained one of a config, or that of a
trained checkpoint. Random weights are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from medtl import files
from medtl.config import check
from medtl.data import loading
from medtl.errors import UserError
from medtl.examples import Examples, Normalization
from medtl.experiment import domains, inference
from medtl.models.model import Model, init_variables
from medtl.training import factory
from medtl.training.evaluator import run_batches
from medtl.training.initial import overlaid
from medtl.training.parallel import Parallel
from medtl.training.progress import Progress
from medtl.training.step import prepare


def embed(config: Any, folder: Path, *, manifest: str = "", output: str = "") -> dict[str, Path]:
    """Write the features of the config's domains, or of a manifest, under the pretrained encoder.

    Args:
      config: as `medtl.config.default` makes it, with `weights.path`.
      folder: gets `source.npz` and `target.npz`, of the domains that the arms read.
      manifest: a CSV file without labels, in place of the domains; its features go to `output`.
      output: the `.npz` of the manifest.

    Returns:
      domain, or the manifest -> its file.

    Raises:
      UserError: the data or the weights are at fault, or the config names no weights.
    """
    check.check_fields(config)
    if "image" not in factory.input_names(config):
        raise UserError("--mode=embed needs an image encoder; config.data.inputs has no 'image'")
    loaded = factory.pretrained(config)
    if loaded is None:
        raise UserError("--mode=embed needs config.weights.path: random weights give no features")
    print(loaded.report.summary())
    model = factory.model_for(config, {"target": ("", "")}, epsilon=factory.epsilon(config, loaded))
    model = model.clone(make_encoders={"image": model.make_encoders["image"]})
    image = {"image": jax.ShapeDtypeStruct((1, *factory.image_shape(config)), np.float32)}
    drawn = jax.device_get(init_variables(model, jax.random.key(0), image))
    variables = overlaid(
        drawn, {kind: {"encoders": {"image": v}} for kind, v in loaded.variables.items()}
    )
    normalization = factory.normalization(config, loaded)
    written = {}
    for name in [manifest] if manifest else check.domains(config):
        examples = inference.unlabelled(config, name) if manifest else domains.load(config, name)
        path = Path(output) if manifest else folder / f"{name}.npz"
        features = _features(model, variables, normalization, examples, config)
        written[name] = write(path, examples, features)
    return written


def embed_with(stored: inference.Stored, manifest: str, output: str) -> Path:
    """Write the features of a manifest under the image encoder of a trained checkpoint.

    Args:
      stored: the checkpoint, from `inference.load_checkpoint`.
      manifest: a CSV file; labels are not read.
      output: the `.npz`.

    Raises:
      UserError: the manifest is at fault, or the model has no image encoder.
    """
    if "image" not in factory.input_names(stored.config):
        raise UserError(f"{stored.name} has no image encoder to embed with")
    examples = inference.unlabelled(stored.config, manifest)
    features = _features(
        stored.model, stored.variables, stored.normalization, examples, stored.config
    )
    return write(Path(output), examples, features)


def write(path: Path, examples: Examples, features: np.ndarray) -> Path:
    """Write features with all that training needs to know of their examples.

    The file holds `features` f32[N, D], `ids` and `weights`, where known also `labels` (names of
    classes), `classes`, `split` and `patients`.

    Args:
      path: the `.npz` to write.
      examples: the examples, in the order of the features.
      features: f32[N, D].

    Raises:
      UserError: the path has another suffix or no folder, or an example has several diagnoses.
    """
    if path.suffix != ".npz":
        raise UserError(f"--mode=embed writes .npz files; {path} has another suffix")
    if examples.multi_label:
        raise UserError("--mode=embed writes one class an example; these have several diagnoses")
    arrays: dict[str, Any] = {
        "features": features.astype(np.float32),
        "ids": examples.id.astype(str),
        "weights": examples.weight,
    }
    if (examples.label >= 0).all() and len(examples.classes):
        classes = np.array(examples.classes)
        arrays |= {"labels": classes[examples.label], "classes": classes, "split": examples.split}
    if examples.patient is not None:
        arrays["patients"] = examples.patient.astype(str)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.atomic(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
    print(
        f"{len(examples):,} examples x {features.shape[1]:,} features: {path}; to train on them:\n"
        f"  --config.data.inputs=features --config.data.target.kind=features "
        f"--config.data.target.path={path}"
    )
    return path


def _features(
    model: Model, variables: Any, normalization: Normalization, examples: Examples, config: Any
) -> np.ndarray:
    """Return the pooled features f32[N, D] of the examples' images."""
    parallel = Parallel.create(config.parallel)

    def encode(variables: Any, batch: Any) -> jax.Array:
        inputs = prepare({"": batch}, normalization=normalization)[""]
        encoded: Any = model.apply(variables, inputs, method="encode")
        return encoded

    progress = Progress(f"features of {examples.name}", len(examples), unit="image")
    batches = loading.eval_batches(
        examples,
        np.arange(len(examples)),
        config.evaluation.batch_size,
        workers=config.data.workers,
    )
    step = parallel.evaluate(encode)
    features = run_batches(step, parallel.place(variables), batches, progress)
    progress.end(f"features of {examples.name}")
    return features
