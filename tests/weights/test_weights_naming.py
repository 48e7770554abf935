"""Names, shapes and the guess of the architecture, over every backbone there is."""

import jax
import pytest

from medtl import models
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
def test_guess_names_the_architecture_from_its_variables(name, shapes):
    variables = shapes(name)
    tensors = _torch_shapes(variables)
    assert len(tensors) == len(jax.tree.leaves(variables))
    assert naming.guess(tensors) == (name,)


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


def test_guess_knows_nothing_of_wide_and_grouped_resnets(shapes):
    tensors = _torch_shapes(shapes("resnet50"))
    assert naming.guess({**tensors, "layer1.0.conv2.weight": (128, 4, 3, 3)}) == ()
    assert naming.guess({"encoder.weight": (3, 3)}) == ()
