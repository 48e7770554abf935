"""The table of backbones: layers, widths, options and parameter names. Imports no JAX.

The rows of transformers and of all later networks are in `presets`.

A layer is what `model.last_layer` keeps and `freeze` freezes, by torchvision's name: `layer1` to
`layer4` of a ResNet, `layer1` to `layer3` of a CIFAR ResNet. The layers of a VGG, which have no
name there, are `block1` to `block5`: convolutions up to and with a max pooling. Those of the other
networks are `layer1`, ...: blocks of a transformer, stages of a convolutional network. Parameters
have the names of torchvision or timm, numbers joined by "_": `layer1.0.conv1` is `layer1_0/conv1`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from medtl import plugins
from medtl.errors import UserError, nearest
from medtl.models import presets

CLASSIFIER_WIDTH = 4096
STEMS = (
    "conv1", "conv1_0", "features_0", "patch_embed.proj", "stem_0", "stem.conv", "conv0",
    "conv_stem",
)  # fmt: skip
"""The names that the first convolution can have."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One backbone.

    Attributes:
      name: as the config names it, e.g. "resnet50".
      family: "resnet", "cifar_resnet", "vgg", or one of `presets.MODULES`.
      depths: residual blocks (ResNet) or convolutions (VGG) of each layer.
      widths: output channels of each layer.
      bottleneck: ResNet: blocks of 1x1, 3x3, 1x1 convolutions instead of two 3x3.
      batch_norm: whether it has BatchNorm.
      options: option -> value. `stride_in` of a bottleneck ResNet is the convolution that takes
        the stride, "3x3" (torchvision, v1.5) or "1x1" (MSRA, Keras, v1). `classifier` of a VGG
        goes on through its two hidden fully connected layers. `size` of a transformer is the image
        size of its position embeddings in the weight file, `pool` how the tokens are pooled.
      choices: option -> the values that it can have.
      settings: further fields of the module.
      usual_input: the usual input normalization of its weights, "" for that of the file's format.
      epsilon: of BatchNorm where a file states none.
      prefix: of all names in the original's state_dict.
    """

    name: str
    family: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool = False
    batch_norm: bool = True
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    choices: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict, hash=False)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    usual_input: str = ""
    epsilon: float = 1e-5
    prefix: str = ""

    @property
    def text(self) -> str:
        """The plug-in string, with the options that differ from their defaults."""
        usual = ARCHITECTURES[self.name].options
        changed = [f"{k}={v!r}" for k, v in self.options.items() if v != usual[k]]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names in order of depth."""
        kind = "block" if self.family == "vgg" else "layer"
        return tuple(f"{kind}{i}" for i in range(1, len(self.depths) + 1))

    @property
    def module(self) -> tuple[str, str]:
        """The module and the class that build it."""
        if self.family == "vgg":
            return "medtl.models.vgg", "VGG"
        if self.family in presets.MODULES:
            return presets.MODULES[self.family]
        return "medtl.models.resnet", "ResNet"

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the class that this architecture sets."""
        if self.family in presets.MODULES:
            return {**self.settings, **self.options}
        if self.family == "vgg":
            specific: dict[str, Any] = {"batch_norm": self.batch_norm}
        else:
            specific = {"bottleneck": self.bottleneck, "cifar": self.family == "cifar_resnet"}
        shape = {"depths": self.depths, "widths": self.widths}
        return {**shape, **specific, **self.settings, **self.options}

    def groups(self, last_layer: str = "") -> dict[str, tuple[str, ...]]:
        """Return the top-level parameter names of each group, in order of depth.

        The groups are "stem" (not of VGGs), the layers, and what follows them: "classifier" (a
        VGG's fully connected layers), "norm" or "head". Names are first components of a path:
        `features_1` is not `features_10`.

        Args:
          last_layer: the last layer that is kept; "": all are.

        Raises:
          UserError: there is no such layer, or the fully connected layers do not follow it.

        >>> parse("cifar_resnet20").groups("layer1")
        {'stem': ('conv1', 'bn1'), 'layer1': ('layer1_0', 'layer1_1', 'layer1_2')}
        """
        if last_layer and last_layer not in self.layers:
            raise UserError(
                f"config.model.last_layer: {self.name} has no layer {last_layer!r}; "
                f"it can be {', '.join(self.layers)}, or '' for all"
            )
        if self.options.get("classifier") and last_layer not in ("", self.layers[-1]):
            raise UserError(
                f"config.model.last_layer: the fully connected layers of {self.name} follow "
                f"{self.layers[-1]}, not {last_layer}"
            )
        if self.family in presets.MODULES:
            every = presets.groups(self.family, self.fields)
            return presets.kept(every, last_layer, family=self.family)
        kept = self.layers[: self.layers.index(last_layer) + 1] if last_layer else self.layers
        if self.family == "vgg":
            kinds = (0, 1) if self.batch_norm else (0,)  # a BatchNorm follows its convolution
            groups = {
                layer: tuple(f"features_{i + kind}" for i in convs for kind in kinds)
                for layer, convs in zip(
                    kept, vgg_convs(self.depths, batch_norm=self.batch_norm), strict=False
                )
            }
            if self.options.get("classifier"):
                groups["classifier"] = ("classifier_0", "classifier_3")
            return groups
        convs: tuple[str, ...] = ("conv1",)
        if self.settings.get("deep_stem"):
            convs = tuple(f"conv1_{i}" for i in (0, 1, 3, 4, 6))  # also their BatchNorms
        return {
            "stem": (*convs, "bn1"),
            **{
                layer: tuple(f"{layer}_{i}" for i in range(depth))
                for layer, depth in zip(kept, self.depths, strict=False)
            },
        }

    def prefixes(self, layer: str) -> tuple[str, ...]:
        """Return the top-level parameter names of one group; see `groups`."""
        return self.groups()[layer]


def parse(text: str, *, key: str = "config.model.name") -> Architecture | None:
    """Return the architecture that a plug-in string names, or None for a user's own module.

    Args:
      text: a name of the table with options, or "file.py:Net(width=8)", "package.module:Net".
      key: the config's key, for errors.

    Raises:
      UserError: there is no such backbone (names the nearest), or not with these options.

    >>> parse("resnet50(stride_in='1x1')").options
    {'stride_in': '1x1'}
    >>> parse("net.py:Net(width=8)") is None
    True
    """
    spec = plugins.parse(text, key=key)
    if spec.module:
        return None
    if spec.name not in ARCHITECTURES:
        raise UserError(
            f"{key}: there is no backbone {spec.name!r}{nearest(spec.name, ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[spec.name]
    if spec.args:
        raise UserError(
            f"{key}: {text!r} must name its options, like \"resnet50(stride_in='1x1')\""
        )
    for option, value in spec.kwargs.items():
        if option not in architecture.options:
            hint = nearest(option, architecture.options) or "; it has none"
            raise UserError(f"{key}: {spec.name} has no option {option!r}{hint}")
        allowed = architecture.choices[option]
        if value not in allowed:
            several = f"a multiple of {allowed.step}" if isinstance(allowed, range) else ""
            wanted = several or " or ".join(map(repr, allowed))
            raise UserError(f"{key}: {option} of {spec.name} is {value!r}; it can be {wanted}")
    return dataclasses.replace(architecture, options={**architecture.options, **spec.kwargs})


def vgg_convs(depths: Sequence[int], *, batch_norm: bool) -> tuple[tuple[int, ...], ...]:
    """Return the i of the convolutions `features_<i>` of each layer of a VGG.

    torchvision counts every operation: convolution, BatchNorm where there is one, ReLU, and the
    pooling that ends a layer.

    >>> vgg_convs((1, 2), batch_norm=False)
    ((0,), (3, 5))
    """
    step = 3 if batch_norm else 2
    layers, first = [], 0
    for depth in depths:
        layers.append(tuple(range(first, first + depth * step, step)))
        first += depth * step + 1
    return tuple(layers)


def _table() -> dict[str, Architecture]:
    basic, bottleneck = (64, 128, 256, 512), (256, 512, 1024, 2048)
    vgg = (64, 128, 256, 512, 512)
    stride: dict[str, Any] = {
        "options": {"stride_in": "3x3"},
        "choices": {"stride_in": ("3x3", "1x1")},
    }
    rows = [
        Architecture("resnet18", "resnet", (2, 2, 2, 2), basic),
        Architecture("resnet34", "resnet", (3, 4, 6, 3), basic),
        Architecture("resnet50", "resnet", (3, 4, 6, 3), bottleneck, True, **stride),
        Architecture("resnet101", "resnet", (3, 4, 23, 3), bottleneck, True, **stride),
        Architecture("resnet152", "resnet", (3, 8, 36, 3), bottleneck, True, **stride),
    ]
    for depth in (20, 32, 44, 56, 110):
        blocks = (depth - 2) // 6
        rows.append(
            Architecture(f"cifar_resnet{depth}", "cifar_resnet", (blocks,) * 3, (16, 32, 64))
        )
    for suffix in ("", "_bn"):
        for depth, convs in (
            (11, (1, 1, 2, 2, 2)),
            (13, (2,) * 5),
            (16, (2, 2, 3, 3, 3)),
            (19, (2, 2, 4, 4, 4)),
        ):
            rows.append(
                Architecture(
                    f"vgg{depth}{suffix}",
                    "vgg",
                    convs,
                    vgg,
                    batch_norm=bool(suffix),
                    options={"classifier": False},
                    choices={"classifier": (False, True)},
                )
            )
    rows += [Architecture(name, **row) for name, row in presets.rows().items()]
    return {row.name: row for row in rows}


ARCHITECTURES: dict[str, Architecture] = _table()
NAMES: tuple[str, ...] = tuple(ARCHITECTURES)
