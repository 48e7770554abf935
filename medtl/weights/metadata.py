"""The metadata of a weight file: the input that it expects, its strides, its BatchNorm epsilon.

A config that contradicts the file is an error, and so is a file without an input normalization
where the config has none either.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping

import numpy as np

from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS, Normalization, parse_normalization
from medtl.models.architectures import NAMES, Architecture

TORCH_EPSILON = 1e-5
_TRIPLE = r"\(([^()]*)\)"
_INPUT = re.compile(rf"RGB 0-255 minus {_TRIPLE}, (?:no scaling|divided by {_TRIPLE})")
_STRIDE = re.compile(r"stride in the (?:first )?([13]x[13])")


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The metadata of a weight file; None where the file has none.

    Attributes:
      architecture: one of `medtl.models.NAMES`.
      stride_in: "3x3" or "1x1".
      normalization: the input of its training.
      unclear_input: the file's text about its input where that cannot be parsed, else "".
      epsilon: of BatchNorm.
    """

    architecture: str | None = None
    stride_in: str | None = None
    normalization: Normalization | None = None
    unclear_input: str = ""
    epsilon: float | None = None


def read(texts: Mapping[str, str], path: str) -> Metadata:
    """Parse the keys that `weights.export` writes, or `input` and `variant` in prose.

    Args:
      texts: the file's metadata.
      path: the file, for errors.

    Raises:
      UserError: a key of `weights.export` cannot be parsed.
    """
    architecture = texts.get("architecture")
    variant = _STRIDE.search(texts.get("variant", ""))
    try:
        normalization = _normalization(texts)
        return Metadata(
            architecture=architecture if architecture in NAMES else None,
            stride_in=texts.get("stride_in") or (variant[1] if variant else None),
            normalization=normalization,
            unclear_input=texts.get("input", "") if normalization is None else "",
            epsilon=float(texts["bn_eps"]) if "bn_eps" in texts else None,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"config.weights.path: the metadata of {path} cannot be understood ({error!r})"
        ) from error


def normalization_text(normalization: Normalization) -> str:
    """Return JSON from which `read` restores the same numbers."""
    return json.dumps(dataclasses.asdict(normalization))


def check_stride(metadata: Metadata, architecture: Architecture | None, path: str) -> None:
    """Refuse a bottleneck ResNet whose stride is not where the file's is.

    The shapes are the same, the features are not.

    Raises:
      UserError: names both.
    """
    configured = architecture.options.get("stride_in") if architecture else None
    if architecture and configured and metadata.stride_in not in (None, configured):
        right = dataclasses.replace(architecture, options={"stride_in": metadata.stride_in})
        raise UserError(
            f"config.model.name: {path} was trained with the stride in the {metadata.stride_in} "
            f"convolution, not in the {configured}; set config.model.name={right.text!r}"
        )


def choose_normalization(
    metadata: Metadata, usual: str, configured: str, path: str
) -> tuple[Normalization, str]:
    """Return the input normalization, and a note about its origin.

    Args:
      metadata: the file's.
      usual: the name of the usual one in the file's format, "" where there is none.
      configured: "auto", or as `examples.parse_normalization` takes it.
      path: the file, for errors.

    Raises:
      UserError: `configured` is unknown or contradicts the file; or there is none at all.
    """
    key = "config.weights.normalization"
    given = None if configured == "auto" else parse_normalization(configured, key=key)
    stated = metadata.normalization
    if stated is not None:
        if given is not None and not _is_same_input(stated, given):
            raise UserError(
                f"{key}: {path} states its input as {stated}, "
                f"but the config has {configured!r}; set it to 'auto'"
            )
        return stated, f"input normalization {stated.name}: stated by the file"
    if given is not None:
        note = f"input normalization {configured}: from the config, the file states none"
        return given, note
    if usual and not metadata.unclear_input:
        note = (
            f"input normalization {usual}: assumed, as the file states none; {key} can give another"
        )
        return NORMALIZATIONS[usual], note
    reason = (
        f"states its input as {metadata.unclear_input!r}"
        if metadata.unclear_input
        else "does not state its input normalization"
    )
    raise UserError(
        f"{key}: {path} {reason}; set {key} to {', '.join(NORMALIZATIONS)} or 'mean(...) std(...)'"
    )


def _normalization(texts: Mapping[str, str]) -> Normalization | None:
    if text := texts.get("normalization"):
        fields = json.loads(text)
        return Normalization(fields["name"], _floats(fields["mean"]), _floats(fields["std"]))
    if match := _INPUT.fullmatch(texts.get("input", "").strip()):
        mean = _floats(match[1].split(","))
        std = _floats(match[2].split(",")) if match[2] else (1.0,) * len(mean)
        return named(Normalization("stated", mean, std))
    return None


def named(stated: Normalization) -> Normalization:
    """Return the normalization of the table with the same numbers, or else the given one."""
    rows = (row for row in NORMALIZATIONS.values() if _is_same_input(stated, row))
    return next(rows, stated)


def _floats(values: list[str] | list[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _is_same_input(stated: Normalization, named: Normalization) -> bool:
    named = named.for_channels(len(stated.mean))
    return np.allclose(stated.mean, named.mean, rtol=1e-6) and np.allclose(
        stated.std, named.std, rtol=1e-6
    )
