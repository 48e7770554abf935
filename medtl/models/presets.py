"""The rows of all backbones but the first ResNets and VGGs. Imports no JAX.

Each row is what a family of checkpoints was trained with: sizes, activation, position embeddings,
pooling and input. Two rows may have equal shapes, such as `mae_vitb16` and `dino_vitb16`: the
weights do not show which one they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
MODULES = {
    "vit": ("medtl.models.vit", "ViT"),
    "convnext": ("medtl.models.convnext", "ConvNeXt"),
    "densenet": ("medtl.models.densenet", "DenseNet"),
    "efficientnet": ("medtl.models.efficientnet", "EfficientNet"),
    "resnetv2": ("medtl.models.resnetv2", "ResNetV2"),
}
EFFICIENTNET_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_LARGEST_IMAGE = 2048
_VIT_SIZES = {  # width, depth, heads: Dosovitskiy et al. 2021, arXiv:2010.11929, table 1
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "so400m": (1152, 27, 16),
}
_LETTERS = {"s": "small", "b": "base", "l": "large"}


def groups(family: str, fields: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return group -> top-level parameter names of a complete network, in order of depth.

    The groups are "stem", "layer1", ..., and of some families "norm" or "head" after them.

    Args:
      family: one of `MODULES`.
      fields: of its module; a field that is missing has the module's default.

    >>> list(groups("convnext", {"depths": (3, 3, 9, 3)}).items())[:2]
    [('stem', ('stem_0', 'stem_1')), ('layer1', ('stages_0',))]
    """
    if family == "vit":
        return _vit_groups(**fields)
    depths = fields["depths"]
    numbers = range(len(depths))
    if family == "convnext":
        stages = {f"layer{i + 1}": (f"stages_{i}",) for i in numbers}
        return {"stem": ("stem_0", "stem_1"), **stages, "norm": ("head",)}
    if family == "resnetv2":
        stages = {f"layer{i + 1}": (f"stages_{i}",) for i in numbers}
        return {"stem": ("stem",), **stages, "norm": ("norm",)}
    if family == "densenet":
        dense: dict[str, tuple[str, ...]] = {
            f"layer{i + 1}": (f"transition{i}", f"denseblock{i + 1}") for i in numbers
        }
        dense["layer1"] = ("denseblock1",)
        last = f"layer{len(depths)}"
        return {"stem": ("conv0", "norm0"), **dense, last: (*dense[last], "norm5")}
    blocks = {
        f"layer{i + 1}": tuple(f"blocks_{i}_{j}" for j in range(depth))
        for i, depth in enumerate(depths)
    }
    return {"stem": ("conv_stem", "bn1"), **blocks, "head": ("conv_head", "bn2")}


def kept(
    every: Mapping[str, tuple[str, ...]], last_layer: str, *, family: str
) -> dict[str, tuple[str, ...]]:
    """Return the groups of a network that ends with `last_layer`.

    A transformer keeps its last normalization and its pooling, as the tokens of every layer have
    the same form; the other families lose what follows the last layer.

    Args:
      every: of `groups`.
      last_layer: one of them; "": all are kept.
      family: one of `MODULES`.
    """
    layers = [name for name in every if name.startswith("layer")]
    if last_layer in ("", layers[-1]):
        return dict(every)
    cut = layers[layers.index(last_layer) + 1 :]
    tail = ("norm", "head") if family != "vit" else ()
    return {name: names for name, names in every.items() if name not in (*cut, *tail)}


def _vit_groups(
    *,
    depth: int,
    class_token: bool = True,
    registers: int = 0,
    position: str = "learned",
    pre_norm: bool = False,
    pool: str = "token",
    **_: Any,
) -> dict[str, tuple[str, ...]]:
    optional = {
        "patch_embed": True,
        "cls_token": class_token,
        "reg_token": registers > 0,
        "pos_embed": position == "learned",
        "norm_pre": pre_norm,
    }
    return {
        "stem": tuple(name for name, is_there in optional.items() if is_there),
        **{f"layer{i + 1}": (f"blocks_{i}",) for i in range(depth)},
        "norm": ("norm", "attn_pool") if pool == "attention" else ("norm",),
    }


def rows() -> dict[str, Row]:
    """Return name -> the fields of its `architectures.Architecture`."""
    return {**_augreg(), **_dino(), **_language(), **_convolutional(), **_residual()}


def _vit(
    size: str, patch: int, pixels: int, usual_input: str, *, pool: str = "token", **settings: Any
) -> Row:
    width, depth, heads = _VIT_SIZES[size]
    other = "attention" if pool == "attention" else "token"
    return {
        "family": "vit",
        "depths": (1,) * depth,
        "widths": (width,) * depth,
        "settings": {"width": width, "depth": depth, "heads": heads, "patch": patch, **settings},
        "options": {"size": pixels, "pool": pool},
        "choices": {
            "size": range(patch, _LARGEST_IMAGE + 1, patch),
            "pool": (other, "mean"),
        },
        "usual_input": usual_input,
    }


def _augreg() -> dict[str, Row]:
    """Supervised and masked training at 224 px: ViT (augreg), DeiT, MAE (arXiv:2111.06377)."""
    table = {}
    for size in ("tiny", "small", "base", "large"):
        table[f"vit_{size}_patch16"] = _vit(size, 16, 224, "inception")
    for size in ("tiny", "small", "base"):
        table[f"deit_{size}_patch16"] = _vit(size, 16, 224, "torchvision")
    for letter in ("b", "l"):
        table[f"mae_vit{letter}16"] = _vit(_LETTERS[letter], 16, 224, "torchvision")
    return table


def _dino() -> dict[str, Row]:
    """DINO (arXiv:2104.14294), DINOv2 (2304.07193), registers (2309.16588), DINOv3 (2508.10104)."""
    table: dict[str, Row] = {}
    for letter, patch in (("s", 16), ("s", 8), ("b", 16), ("b", 8)):
        table[f"dino_vit{letter}{patch}"] = _vit(
            _LETTERS[letter], patch, 224, "dino", resize_offset=0.1
        )
    for letter, size in _LETTERS.items():
        table[f"dinov2_vit{letter}14"] = _vit(
            size, 14, 518, "dino", layer_scale=True, resize_offset=0.1
        )
        table[f"dinov2_vit{letter}14_reg"] = _vit(
            size, 14, 518, "dino", layer_scale=True, registers=4, antialias=True
        )
    third: dict[str, Any] = dict(
        layer_scale=True, registers=4, position="rope", key_bias=False, norm_epsilon=1e-5
    )
    for letter, size in _LETTERS.items():
        table[f"dinov3_vit{letter}16"] = _vit(size, 16, 224, "dino", **third)
    table["dinov3_vits16plus"] = _vit("small", 16, 224, "dino", **third, gated=True)
    for name in (n for n in table if n.startswith("dinov3")):
        del table[name]["options"]["size"], table[name]["choices"]["size"]  # any size is native
    return table


def _language() -> dict[str, Row]:
    """The image towers of CLIP (arXiv:2103.00020) and SigLIP (2303.15343)."""
    clip: dict[str, Any] = dict(
        pre_norm=True, patch_bias=False, activation="quick_gelu", norm_epsilon=1e-5
    )
    siglip: dict[str, Any] = dict(class_token=False, activation="gelu_tanh", pool="attention")
    return {
        "clip_vitb32": _vit("base", 32, 224, "clip", **clip),
        "clip_vitb16": _vit("base", 16, 224, "clip", **clip),
        "clip_vitl14": _vit("large", 14, 224, "clip", **clip),
        "siglip_vitb16": _vit("base", 16, 224, "siglip", **siglip),
        "siglip_vitl16": _vit("large", 16, 256, "siglip", **siglip),
        "siglip_so400m14": _vit("so400m", 14, 224, "siglip", **siglip, mlp_width=4304),
    }


def _convolutional() -> dict[str, Row]:
    """ConvNeXt (arXiv:2201.03545), DenseNet (1608.06993), EfficientNet (1905.11946)."""
    table: dict[str, Row] = {}
    for name, depths, width in (
        ("tiny", (3, 3, 9, 3), 96),
        ("small", (3, 3, 27, 3), 96),
        ("base", (3, 3, 27, 3), 128),
    ):
        widths = tuple(width * 2**i for i in range(4))
        table[f"convnext_{name}"] = _row("convnext", depths, widths)
    for name, depths, widths in (
        ("121", (6, 12, 24, 16), (256, 512, 1024, 1024)),
        ("169", (6, 12, 32, 32), (256, 512, 1280, 1664)),
    ):
        row = _row("densenet", depths, widths)
        table[f"densenet{name}"] = {
            **row, "settings": {"depths": depths}, "prefix": "features.",
        }  # fmt: skip
    widths = (16, 24, 40, 80, 112, 192, 320)
    for name, lite in (("efficientnet_lite0", True), ("efficientnet_b0", False)):
        row = _row("efficientnet", EFFICIENTNET_DEPTHS, widths)
        usual = "lite" if lite else "torchvision"
        settings = {**row["settings"], "lite": lite}
        table[name] = {**row, "settings": settings, "usual_input": usual, "epsilon": 1e-3}
    return table


def _residual() -> dict[str, Row]:
    """ResNet-D (1812.01187), ResNeXt (1611.05431), Wide ResNet (1605.07146), BiT (1912.11370).

    The names are timm's, which agree with torchvision's.
    """
    depths = {
        18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }  # fmt: skip
    pooled: dict[str, Any] = dict(deep_stem=True, pool_shortcut=True)
    named: list[tuple[str, int, dict[str, Any]]] = [(f"resnet{n}d", n, pooled) for n in depths]
    for n, groups, width in ((50, 32, 4), (101, 32, 4), (101, 32, 8), (101, 64, 4)):
        row = dict(cardinality=groups, base_width=width)
        named.append((f"resnext{n}_{groups}x{width}d", n, row))
    named.append(("resnext50d_32x4d", 50, {**pooled, "cardinality": 32, "base_width": 4}))
    named += [(f"wide_resnet{n}_2", n, dict(base_width=128)) for n in (50, 101)]
    table: dict[str, Row] = {}
    for name, n, settings in named:
        bottleneck = n not in (18, 34)
        widths = tuple((256 if bottleneck else 64) * 2**i for i in range(4))
        row = _row("resnet", depths[n], widths)
        table[name] = {**row, "settings": settings, "bottleneck": bottleneck}
    for n, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4)):
        row = _row("resnetv2", depths[n], tuple(256 * factor * 2**i for i in range(4)))
        table[f"resnetv2_{n}x{factor}_bit"] = {**row, "usual_input": "inception"}
    return table


def _row(family: str, depths: Sequence[int], widths: Sequence[int]) -> dict[str, Any]:
    settings = {"depths": depths, "widths": widths}
    return {"family": family, "depths": depths, "widths": widths, "settings": settings}
