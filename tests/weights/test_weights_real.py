"""The published files in ../shared/weights load whole."""

import pathlib

import jax
import numpy as np
import pytest

from medtl import weights
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS

WEIGHTS = pathlib.Path(__file__).parents[2].parent / "shared" / "weights"
R50 = WEIGHTS / "resnet50_imagenet_c4.safetensors"

pytestmark = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="../shared/weights is absent")


def test_resnet50_trunk(shapes):
    weights.check(str(R50))
    loaded = weights.load(
        str(R50), "resnet50", shapes("resnet50", stages=3), stages=3, stride_in="1x1"
    )
    assert len(loaded.report.loaded) == len(jax.tree.leaves(loaded.variables)) == 215
    assert loaded.report.left_random == loaded.report.unused == loaded.report.mismatched == ()
    assert loaded.normalization == NORMALIZATIONS["caffe"]
    assert loaded.epsilon == 1e-5
    assert loaded.variables["params"]["conv1"]["kernel"].shape == (7, 7, 3, 64)


def test_resnet50_trunk_is_refused_where_it_does_not_fit(shapes):
    cut = shapes("resnet50", stages=3)
    with pytest.raises(UserError, match="set config.model.stride_in='1x1'"):
        weights.load(str(R50), "resnet50", cut, stages=3)
    with pytest.raises(UserError, match="set config.model.stages=3"):
        weights.load(str(R50), "resnet50", shapes("resnet50"), stride_in="1x1")
    with pytest.raises(UserError, match="resnet101.*\nIt looks like resnet50"):
        weights.load(
            str(R50), "resnet101", shapes("resnet101", stages=3), stages=3, stride_in="1x1"
        )
    with pytest.raises(UserError, match="states its input as"):
        weights.load(
            str(R50), "resnet50", cut, stages=3, stride_in="1x1", normalization="torchvision"
        )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar_resnet20", "cifar10_resnet20-12fca82f.th"),
        ("cifar_resnet56", "cifar10_resnet56-4bfd9763.th"),
    ],
)
def test_cifar_resnets(name, file, shapes):
    torch = pytest.importorskip("torch")
    loaded = weights.load(str(WEIGHTS / file), name, shapes(name))
    assert len(loaded.report.loaded) == len(jax.tree.leaves(loaded.variables))
    assert loaded.report.unused == (("linear.weight", (10, 64)), ("linear.bias", (10,)))
    assert loaded.normalization == NORMALIZATIONS["torchvision"]
    raw = torch.load(WEIGHTS / file, map_location="cpu", weights_only=True)["state_dict"]
    want = raw["module.layer2.0.conv1.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(loaded.variables["params"]["layer2_0"]["conv1"]["kernel"], want)
