"""Names, shapes and the guess of the architecture, over every backbone there is."""

import jax
import numpy as np
import pytest

from medtl import models, weights
from medtl.errors import UserError
from medtl.weights import naming


def _torch_shapes(variables):
    return {name: leaf.torch_shape for name, leaf in naming.leaves(variables).items()}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("params", "conv1", "kernel"), "conv1.weight"),
        (("params", "layer1_0", "downsample_0", "kernel"), "layer1.0.downsample.0.weight"),
        (("params", "layer3_22", "bn1", "scale"), "layer3.22.bn1.weight"),
        (("batch_stats", "layer1_0", "bn1", "mean"), "layer1.0.bn1.running_mean"),
        (("batch_stats", "features_1", "var"), "features.1.running_var"),
        (("params", "classifier_3", "bias"), "classifier.3.bias"),
    ],
)
def test_torchvision_name(path, name):
    assert naming.torch_name(path) == name


def test_a_variable_without_counterpart_is_refused():
    with pytest.raises(UserError, match="params/attention/query"):
        naming.torch_name(("params", "attention", "query"))


@pytest.mark.parametrize("name", models.NAMES)
def test_guess_names_the_architectures_that_have_these_variables(name, shapes):
    """Checkpoints with equal shapes cannot be told apart, such as ViT-B/16 of DINO and of MAE."""
    variables = shapes(name)
    tensors = _torch_shapes(variables)
    assert len(tensors) == len(jax.tree.leaves(variables))
    found = naming.guess(tensors)
    assert name in found
    family = models.parse(name).family
    assert found == tuple(
        other
        for other in models.NAMES
        if models.parse(other).family == family and _torch_shapes(shapes(other)) == tensors
    )


def test_guess_of_a_cut_file_names_all_that_begin_so(shapes):
    assert naming.guess(_torch_shapes(shapes("resnet50", last_layer="layer2"))) == (
        "resnet50",
        "resnet101",
    )
    assert naming.guess(_torch_shapes(shapes("vgg13_bn", last_layer="block2"))) == (
        "vgg13_bn",
        "vgg16_bn",
        "vgg19_bn",
    )


@pytest.mark.parametrize(
    ("name", "last", "expected"),
    [
        ("densenet169", "layer2", ("densenet121", "densenet169")),
        ("densenet169", "layer3", ("densenet169",)),
        ("convnext_small", "layer2", ("convnext_tiny", "convnext_small")),
        ("efficientnet_b0", "layer1", ("efficientnet_b0",)),
        ("dinov2_vits14_reg", "layer3", ("dinov2_vits14_reg",)),
        ("vit_tiny_patch16", "layer5", ("vit_tiny_patch16", "deit_tiny_patch16")),
    ],
)
def test_guess_of_a_cut_file_of_a_later_network(name, last, expected, shapes):
    assert naming.guess(_torch_shapes(shapes(name, last_layer=last))) == expected


@pytest.mark.parametrize(
    ("file", "name", "last"),
    [
        ("densenet169", "densenet121", "layer2"),  # complete, and the first layers are equal
        ("resnet18", "vit_tiny_patch16", ""),
        ("vit_tiny_patch16", "resnet18", ""),
        ("efficientnet_b0", "efficientnet_lite0", ""),
    ],
)
def test_another_architecture_is_refused_with_its_name(file, name, last, shapes, tmp_path):
    tensors = _torch_shapes(shapes(file))
    np.savez(tmp_path / "w.npz", **{n: np.zeros(shape, np.int8) for n, shape in tensors.items()})
    like = {"batch_stats": {}, **shapes(name, last_layer=last)}
    with pytest.raises(UserError, match=f"It looks like .*{file}"):
        weights.load(str(tmp_path / "w.npz"), models.parse(name), like, last_layer=last)


def test_guess_tells_wide_and_grouped_resnets_apart(shapes):
    tensors = _torch_shapes(shapes("resnet50"))

    def guess(*shape):
        return naming.guess({**tensors, "layer1.0.conv2.weight": shape})

    assert guess(128, 4, 3, 3) == ("resnext50_32x4d",)
    assert guess(128, 128, 3, 3) == ("wide_resnet50_2",)
    assert guess(192, 6, 3, 3) == ()
    assert naming.guess({"encoder.weight": (3, 3)}) == ()
