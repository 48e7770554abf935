"""What is known of a backbone from its name: stages, features, parameter names. Imports no JAX.

A stage is what `model.stages` counts and `stage.freeze` freezes: `layer1` .. `layer4` of a ResNet (`layer1` .. `layer3` of the
CIFAR ones), and in a VGG the convolutions up to and with a max pooling. Names and numbering are torchvision's, with the
numbers joined by "_": `layer1.0.conv1` is `layer1_0/conv1`.
"""

from __future__ import annotations

import dataclasses

from medtl.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One backbone.

    Attributes:
      family: "resnet", "cifar_resnet" or "vgg".
      depths: residual blocks (ResNet) or convolutions (VGG) in each stage.
      features: channels after each stage.
      bottleneck: ResNet: blocks of 1x1, 3x3, 1x1 instead of two 3x3.
      batch_norm: whether it has BatchNorm.
    """

    family: str
    depths: tuple[int, ...]
    features: tuple[int, ...]
    bottleneck: bool = False
    batch_norm: bool = True


_BASIC = (64, 128, 256, 512)
_BOTTLENECK = (256, 512, 1024, 2048)
_VGG = (64, 128, 256, 512, 512)
_VGG_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}

ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture("resnet", (2, 2, 2, 2), _BASIC),
    "resnet34": Architecture("resnet", (3, 4, 6, 3), _BASIC),
    "resnet50": Architecture("resnet", (3, 4, 6, 3), _BOTTLENECK, bottleneck=True),
    "resnet101": Architecture("resnet", (3, 4, 23, 3), _BOTTLENECK, bottleneck=True),
    "resnet152": Architecture("resnet", (3, 8, 36, 3), _BOTTLENECK, bottleneck=True),
    **{
        f"cifar_resnet{depth}": Architecture("cifar_resnet", ((depth - 2) // 6,) * 3, (16, 32, 64))
        for depth in (20, 32, 44, 56, 110)
    },
    **{
        name: Architecture("vgg", depths, _VGG, batch_norm=False)
        for name, depths in _VGG_DEPTHS.items()
    },
    **{f"{name}_bn": Architecture("vgg", depths, _VGG) for name, depths in _VGG_DEPTHS.items()},
}
NAMES: tuple[str, ...] = tuple(ARCHITECTURES)
CLASSIFIER_FEATURES = 4096
STRIDES_IN = ("3x3", "1x1")


def architecture(name: str) -> Architecture:
    """The backbone of that name.

    Raises:
      UserError: there is none; names the nearest.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"config.model.name: there is no backbone {name!r}{nearest(name, NAMES)}")
    return ARCHITECTURES[name]


def check(
    name: str, stages: int = 0, stride_in: str = "3x3", *, classifier: bool = False
) -> Architecture:
    """The backbone of that name, if it can be had with these options.

    Args:
      name: one of `NAMES`.
      stages: keep the first n stages; 0 keeps all.
      stride_in: "3x3", or "1x1" for a bottleneck ResNet.
      classifier: VGG: with its two hidden fully connected layers.

    Raises:
      UserError: names the config key at fault and what it can be.
    """
    known = architecture(name)
    if not 0 <= stages <= len(known.depths):
        raise UserError(
            f"config.model.stages: {name} has stages 1..{len(known.depths)} (0: all), not {stages}"
        )
    if stride_in not in STRIDES_IN:
        raise UserError(
            f"config.model.stride_in: {stride_in!r} is not known; it can be '3x3' or '1x1'"
        )
    if stride_in == "1x1" and not known.bottleneck:
        raise UserError(
            f"config.model.stride_in: {name} has no 1x1 convolution to stride in; it must be '3x3'"
        )
    if classifier and known.family != "vgg":
        raise UserError(
            f"model: {name} has no fully connected layers before its head; only a VGG has"
        )
    if classifier and stages not in (0, len(known.depths)):
        raise UserError(
            f"config.model.stages: the fully connected layers of {name} follow its last stage, not {stages}"
        )
    return known


def features(name: str, stages: int = 0, *, classifier: bool = False) -> int:
    """Channels of the map that the backbone returns, e.g. 1024 for the first 3 stages of resnet50."""
    known = check(name, stages, classifier=classifier)
    return CLASSIFIER_FEATURES if classifier else known.features[stages - 1]  # stages 0: the last


def vgg_layers(name: str) -> tuple[tuple[int, ...], ...]:
    """For each stage of a VGG, the i of the convolutions `features_<i>`; a BatchNorm's i is its convolution's plus 1.

    torchvision counts every layer: convolution, BatchNorm where there is one, ReLU, and the pooling that ends a stage.
    """
    known = architecture(name)
    step = 3 if known.batch_norm else 2
    stages, first = [], 0
    for depth in known.depths:
        stages.append(tuple(range(first, first + depth * step, step)))
        first += depth * step + 1
    return tuple(stages)


def freeze_prefixes(name: str, n: int) -> tuple[str, ...]:
    """The top-level names in `params` (and `batch_stats`) of the stem and the first n stages.

    They are whole names, the first component of a parameter's path: `features_1` is not `features_10`. A VGG has no stem.

    Raises:
      UserError: n is not a stage of this backbone.
    """
    known = architecture(name)
    if not 1 <= n <= len(known.depths):
        raise UserError(f"freeze: {name} has stages 1..{len(known.depths)}, not {n}")
    if known.family == "vgg":
        kinds = (0, 1) if known.batch_norm else (0,)
        return tuple(
            f"features_{i + kind}"
            for stage in vgg_layers(name)[:n]
            for i in stage
            for kind in kinds
        )
    blocks = [
        f"layer{stage}_{i}" for stage, depth in enumerate(known.depths[:n], 1) for i in range(depth)
    ]
    return ("conv1", "bn1", *blocks)
