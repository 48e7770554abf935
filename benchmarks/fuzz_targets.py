"""What `fuzz.py` damages: for each reader, files that are in order and a call that reads them."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medtl import data
from medtl.config import dataset, default, grid
from medtl.errors import UserError
from medtl.evaluation import plain

RULES = data.FileRules(window=(0, 255))
KEY = "config.data.target"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 16, 16), np.uint8)
HEADER = ["image_path", "diagnosis", "split", "patient_id", "weight", "site", "age", "sex"]
SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 3


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
      name: of the target.
      share: of all cases, relative to that of the others.
      prepare: writes the whole files into an empty folder.
      read: reads the files of a folder as the command line does.
      content: where every flipped bit must be noticed: what must be equal in the values read.
      takes: which files are damaged.
      leaves: reading writes, too.
    """

    name: str
    share: int
    prepare: Callable[[Path], Any]
    read: Callable[[Path], Any]
    content: Callable[[Any], Any] | None = None
    takes: Callable[[Path], bool] = lambda _: True
    leaves: bool = False


def _table(folder: Path, suffix: str = ".png") -> None:
    """Write a manifest with a clinical table for 12 images."""
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(HEADER)
        for i, split in enumerate(SPLITS):
            row = (f"{i:02d}{suffix}", ("well", "ill")[i % 2], split, f"p{i}", 1, "ab"[i % 2])
            rows.writerow((*row, 50 + i, "fm"[i % 2]))


def _load(path: Path, *, inputs: tuple[str, ...] = ("image",), **fields: Any) -> data.Examples:
    spec = dataset(**{"path": str(path), **fields})
    data.check(spec, key=KEY, rules=RULES, inputs=inputs)
    how = {"cache": "memory", "cache_dir": "", "channels": 1, "resize": "squash"}
    return data.load(spec, key=KEY, rules=RULES, image_size=8, inputs=inputs, **how)


def _manifest(folder: Path) -> None:
    _table(folder)
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")


def _of(*kinds: str) -> Callable[[Path], None]:
    """Return a function that writes images of these kinds, and a manifest of them."""

    def prepare(folder: Path) -> None:
        _table(folder, "")
        for i, pixels in enumerate(PIXELS):
            path, kind = folder / f"{i:02d}", kinds[i % len(kinds)]
            image = Image.fromarray(pixels)
            if kind == "dicom":
                path.write_bytes(_dicom(pixels))
            elif kind == "nifti":
                path.write_bytes(_nifti(pixels))
            elif kind == "rgb":
                image.convert("RGB").save(path, "PNG")
            elif kind == "npy":
                with path.open("wb") as file:
                    np.save(file, pixels * 9.5 if i % 4 else pixels)
            elif kind == "png16":
                Image.fromarray(pixels.astype(np.uint16) * 200).save(path, "PNG")
            elif kind == "lzw":
                image.save(path, "TIFF", compression="tiff_lzw")
            else:
                image.save(path, kind)
        names = [p.name for p in folder.glob("??")]
        suffixes = {"dicom": ".dcm", "nifti": ".nii", "npy": ".npy", "TIFF": ".tif", "lzw": ".tif"}
        for name in names:
            suffix = suffixes.get(kinds[int(name) % len(kinds)])
            (folder / name).rename(folder / f"{name}{suffix or '.img'}")
            text = (folder / "manifest.csv").read_text()
            (folder / "manifest.csv").write_text(
                text.replace(f"\n{name},", f"\n{name}{suffix or '.img'},")
            )

    return prepare


def _dicom(pixels: np.ndarray) -> bytes:
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2", "1.2.3"
    file = pydicom.Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    file.PhotometricInterpretation, file.SamplesPerPixel = "MONOCHROME2", 1
    file.Rows, file.Columns = pixels.shape
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.RescaleSlope, file.RescaleIntercept, file.WindowCenter, file.WindowWidth = 1, 0, 100, 200
    file.PixelData = pixels.astype(np.uint16).tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


def _nifti(pixels: np.ndarray) -> bytes:
    import nibabel

    return nibabel.Nifti1Image(pixels[..., None].astype(np.int16), np.eye(4)).to_bytes()


def _read_images(folder: Path) -> data.Examples:
    return _load(folder / "manifest.csv")


def _is_image(path: Path) -> bool:
    return path.suffix != ".csv"


def _npz(folder: Path) -> None:
    images = {
        f"{split}_images": PIXELS[rows]
        for split, rows in (("train", slice(8)), ("test", slice(8, 12)))
    }
    np.savez(
        folder / "a.npz", **images, train_labels=np.arange(8) % 2, test_labels=np.arange(4) % 2
    )
    np.savez_compressed(
        folder / "b.npz", **images, train_labels=np.arange(8) % 2, test_labels=np.arange(4) % 2
    )


def _each(folder: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    return {p.name: read(p) for p in sorted(folder.iterdir()) if p.is_file()}


def _features(folder: Path) -> None:
    values = RNG.normal(size=(12, 5)).astype(np.float32)
    np.savez(
        folder / "a.npz", features=values, labels=np.arange(12) % 2, split=np.array(SPLITS),
        patients=np.arange(12), ids=np.arange(12), weights=np.ones(12), classes=["a", "b"],
    )  # fmt: skip
    np.savez_compressed(folder / "b.npz", features=values, labels=np.arange(12) % 2)
    with (folder / "c.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "diagnosis", "split", *(f"f{i}" for i in range(5))])
        for i, row in enumerate(values):
            rows.writerow((i, "ab"[i % 2], SPLITS[i], *row))


def _weights(suffixes: tuple[str, ...]) -> Callable[[Path], None]:
    """Return a function that writes a few of ResNet-18's tensors in files of these suffixes."""

    def prepare(folder: Path) -> None:
        tensors = {
            "conv1.weight": RNG.normal(size=(8, 3, 3, 3)).astype(np.float32),
            **{f"bn1.{n}": np.ones(8, np.float32) for n in ("weight", "bias", "running_mean")},
            "fc.weight": RNG.normal(size=(5, 8)).astype(np.float16),
        }
        if ".safetensors" in suffixes:
            from safetensors.numpy import save_file

            about = {
                "normalization": json.dumps({"name": "own", "mean": [0.5] * 3, "std": [0.5] * 3})
            }
            save_file(tensors, folder / "a.safetensors", metadata=about)
        if ".npz" in suffixes:
            np.savez(folder / "a.npz", **tensors)
            np.savez_compressed(folder / "b.npz", **tensors)
        if ".h5" in suffixes:
            _keras(folder, tensors["conv1.weight"])
        if ".pth" in suffixes:
            import torch

            torch.save({n: torch.from_numpy(t) for n, t in tensors.items()}, folder / "a.pth")
            nested = {"epoch": 3, "state_dict": {n: torch.ones(3) for n in tensors}}
            torch.save(nested, folder / "old.pth", _use_new_zipfile_serialization=False)

    return prepare


def _keras(folder: Path, kernel: np.ndarray) -> None:
    import h5py

    layers = {
        "conv1_conv": {"kernel:0": kernel.transpose(2, 3, 1, 0), "bias:0": np.zeros(8)},
        "conv1_bn": {f"{n}:0": np.ones(8) for n in ("gamma", "beta", "mean", "variance")},
    }
    with h5py.File(folder / "a.h5", "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{a}".encode() for a in arrays]
            for array, value in arrays.items():
                group.create_dataset(f"{name}/{array}", data=value.astype(np.float32))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, arrays in layers.items():
            group = file.create_group(f"layers/{name}/vars")
            group.attrs["name"] = name
            for i, value in enumerate(arrays.values()):
                group.create_dataset(str(i), data=value.astype(np.float32))
    with zipfile.ZipFile(folder / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", buffer.getvalue())
        archive.writestr("config.json", "{}")


def _read_weights(folder: Path) -> Any:
    from medtl.weights import formats, metadata

    def read(path: Path) -> Any:
        formats.check(str(path))
        file = formats.read(str(path))
        return metadata.read(file.metadata, str(path))

    return _each(folder, read)


def _run(folder: Path) -> None:
    """Train a run of two folds and one arm."""
    from medtl import cli

    lines = (
        "from medtl.config import dataset, default, stage\n\n\ndef get_config():\n"
        "    c = default()\n    c.data.image_size = 8\n    c.model.last_layer = 'layer1'\n"
        '    c.data.target = dataset("phantom(size=60, split=(0.4, 0.3, 0.3), seed=1)")\n'
        "    c.stages.target = stage(epochs=1, batch_size=16)\n"
        "    c.arms, c.seeds, c.parallel = ('scratch',), (0,), 'none'\n"
        "    c.evaluation.folds, c.evaluation.times, c.evaluation.resamples = 2, 1, 100\n"
        "    return c\n"
    )
    config = folder.parent / "fuzz_config.py"
    config.write_text(lines)
    if cli.run([f"--config={config}", f"--workdir={folder}"]):
        raise SystemExit("the run fails")


def _read_run(folder: Path) -> None:
    """Read what a run's report and evaluation read, without computing it again."""
    from medtl.config import check
    from medtl.evaluation import predictions
    from medtl.experiment import results, run_folder

    config = run_folder.load_config(folder)
    check.check(config)
    run_folder.check(folder, config)
    predictions.read(folder / "predictions.csv", multi_label=None)
    results.provenance_of(folder)
    results._errors(folder)
    results.training(folder, config)


def _config(folder: Path) -> None:
    """Write the `config.json` of a run."""
    config = default()
    config.data.target = dataset("phantom(size=60, split=(0.4, 0.3, 0.3), seed=1)")
    config.arms, config.seeds = ("scratch",), (0,)
    config.sweep.grid = grid({"objective.lambda_": (0.1, 1.0)})
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True))


def _read_config(folder: Path) -> None:
    """Read a stored config as `--mode=evaluate` does."""
    from medtl.config import check, plugin_strings
    from medtl.experiment import run_folder, trust

    config = run_folder.load_config(folder)
    trust.check(plugin_strings(config), folder, accept="")
    check.check(config)


def _read_split(folder: Path) -> Any:
    """Read back the folds that are done."""
    from medtl.experiment import experiment, run_folder
    from medtl.experiment.arm import Arm

    config = run_folder.load_config(folder)
    if not hasattr(_read_split, "opened"):
        _read_split.opened = experiment.open_experiment(config, folder, training=False)
    opened, by_seed = _read_split.opened
    opened = dataclasses.replace(opened, folder=folder)
    return [Arm(opened, split, 0, "scratch").outcome() for split in by_seed[0]]


def _of_outcomes(outcomes: Any) -> Any:
    """Return the predictions and what was tuned."""
    rows = [(p.id.tolist(), p.probability.tolist()) for o in outcomes for p in o.predictions]
    return rows, [o.tuned for o in outcomes]


def _report(folder: Path) -> None:
    """Write the report again."""
    from medtl import cli

    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = cli.run(["--mode=report", f"--workdir={folder}"])
    if code not in (0, 2):
        raise RuntimeError(f"exit code {code}: {error.getvalue()[:200]}")


def _is_of_split(path: Path) -> bool:
    return path.parent.name.startswith("fold") and path.name in ("done.json", "predictions.csv")


STATE = {"params": {f"k{i}": RNG.normal(size=(4, 5)).astype(np.float32) for i in range(3)}}


def _checkpoint(folder: Path) -> None:
    from medtl.training.checkpoint import Store

    with Store(folder) as store:
        store.save(1, STATE, {"classes": ["a", "b"]}, score=0.5)
        store.save(2, STATE, {"classes": ["a", "b"]}, score=0.4)


def _read_checkpoint(folder: Path) -> Any:
    """Resume from the last, and read the best."""
    from medtl.training.checkpoint import Store

    with Store(folder) as store:
        steps = (store.last_step, store.chosen_step())
        return steps, [(store.record(s), store.restore(s, STATE)) for s in steps]


def _bits(value: Any) -> Any:
    """Return steps, records and the bytes of arrays."""
    steps, read = value
    arrays = [[a.tobytes() for a in state["params"].values()] for _, state in read]
    return steps, [record for record, _ in read], arrays


FEATURES = RNG.normal(size=(12, 7)).astype(np.float32)


STATISTICS = {"encoders": {"image": {"bn1": {n: RNG.random(8) for n in ("mean", "var")}}}}


def _statistics(folder: Path) -> None:
    from medtl.training import adabn

    adabn.write(folder, STATISTICS)


def _read_statistics(folder: Path) -> Any:
    from medtl.training import adabn

    return adabn.read(folder)


def _caches(folder: Path) -> None:
    from medtl.data import arrays

    arrays.write(folder / "images.npy", PIXELS.shape, np.uint8, [PIXELS])
    arrays.write(folder / "features.npy", FEATURES.shape, np.float32, [FEATURES])


def _read_caches(folder: Path) -> bytes:
    """Read caches as their two readers do."""
    from medtl.data import arrays
    from medtl.training import features

    images = arrays.read(folder / "images.npy", np.uint8)
    values = features.read(folder / "features.npy", 12)
    if images is None or images.shape != PIXELS.shape or values is None:
        raise UserError("damaged: it is computed again")
    return images.tobytes() + values.tobytes()


TARGETS = (
    Target("manifest", 20, _manifest, _read_images, takes=lambda p: p.suffix == ".csv"),
    Target(
        "table", 10, _manifest, lambda f: _load(f / "manifest.csv", inputs=("image", "table")),
        takes=lambda p: p.suffix == ".csv",
    ),
    Target(
        "images", 15, _of("PNG", "rgb", "png16", "JPEG", "TIFF", "lzw"), _read_images,
        takes=_is_image,
    ),
    Target("medical", 10, _of("dicom", "nifti"), _read_images, takes=_is_image),
    Target("npy", 5, _of("npy"), _read_images, takes=_is_image),
    Target("npz", 12, _npz, lambda f: _each(f, lambda p: _load(p, kind="npz"))),
    Target(
        "features", 10, _features,
        lambda f: _each(f, lambda p: _load(p, kind="features('f*')", inputs=("features",))),
    ),
    Target("safetensors", 10, _weights((".safetensors",)), _read_weights),
    Target("npz_weights", 8, _weights((".npz",)), _read_weights),
    Target("keras", 10, _weights((".h5",)), _read_weights),
    Target("torch", 8, _weights((".pth",)), _read_weights),
    Target(
        "run", 20, _run, _read_run,
        takes=lambda p: p.suffix in (".json", ".jsonl", ".csv"), leaves=True,
    ),
    Target("config", 10, _config, _read_config),
    Target("split", 5, _run, _read_split, takes=_is_of_split, content=_of_outcomes),
    Target(
        "report", 2, _run, _report,
        takes=lambda p: p.suffix in (".json", ".jsonl", ".csv"), leaves=True,
    ),
    Target("checkpoint", 20, _checkpoint, _read_checkpoint, content=_bits, leaves=True),
    Target("statistics", 5, _statistics, _read_statistics, content=plain),
    Target("cache", 15, _caches, _read_caches, content=bytes),
)  # fmt: skip
