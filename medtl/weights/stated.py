"""What a weight file says about itself: the input it expects, where its strides lie, its BatchNorm epsilon.

Refuses a config that contradicts the file, and a file that says nothing where the config says nothing either.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping

import numpy as np

from medtl.errors import UserError, nearest
from medtl.examples import NORMALIZATIONS, Normalization
from medtl.weights import naming

TORCH_EPSILON = 1e-5
_BOTTLENECKS = ("resnet50", "resnet101", "resnet152")
_TRIPLE = r"\(([^()]*)\)"
_INPUT = re.compile(rf"RGB 0-255 minus {_TRIPLE}, (?:no scaling|divided by {_TRIPLE})")
_STRIDE = re.compile(r"stride in the (?:first )?([13]x[13])")


@dataclasses.dataclass(frozen=True)
class Statement:
    """Attributes are None where the file does not say.

    Attributes:
      architecture: one of `naming.KNOWN`.
      stride_in: "3x3" or "1x1".
      normalization: the input it was trained on.
      unclear: what it says of its input where that cannot be parsed, else "".
      epsilon: of BatchNorm; PyTorch's default where the file does not say.
    """

    architecture: str | None = None
    stride_in: str | None = None
    normalization: Normalization | None = None
    unclear: str = ""
    epsilon: float = TORCH_EPSILON


def read(metadata: Mapping[str, str], path: str) -> Statement:
    """Parses a file's metadata: the keys that `export` writes, or `input` and `variant` in prose.

    Raises:
      UserError: a key that is ours does not parse.
    """
    architecture = metadata.get("architecture")
    variant = _STRIDE.search(metadata.get("variant", ""))
    try:
        normalization = _normalization(metadata)
        return Statement(
            architecture=architecture if architecture in naming.KNOWN else None,
            stride_in=metadata.get("stride_in") or (variant[1] if variant else None),
            normalization=normalization,
            unclear=metadata.get("input", "") if normalization is None else "",
            epsilon=float(metadata.get("bn_eps", TORCH_EPSILON)),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"config.weights.path: the metadata of {path} cannot be understood ({error!r})"
        ) from error


def to_metadata(normalization: Normalization) -> str:
    """JSON from which `read` restores the same numbers."""
    return json.dumps(dataclasses.asdict(normalization))


def check_stride(stated: Statement, architecture: str, stride_in: str, path: str) -> None:
    """Refuses a bottleneck ResNet whose stride lies elsewhere than the file's: shapes are the same, features not.

    Raises:
      UserError: names both.
    """
    if architecture in _BOTTLENECKS and stated.stride_in not in (None, stride_in):
        raise UserError(
            f"config.model.stride_in: {path} was trained with the stride in the {stated.stride_in} convolution, "
            f"but the config says {stride_in!r}; set config.model.stride_in={stated.stride_in!r}"
        )


def normalization(
    stated: Statement, assumed: str, wanted: str, path: str
) -> tuple[Normalization, str]:
    """The normalisation to use, and a note that says where it comes from.

    Args:
      stated: what the file says.
      assumed: the name of what is usual in the file's format, "" where nothing is.
      wanted: "auto", or one of `NORMALIZATIONS`.
      path: for errors.

    Raises:
      UserError: `wanted` is unknown or contradicts the file; or nothing is known.
    """
    if wanted != "auto" and wanted not in NORMALIZATIONS:
        hint = nearest(wanted, ("auto", *NORMALIZATIONS))
        raise UserError(f"config.weights.normalization: {wanted!r} is not known{hint}")
    if stated.normalization is not None:
        if wanted != "auto" and not _same_input(stated.normalization, NORMALIZATIONS[wanted]):
            raise UserError(
                f"config.weights.normalization: {path} states its input as {stated.normalization}, "
                f"but the config says {wanted!r}; set it to 'auto'"
            )
        return (
            stated.normalization,
            f"input normalisation {stated.normalization.name}: stated by the file",
        )
    if wanted != "auto":
        return NORMALIZATIONS[
            wanted
        ], f"input normalisation {wanted}: from the config, the file states none"
    if assumed and not stated.unclear:
        return NORMALIZATIONS[
            assumed
        ], f"input normalisation {assumed}: usual for this format, the file states none"
    says = (
        f"states its input as {stated.unclear!r}"
        if stated.unclear
        else "does not state its input normalisation"
    )
    raise UserError(
        f"config.weights.normalization: {path} {says}; set config.weights.normalization to {', '.join(NORMALIZATIONS)}"
    )


def _normalization(metadata: Mapping[str, str]) -> Normalization | None:
    if text := metadata.get("normalization"):
        fields = json.loads(text)
        return Normalization(fields["name"], _floats(fields["mean"]), _floats(fields["std"]))
    if match := _INPUT.fullmatch(metadata.get("input", "").strip()):
        mean = _floats(match[1].split(","))
        std = _floats(match[2].split(",")) if match[2] else (1.0,) * len(mean)
        found = Normalization("stated", mean, std)
        return next(
            (known for known in NORMALIZATIONS.values() if _same_input(found, known)), found
        )
    return None


def _floats(values: list[str] | list[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _same_input(stated: Normalization, known: Normalization) -> bool:
    known = known.for_channels(len(stated.mean))
    return np.allclose(stated.mean, known.mean, rtol=1e-6) and np.allclose(
        stated.std, known.std, rtol=1e-6
    )
