"""The later backbones against plain PyTorch: features, running statistics, gradients."""

from __future__ import annotations

import pytest

from medtl import models
from medtl.models.convnext import ConvNeXt
from medtl.models.densenet import DenseNet
from medtl.models.vit import ViT

torch = pytest.importorskip("torch")
import torch_later  # noqa: E402
from equal_weights import compare  # noqa: E402

CASES = {
    "dinov2": (
        lambda: torch_later.Dinov2(32, 2, 2, 8, 4, 3),
        lambda: ViT(32, 2, 2, 8, 32, layer_scale=True, registers=3, antialias=True),
        24,
    ),
    "convnext": (
        lambda: torch_later.ConvNext((1, 1, 2, 1), (8, 16, 24, 32)),
        lambda: ConvNeXt((1, 1, 2, 1), (8, 16, 24, 32)),
        97,
    ),
    "densenet": (
        lambda: torch_later.densenet((2, 2, 3, 2), 8, 16),
        lambda: DenseNet((2, 2, 3, 2), growth=8, stem=16),
        75,
    ),
    "efficientnet_lite0": (torch_later.Lite0, models.backbone("efficientnet_lite0"), 65),
}


@pytest.mark.parametrize("name", CASES)
def test_features_statistics_and_gradients(name, tmp_path):
    """No size is native: odd maps show padding, a smaller grid the interpolation of positions.

    Lite0's gradient is left out: rounding flips some of its ReLU6. In float64 (jax_enable_x64,
    33 px) it agrees to 2e-9.
    """
    net, module, px = CASES[name]
    net = net()
    lite = "lite" in name
    errors = compare(net, module(), tmp_path, px=px, features=net, batch=4, gradient=not lite)
    print(name, errors)
    assert errors.evaluation < 1e-5
    assert errors.training < 1e-4
    assert errors.statistics < 1e-4
    assert errors.gradient < 1e-3
