"""The backbones of keras.applications, in eval mode on the same random weights."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from random_variables import random_variables, relative_error

from medtl import models

keras = pytest.importorskip("keras")

EPSILON = 1.001e-5  # keras.applications' BatchNormalization


def resnet_names(layer: str) -> str:
    """("conv3_block1_0_bn") -> "layer2_0/downsample_1"."""
    if layer.startswith("conv1_"):
        return layer.removeprefix("conv1_").replace("conv", "conv1").replace("bn", "bn1")
    number, block, index, kind = re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer).groups()
    inner = f"{kind}{index}" if index != "0" else f"downsample_{0 if kind == 'conv' else 1}"
    return f"layer{int(number) - 1}_{int(block) - 1}/{inner}"


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_resnet(name):
    """Keras's convolutions have biases; ours do not: the next BatchNorm's running mean has them."""
    build = {"resnet50": "ResNet50", "resnet101": "ResNet101", "resnet152": "ResNet152"}[name]
    net = getattr(keras.applications, build)(
        weights=None, include_top=False, input_shape=(65, 65, 3)
    )
    module = models.backbone(f"{name}(stride_in='1x1')", epsilon=EPSILON)()
    variables = random_variables(module, (65, 65, 3))
    flat = traverse_util.flatten_dict(variables, sep="/")
    rng = np.random.default_rng(2)
    biases = {}
    for layer in net.layers:
        if not layer.weights:
            continue
        path = resnet_names(layer.name)
        if layer.name.endswith("conv"):
            bias = 0.1 * rng.standard_normal(layer.filters).astype(np.float32)
            layer.set_weights([flat.pop(f"params/{path}/kernel"), bias])
            biases[layer.name.removesuffix("conv")] = bias
        else:
            mean = flat.pop(f"batch_stats/{path}/mean") + biases[layer.name.removesuffix("bn")]
            params = [flat.pop(f"params/{path}/{leaf}") for leaf in ("scale", "bias")]
            layer.set_weights([*params, mean, flat.pop(f"batch_stats/{path}/var")])
    assert not flat
    check(module, variables, net, 65)


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_vgg(name):
    net = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}[name](
        weights=None, include_top=False, input_shape=(65, 65, 3)
    )
    module = models.backbone(name)()
    variables = random_variables(module, (65, 65, 3))
    convs = [layer for layer in net.layers if layer.weights]
    ours = sorted(variables["params"], key=lambda layer: int(layer.removeprefix("features_")))
    for layer, path in zip(convs, ours, strict=True):
        layer.set_weights([variables["params"][path]["kernel"], variables["params"][path]["bias"]])
    check(module, variables, net, 65)


def check(module, variables, net, px):
    images = np.random.default_rng(1).standard_normal((2, px, px, 3), np.float32)
    expected = np.asarray(net(images, training=False))
    error = relative_error(module.apply(variables, jnp.asarray(images), False), expected)
    print(f"{net.name}: {error:.1e}")
    assert error < 1e-4
