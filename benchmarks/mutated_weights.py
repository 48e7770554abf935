"""Mutated weight files: each loads whole, or is one clear error; none leaves a layer random.

    python benchmarks/mutated_weights.py --files=1000

Small files of several families are changed as tensors (renamed, dropped, reshaped, other dtypes,
NaN) and as bytes (flipped, cut, inserted, most in the header). A file that loads must give every
variable of the backbone, finite and in its shape; one whose change matters must be refused. Formats
differ in what they can notice: `.npz` has checksums, while a byte among the numbers of other
formats may change one of them, which only `weights.sha256` shows; these are counted as "other
numbers". --write keeps the result in benchmarks/results/mutated_weights.json.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timing

sys.path.insert(0, str(Path(__file__).parents[1]))

from medtl import models, weights
from medtl.errors import UserError
from medtl.weights import naming

Tensors = dict[str, np.ndarray]
HEADER = 400  # bytes in which most damage is done


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of file: the backbone that it fits, its names, and how it is written."""

    name: str
    architecture: str
    last_layer: str
    foreign: Callable[[str, np.ndarray], Tensors]
    suffix: str


def as_it_is(name: str, tensor: np.ndarray) -> Tensors:
    return {name: tensor}


def hugging_face(name: str, tensor: np.ndarray) -> Tensors:
    """Return the tensors of a ViT of transformers."""
    name = name.replace("cls_token", "embeddings.cls_token")
    name = name.replace("pos_embed", "embeddings.position_embeddings")
    name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
    name = name.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
    name = name.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
    name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
    name = f"vit.{'layernorm' + name[4:] if name.startswith('norm.') else name}"
    if "attn.qkv" not in name:
        return {name: tensor}
    parts = zip(("query", "key", "value"), np.split(tensor, 3), strict=True)
    return {name.replace("attn.qkv", f"attention.attention.{p}"): x.copy() for p, x in parts}


def bit(name: str, tensor: np.ndarray) -> Tensors:
    """Return the tensors of a BiT of big_vision."""
    if name.startswith("stem"):
        return {"root_block/conv_root/kernel": tensor.transpose(2, 3, 1, 0)}
    leaf = {"weight": "scale", "bias": "bias"}[name.rpartition(".")[2]]
    if name.startswith("norm"):
        return {f"norm-pre-head/{leaf}": tensor}
    _, stage, _, block, inner, *_ = name.split(".")
    unit = f"block{int(stage) + 1}/unit{int(block) + 1:02d}"
    if inner.startswith("norm"):
        return {f"{unit}/gn{inner[4:]}/{leaf}": tensor[None, None, None]}
    inner = inner.replace("downsample", "conv_proj")
    return {f"{unit}/{inner}/kernel": tensor.transpose(2, 3, 1, 0)}


FAMILIES = (
    Family("torchvision", "cifar_resnet20", "", as_it_is, ".safetensors"),
    Family("timm", "resnext50d_32x4d", "layer1", as_it_is, ".safetensors"),
    Family("Hugging Face", "deit_tiny_patch16", "layer2", hugging_face, ".safetensors"),
    Family("in parts", "efficientnet_lite0", "layer3", as_it_is, ".safetensors.index.json"),
    Family("NumPy", "densenet121", "layer1", as_it_is, ".npz"),
    Family("BiT", "resnetv2_50x1_bit", "layer1", bit, ".npz"),
    Family("PyTorch", "cifar_resnet20", "", as_it_is, ".pth"),
    Family("older PyTorch", "convnext_tiny", "layer1", as_it_is, ".th"),
    Family("Keras", "resnet50(stride_in='1x1')", "layer1", as_it_is, ".h5"),
)


def shapes(family: Family) -> dict[str, Any]:
    """Return the backbone's variables as shapes."""
    module = models.backbone(family.architecture, last_layer=family.last_layer)()
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    like = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)
    return {collection: like.get(collection, {}) for collection in ("params", "batch_stats")}


def draw(like: Any, rng: np.random.Generator) -> Tensors:
    """Return positive random numbers, which suit variances, too, under torchvision's names."""
    return {
        name: rng.uniform(0.5, 1.5, leaf.torch_shape).astype(np.float32)
        for name, leaf in naming.leaves(like).items()
    }


def write(path: Path, tensors: Tensors, suffix: str) -> None:
    """Write tensors in the format of the suffix."""
    if suffix == ".npz":
        np.savez(path, **tensors)
    elif suffix in (".pth", ".th"):
        import torch

        state = {n: torch.from_numpy(np.ascontiguousarray(x)) for n, x in tensors.items()}
        options = {"_use_new_zipfile_serialization": suffix == ".pth"}
        torch.save({"state_dict": state, "epoch": 3}, path, **options)
    elif suffix == ".h5":
        write_keras(path, tensors)
    else:
        from safetensors.numpy import save_file

        contiguous = {n: np.ascontiguousarray(x) for n, x in tensors.items()}
        if suffix == ".safetensors":
            save_file(contiguous, path)
            return
        part = path.with_name("part.safetensors")
        save_file(contiguous, part)
        path.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, part.name)}))


def write_keras(path: Path, tensors: Tensors) -> None:
    """Write the layers of a ResNet's first stage as keras.applications does."""
    import h5py

    leaves = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}
    layers: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in ("conv1", "bn1"):
            layer = "conv1_conv" if module == "conv1" else "conv1_bn"
        else:
            block, _, inner = module.removeprefix("layer1.").partition(".")
            number = "0" if inner.startswith("downsample") else inner[-1]
            kind = "bn" if inner.startswith("bn") or inner.endswith(".1") else "conv"
            layer = f"conv2_block{int(block) + 1 if block.isdigit() else block}_{number}_{kind}"
        arrays = layers.setdefault(layer, {})
        if name == "conv1.weight" and tensor.ndim == 4:
            tensor = tensor[:, ::-1]  # BGR
        arrays["kernel" if layer.endswith("conv") else leaves[leaf]] = (
            tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
        )
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, arrays in layers.items():
            group = file.create_group(layer)
            order = [n for n in ("kernel", *leaves.values()) if n in arrays]
            group.attrs["weight_names"] = [f"{layer}/{n}:0".encode() for n in order]
            for n in order:
                group[f"{layer}/{n}:0"] = arrays[n]


def reshaped(x: np.ndarray) -> np.ndarray:
    return np.tile(x, 2) if x.size == max(x.shape) else x.reshape(-1)


def with_value(x: np.ndarray, value: float) -> np.ndarray:
    x = x.copy()
    x.flat[x.size // 2] = value
    return x


TENSORS: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    # None: the tensor is dropped. All of these must be refused.
    "dropped": lambda x: None,
    "a row less": lambda x: x[1:] if len(x) > 1 else x[:0],
    "reshaped": reshaped,
    "empty": lambda x: x[:0],
    "integers": lambda x: x.astype(np.int32),
    "same bits, integers": lambda x: x.view(np.int32),
    "booleans": lambda x: x > 1,
    "NaN": lambda x: with_value(x, np.nan),
    "infinite": lambda x: with_value(x, -np.inf),
    "beyond float32": lambda x: with_value(x.astype(np.float64), 1e300),
}
HARMLESS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
}


def change_tensor(
    tensors: Tensors, rng: np.random.Generator, *, names: bool
) -> tuple[Tensors, str]:
    """Return the tensors with one changed, perhaps its name, and what was done."""
    name = str(rng.choice(sorted(tensors)))
    kind = str(rng.choice([*(["renamed", "one more"] if names else []), *TENSORS, *HARMLESS]))
    changed = dict(tensors)
    if kind == "renamed":
        i = int(rng.integers(len(name)))
        changed[name[:i] + "x" + name[i:]] = changed.pop(name)
    elif kind == "one more":
        changed[f"{name}x"] = changed[name]
    else:
        value = (TENSORS | HARMLESS)[kind](changed.pop(name))
        changed |= {} if value is None else {name: value}
    return changed, kind


def change_bytes(content: bytes, rng: np.random.Generator) -> tuple[bytes, str, int]:
    """Return the bytes with some changed, what was done, and where."""
    kind = str(rng.choice(["cut", "flipped", "inserted", "left out", "zeros", "longer"]))
    is_early = rng.random() < 0.7
    at = int(rng.integers(min(HEADER, len(content)) if is_early else len(content)))
    count = int(rng.integers(1, 5))
    if kind == "cut":
        at = int(rng.random() * len(content))
        return content[:at], kind, at
    if kind == "longer":
        return content + rng.bytes(count), kind, len(content)
    middle = {
        "flipped": bytes(b ^ int(rng.integers(1, 256)) for b in content[at : at + count]),
        "inserted": rng.bytes(count) + content[at : at + count],
        "left out": b"",
        "zeros": bytes(len(content[at : at + count])),
    }[kind]
    return content[:at] + middle + content[at + count :], kind, at


def shows(suffix: str, content: bytes, at: int) -> bool:
    """Return whether a format shows that the byte at this position changed."""
    if suffix == ".npz":
        return True  # each array has a checksum
    return suffix == ".safetensors" and at < 8 + int.from_bytes(content[:8], "little")


def outcome(family: Family, path: Path, like: Any, original: Tensors) -> str:
    """Load the file; return "refused", "same numbers", "other numbers", or what is wrong."""
    try:
        weights.check(str(path))
        loaded = weights.load(
            str(path),
            models.parse(family.architecture),
            like,
            last_layer=family.last_layer,
            normalization="torchvision",
        )
    except UserError as error:
        text = str(error)
        is_clear = path.name.partition(".")[0] in text or "part.safetensors" in text
        short = len(text) < 2000 and text.count("\n") <= 4
        return "refused" if is_clear and short else f"an unclear error: {text[:200]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    values = {n: leaf.value for n, leaf in naming.leaves(loaded.variables).items()}
    wanted = naming.leaves(like)
    if values.keys() != wanted.keys() or loaded.report.left_random or loaded.report.mismatched:
        return "a layer is random"
    if any(values[n].shape != leaf.value.shape for n, leaf in wanted.items()):
        return "a layer has another shape"
    arrays = (naming.to_torch(leaf.path, values[n]) for n, leaf in wanted.items())
    same = all(np.allclose(x, original[n], rtol=1e-3) for n, x in zip(wanted, arrays, strict=True))
    return "same numbers" if same else "other numbers"


def one(family: Family, like: Any, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
    """Write and load one mutated file; return what was done to it, and its outcome."""
    tensors = draw(like, rng)
    path = folder / f"mutated{family.suffix}"
    foreign = {n: x for name, t in tensors.items() for n, x in family.foreign(name, t).items()}
    if rng.random() < 0.5:
        tensors_now, kind = change_tensor(foreign, rng, names=family.suffix != ".h5")
        try:
            write(path, tensors_now, family.suffix)
        except (ValueError, TypeError, IndexError, KeyError):
            return kind, "cannot be written"
        result = outcome(family, path, like, tensors)
        must = (kind in HARMLESS and "same numbers") or "refused"
        return kind, result if result == must or ":" in result else f"{result}, not {must}: {kind}"
    write(path, foreign, family.suffix)
    target = path
    if family.suffix.endswith("json") and rng.random() < 0.5:
        target = path.with_name("part.safetensors")
    content = target.read_bytes()
    changed, kind, at = change_bytes(content, rng)
    target.write_bytes(changed)
    result = outcome(family, path, like, tensors)
    if result == "other numbers" and shows(target.suffix, content, at):
        result = "other numbers, although the format shows the damage"
    return f"bytes {kind}", result


def available(family: Family) -> bool:
    """Return whether the library is installed that writes the family's files."""
    needed = {".pth": "torch", ".th": "torch", ".h5": "h5py"}.get(family.suffix)
    return needed is None or importlib.util.find_spec(needed) is not None


def run(files: int, seed: int) -> tuple[dict[str, collections.Counter[str]], list[str]]:
    """Return the outcomes by family, and a line for each that must not be."""
    families = [family for family in FAMILIES if available(family)]
    like = {family.name: shapes(family) for family in families}
    counts = {family.name: collections.Counter[str]() for family in families}
    wrong = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(files):
            family = families[i % len(families)]
            rng = np.random.default_rng((seed, i))
            kind, result = one(family, like[family.name], rng, Path(folder))
            if result not in ("refused", "same numbers", "other numbers", "cannot be written"):
                wrong.append(f"{family.name}, file {i}, {kind}: {result}")
                result = "wrong"
            counts[family.name][result] += 1
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=timing.Help)
    parser.add_argument("--files", type=timing.positive, default=1000, help="mutated files")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--write", action="store_true", help="keep the result")
    args = parser.parse_args()
    counts, wrong = run(args.files, args.seed)
    for name, outcomes in counts.items():
        print(f"{name:15}", ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()))
    print(*wrong, sep="\n")
    if args.write:
        timing.write("mutated_weights", {"files": args.files, "outcomes": counts, "wrong": wrong})
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
