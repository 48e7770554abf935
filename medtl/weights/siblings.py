"""The small files beside a weight file: its parts, and the normalization of its input.

Read are Hugging Face's `preprocessor_config.json` and the `pretrained_cfg` of timm's `config.json`.
Imports no JAX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtl.errors import UserError, damaged
from medtl.examples import Normalization

FILES = ("preprocessor_config.json", "config.json")
INDEX = ".safetensors.index.json"
"""How the index of a safetensors file ends that is kept in several parts."""


def parts(index: str) -> list[str]:
    """Return the names of the files that an index names, in alphabetic order.

    Raises:
      UserError: the index is damaged, or a name leads to another folder.
    """
    with damaged(f"config.weights.path: {index} is damaged or no index of safetensors files"):
        names = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        unique = sorted({str(name) for name in names})
    for name in unique:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"config.weights.path: {index} names the part {name!r}, which is no .safetensors "
                "file beside it"
            )
    return unique


def normalization(path: str) -> tuple[Normalization, str] | None:
    """Return the normalization that a file beside the weights states, and the name of that file.

    Only weight files with a name of the Hub's (`model.*`, `pytorch_model.*`) are taken to belong to
    the files beside them.

    Raises:
      UserError: the file beside it is damaged.
    """
    if not Path(path).name.startswith(("model.", "pytorch_model.", "tf_model.")):
        return None
    for name in FILES:
        beside = Path(path).with_name(name)
        if not beside.is_file():
            continue
        with damaged(f"config.weights.path: {beside} is damaged"):
            content = json.loads(beside.read_text(encoding="utf-8"))
            stated = _of_preprocessor(content) if name == FILES[0] else _of_timm(content)
        if stated is not None:
            return stated, name
    return None


def _of_preprocessor(content: Mapping[str, Any]) -> Normalization | None:
    """Return (x * r - m) / s as (x - m / r) / (s / r), with x in 0..255."""
    if "image_mean" not in content and "image_std" not in content:
        return None
    factor = float(content.get("rescale_factor", 1 / 255))
    scale = 1.0 if content.get("do_rescale") is False else factor
    mean, std = content.get("image_mean", [0.0]), content.get("image_std", [1.0])
    if content.get("do_normalize") is False:
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    return Normalization("stated", _scaled(mean, scale), _scaled(std, scale))


def _of_timm(content: Mapping[str, Any]) -> Normalization | None:
    stated = content.get("pretrained_cfg", content)
    if "mean" not in stated or "std" not in stated:
        return None
    return Normalization(
        "stated", _scaled(stated["mean"], 1 / 255), _scaled(stated["std"], 1 / 255)
    )


def _scaled(values: Any, scale: float) -> tuple[float, ...]:
    return tuple(round(float(value) / scale, 9) for value in values)
