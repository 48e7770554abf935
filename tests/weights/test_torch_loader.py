"""The loader that is written beside an exported model gives its probabilities in PyTorch."""

import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path += [str(Path(__file__).parents[1] / "models"), str(Path(__file__).parents[1])]
import torch_reference  # noqa: E402
from tiny_run import tiny  # noqa: E402

from medtl.experiment import experiment, inference  # noqa: E402
from medtl.training.evaluator import make_eval_step  # noqa: E402


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny(
        arms=("target_only",), model__name="resnet18", model__last_layer="layer2",
        model__hidden=(8,),
    )  # fmt: skip
    config.stages.target.epochs = 0
    experiment.train(config, folder)
    return folder, inference.load_checkpoint(folder)


def test_pytorch_gives_the_probabilities_of_the_checkpoint(stored, tmp_path):
    folder, checkpoint = stored
    inference.export(folder, tmp_path / "model.safetensors")
    module = runpy.run_path(str(tmp_path / "model_loader.py"))
    backbone = torch_reference.build("resnet18", "3x3", False)
    backbone.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)  # grey images
    net = module["Diagnosis"](str(tmp_path / "model.safetensors"), backbone).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)
    with torch.no_grad():
        found = net(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    step = make_eval_step(checkpoint.model, "target", checkpoint.normalization)
    batch = {"image": images, "mask": np.ones(5, np.float32)}
    logits = jax.jit(step)(checkpoint.variables, batch)
    np.testing.assert_allclose(found, jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)
    assert net.classes == ["healthy", "infiltrate", "nodule"]


def test_a_backbone_that_lacks_a_tensor_is_refused(stored, tmp_path):
    inference.export(stored[0], tmp_path / "model.safetensors")
    module = runpy.run_path(str(tmp_path / "model_loader.py"))
    with pytest.raises(RuntimeError, match="Missing key|Unexpected key|size mismatch"):
        module["Diagnosis"](
            str(tmp_path / "model.safetensors"), torch_reference.build("resnet34", "3x3", False)
        )
