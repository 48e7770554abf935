"""The fields of images: how files are shown, what is accepted, and augmentation. Imports no JAX."""

from __future__ import annotations

from medtl.config.rules import UNIQUE, Field, Node, PluginString, Rule, at_least, between, each
from medtl.data.values import CHECKS, FileRules, is_window

_WINDOW = Rule("(), or low and high, both numbers or both percentiles", is_window)
_ALLOWED = each(f"names among {', '.join(CHECKS)}", CHECKS.__contains__)

IMAGES: dict[str, Node] = {
    "window": Field(
        (),
        "The values that are black and white in images of more than 8 bits, in the file's units or"
        ' percentiles: (-1000, 400), ("1%", "99%"). (): as the file states, else it is refused.',
        _WINDOW,
    ),
    "max_pixels": Field(
        FileRules.max_pixels,
        "The most pixels that are decoded at once: of a JPEG at reduced size, of a pyramid at its"
        " smallest sufficient level. Larger PNGs and TIFFs are reduced in strips, up to 100 times"
        " this; others are refused.",
        at_least(1),
    ),
    "inspect_images": Field(
        4, "Images of each class and split on the page of --mode=inspect; 0: none.", at_least(0)
    ),
    "allow": Field((), "Findings to accept; the report repeats them.", _ALLOWED, UNIQUE),
}

AUGMENT: dict[str, Node] = {
    "crop": Field(
        1.0,
        "Random resized crop: the least area, as a share of the image; 1: none.",
        Rule("above 0 and at most 1", lambda value: 0 < value <= 1),
    ),
    "flip": Field(True, "Flip left and right with probability 1/2."),
    "rotation": Field(
        0.0, "Rotate by uniformly random degrees of at most this.", between(0, 180, " degrees")
    ),
    "brightness": Field(0.0, "Shift by at most this share of the range 0..255.", between(0, 1)),
    "contrast": Field(0.0, "Multiply by a factor in 1 - contrast .. 1 + contrast.", between(0, 1)),
    "noise": Field(0.0, "Standard deviation of noise, a share of 0..255.", between(0, 1)),
    "mix": Field(
        "",
        "Mix each training example with another of its domain: mixup(alpha=0.2), cutmix(alpha=1.0)"
        " or a function of yours; empty: off.",
        PluginString("medtl.training.mixing", optional=True),
    ),
    "extra": Field(
        (),
        "Augmentations of your own, applied in order: (key, image) -> image.",
        PluginString(),
    ),
}
