"""The published files in ../shared/weights load whole."""

import pathlib

import jax
import numpy as np
import pytest

from medtl import models, weights
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS

WEIGHTS = pathlib.Path(__file__).parents[2].parent / "shared" / "weights"
R50 = WEIGHTS / "resnet50_imagenet_c4.safetensors"

pytestmark = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="../shared/weights is absent")


V1 = "resnet50(stride_in='1x1')"


def load(text, last_layer, shapes, **options):
    variables = shapes(text, last_layer=last_layer)
    return weights.load(str(R50), models.parse(text), variables, last_layer=last_layer, **options)


def test_resnet50_trunk(shapes):
    weights.check(str(R50))
    loaded = load(V1, "layer3", shapes)
    assert len(loaded.report.loaded) == len(jax.tree.leaves(loaded.variables)) == 215
    assert loaded.report.left_random == loaded.report.unused == loaded.report.mismatched == ()
    assert loaded.normalization == NORMALIZATIONS["caffe"]
    assert loaded.epsilon == 1e-5
    assert loaded.variables["params"]["conv1"]["kernel"].shape == (7, 7, 3, 64)


def test_resnet50_trunk_is_refused_where_it_does_not_fit(shapes):
    with pytest.raises(UserError, match=r"set config.model.name=.resnet50\(stride_in='1x1'\)"):
        load("resnet50", "layer3", shapes)
    with pytest.raises(UserError, match="set config.model.last_layer='layer3'"):
        load(V1, "", shapes)
    with pytest.raises(UserError, match="resnet101.*\nIt looks like resnet50"):
        load("resnet101(stride_in='1x1')", "layer3", shapes)
    with pytest.raises(UserError, match="states its input as"):
        load(V1, "layer3", shapes, normalization="torchvision")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar_resnet20", "cifar10_resnet20-12fca82f.th"),
        ("cifar_resnet56", "cifar10_resnet56-4bfd9763.th"),
    ],
)
def test_cifar_resnets(name, file, shapes):
    torch = pytest.importorskip("torch")
    loaded = weights.load(str(WEIGHTS / file), models.parse(name), shapes(name))
    assert len(loaded.report.loaded) == len(jax.tree.leaves(loaded.variables))
    assert loaded.report.unused == (("linear.weight", (10, 64)), ("linear.bias", (10,)))
    assert loaded.normalization == NORMALIZATIONS["torchvision"]
    raw = torch.load(WEIGHTS / file, map_location="cpu", weights_only=True)["state_dict"]
    want = raw["module.layer2.0.conv1.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(loaded.variables["params"]["layer2_0"]["conv1"]["kernel"], want)
