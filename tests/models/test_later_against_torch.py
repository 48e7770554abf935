"""The later backbones against plain PyTorch: features, running statistics, gradients."""

from __future__ import annotations

import pytest

from medtl.models.convnext import ConvNeXt
from medtl.models.densenet import DenseNet
from medtl.models.efficientnet import EfficientNet
from medtl.models.resnet import ResNet
from medtl.models.resnetv2 import ResNetV2
from medtl.models.vit import ViT

torch = pytest.importorskip("torch")
import torch_later  # noqa: E402
from equal_weights import compare  # noqa: E402

RESIDUAL = dict(depths=(1, 2, 1), widths=(256, 512, 1024), bottleneck=True)
LITE = dict(depths=(1, 1, 2, 1, 2, 1, 1), widths=(16, 24, 40, 80, 112, 192, 320))
POOLED = dict(deep_stem=True, pool_shortcut=True)
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
    "resnext_d": (
        lambda: torch_later.resnet((1, 2, 1), 32, 4, is_d=True),
        lambda: ResNet(**RESIDUAL, cardinality=32, base_width=4, **POOLED),
        37,
    ),
    "wide_resnet": (
        lambda: torch_later.resnet((1, 2, 1), base=128),
        lambda: ResNet(**RESIDUAL, base_width=128),
        37,
    ),
    "bit": (
        lambda: torch_later.Bit((1, 2, 1), (128, 256, 256)),
        lambda: ResNetV2((1, 2, 1), (128, 256, 256)),
        69,
    ),
    "efficientnet_lite": (
        lambda: torch_later.Lite0(LITE["depths"]),
        lambda: EfficientNet(**LITE, lite=True, epsilon=1e-3),
        33,
    ),
}
FLIPPING = ("efficientnet_lite", "resnext_d", "wide_resnet")  # ReLUs; their gradients in float64


SLOW = pytest.param("efficientnet_lite", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [*(n for n in CASES if n != "efficientnet_lite"), SLOW])
def test_features_statistics_and_gradients(name, tmp_path):
    """No size is native: odd maps show padding, a smaller grid the interpolation of positions."""
    net, module, px = CASES[name]
    net = net()
    errors = compare(net, module(), tmp_path, px=px, features=net, batch=4, exact=name in FLIPPING)
    print(name, errors)
    assert errors.evaluation < 1e-5
    assert errors.training < 1e-4
    assert errors.statistics < 1e-4
    assert errors.gradient < (1e-6 if name in FLIPPING else 1e-3)
