"""A backbone written as safetensors comes back bit for bit, and PyTorch takes it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from medtl import models, weights
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS, Normalization

CAFFE = NORMALIZATIONS["caffe"]


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "vgg11_bn"])
def test_round_trip_is_exact(name, tmp_path, shapes, randomize):
    last = models.parse(name).layers[1]
    variables = randomize(shapes(name, last_layer=last))
    odd = Normalization("mine", (0.1, 1 / 3, 2.0), (1e-7, 3.3, 255.0))
    path = tmp_path / "out.safetensors"
    weights.export(path, name, variables, normalization=odd, last_layer=last, epsilon=1.001e-5)
    loaded = weights.load(
        str(path), models.parse(name), shapes(name, last_layer=last), last_layer=last
    )
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    assert (loaded.normalization, loaded.epsilon) == (odd, 1.001e-5)
    assert {n.rpartition(".")[2] for n, _ in loaded.report.unused} == {"num_batches_tracked"}


def test_file_says_what_it_is_and_the_bytes_repeat(tmp_path, variables):
    for name in ("a.safetensors", "b.safetensors"):
        weights.export(
            tmp_path / name,
            "cifar_resnet20",
            variables,
            normalization=CAFFE,
            metadata={"arm": "transfer", "seed": "3"},
        )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["normalization"])["mean"] == list(CAFFE.mean)
    keys = {
        "architecture": "cifar_resnet20",
        "last_layer": "",
        "bn_eps": "1e-05",
        "arm": "transfer",
    }
    assert keys.items() <= metadata.items()


def test_nothing_is_left_where_a_value_is_nan(tmp_path, variables):
    variables["params"]["conv1"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="conv1.weight of cifar_resnet20 has NaN"):
        weights.export(
            tmp_path / "out.safetensors", "cifar_resnet20", variables, normalization=CAFFE
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="must end in .safetensors"):
        weights.export(tmp_path / "out.pth", "cifar_resnet20", variables, normalization=CAFFE)


def test_a_failed_write_keeps_the_former_file(tmp_path, variables, monkeypatch):
    path = tmp_path / "out.safetensors"
    weights.export(path, "cifar_resnet20", variables, normalization=CAFFE)
    former = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        weights.export(path, "cifar_resnet20", variables, normalization=CAFFE)
    assert path.read_bytes() == former
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]


def test_pytorch_loads_it_strictly_and_computes_the_same(tmp_path, shapes, randomize):
    torch = pytest.importorskip("torch")

    def norm(features):
        return torch.nn.BatchNorm2d(features)

    def conv(inside, outside, stride, size=3):
        return torch.nn.Conv2d(inside, outside, size, stride, padding=size // 2, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, inside, outside, stride):
            super().__init__()
            self.conv1, self.bn1 = conv(inside, outside, stride), norm(outside)
            self.conv2, self.bn2 = conv(outside, outside, 1), norm(outside)
            self.downsample = None
            if stride > 1:
                self.downsample = torch.nn.Sequential(
                    conv(inside, outside, stride, 1), norm(outside)
                )

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Trunk(torch.nn.Module):
        """conv1 to layer2 of ResNet-18."""

        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv(3, 64, 2, 7), norm(64)
            self.layer1 = torch.nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
            self.layer2 = torch.nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))

        def forward(self, x):
            x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            return self.layer2(self.layer1(x))

    variables = randomize(shapes("resnet18", last_layer="layer2"))
    path = tmp_path / "out.safetensors"
    weights.export(path, "resnet18", variables, normalization=CAFFE, last_layer="layer2")
    trunk = Trunk().eval()
    tensors = safetensors.numpy.load_file(path)
    trunk.load_state_dict(
        {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=True
    )
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        want = trunk(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    module = models.backbone("resnet18", last_layer="layer2")()
    found = module.apply(variables, jnp.asarray(x), False)
    assert np.linalg.norm(found - want) < 1e-5 * np.linalg.norm(want)
