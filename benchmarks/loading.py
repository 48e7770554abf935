"""Memory and seconds that loading a large checkpoint takes.

    python benchmarks/loading.py --models=vit_base_patch16,wide_resnet101_2

Random weights of each backbone (343 and 499 MB) are written in each of `--formats`; "hf" is
.safetensors with query, key and value apart, as Hugging Face keeps them. A process of its own loads
each file with `weights.load`; the growth of its peak resident size is compared with the size of the
file, and its seconds include the sha256. --write keeps the result in
benchmarks/results/loading.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timing
from absl import app, flags
from memory import resident  # also defines --models, --one and step's --write

sys.path.insert(0, str(Path(__file__).parents[1]))

from medtl import models, weights
from medtl.weights import naming

FORMATS = flags.DEFINE_list("formats", "safetensors,hf,npz", "also pth, where PyTorch is installed")
FILE = flags.DEFINE_string("file", "", "internal: load this file")
flags.FLAGS.set_default("models", "vit_base_patch16,wide_resnet101_2")


def shapes(name: str) -> dict[str, Any]:
    """Return the backbone's variables as shapes."""
    module = models.backbone(name)()
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    like = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)
    return {collection: like.get(collection, {}) for collection in ("params", "batch_stats")}


def make(name: str, kind: str, folder: str) -> Path:
    """Write random weights of a backbone as a file of this kind."""
    rng = np.random.default_rng(0)
    tensors = {}
    for tensor, leaf in naming.leaves(shapes(name)).items():
        values = np.abs(rng.standard_normal(leaf.torch_shape, np.float32))
        if kind == "hf" and ".qkv." in tensor:
            for part, third in zip(("q", "k", "v"), np.split(values, 3), strict=True):
                own = third.copy()  # a view would be written whole
                tensors[tensor.replace("attn.qkv.", f"self_attn.{part}_proj.")] = own
        else:
            tensors[tensor] = values
    suffix = {"hf": "safetensors"}.get(kind, kind)
    path = Path(folder) / f"{name}_{kind}.{suffix}"
    if suffix == "safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, path)
    elif suffix == "npz":
        np.savez(path, **tensors)
    else:
        import torch

        torch.save({n: torch.from_numpy(x) for n, x in tensors.items()}, path)
    return path


def load(name: str, path: str) -> dict[str, float]:
    """Return the bytes that loading adds to the peak of this process, and its seconds."""
    like, architecture = shapes(name), models.parse(name)
    if path.endswith("pth"):
        import torch  # noqa: F401  its code is not the checkpoint's
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, start = resident("VmRSS"), time.perf_counter()
    weights.load(path, architecture, like, normalization="torchvision")
    seconds = time.perf_counter() - start
    return {"bytes": resident("VmHWM") - before, "seconds": seconds}


def main(_: list[str]) -> None:
    names = flags.FLAGS.models
    if FILE.value:
        print(json.dumps(load(names[0], FILE.value)))
        return
    rows = []
    for name in names:
        for kind in FORMATS.value:
            with tempfile.TemporaryDirectory() as folder:
                path = make(name, kind, folder)
                size = path.stat().st_size
                arguments = [f"--models={name}", f"--file={path}"]
                done = subprocess.run(
                    [sys.executable, __file__, *arguments],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
            row = {"model": name, "format": kind, "size": size, **json.loads(done.stdout)}
            row["ratio"] = row["bytes"] / size
            rows.append(row)
            print(
                f"{name:20} {kind:12} {size / 1e6:6.0f} MB  adds {row['bytes'] / 1e6:6.0f} MB = "
                f"{row['ratio']:.2f} of it  {row['seconds']:.2f} s",
                flush=True,
            )
    if flags.FLAGS.write:
        timing.write("loading", {"rows": rows})


if __name__ == "__main__":
    app.run(main)
