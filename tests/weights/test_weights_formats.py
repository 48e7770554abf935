"""Wrong and damaged files get one clear error, before JAX starts; a pickle never runs."""

import hashlib
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from medtl import models, weights
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS
from medtl.weights import formats


@pytest.fixture
def small():
    return {
        "conv1.weight": np.ones((16, 3, 3, 3), np.float32),
        "bn1.bias": np.zeros(16, np.float32),
    }


def _fails(path, text, **options):
    for read in (
        weights.check,
        lambda p, **o: weights.load(p, models.parse("cifar_resnet20"), {"params": {}}, **o),
    ):
        with pytest.raises(UserError, match=text) as error:
            read(str(path), **options)
        assert str(path) in str(error.value)
        assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".h5", ".pth", ".th"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"<html><head></head></html>", "web page"),
        (b"", "is empty"),
        (
            b"\x00\x01 something else entirely",
            "no (safetensors|NumPy|PyTorch|HDF5) file|truncated or no Keras",
        ),
    ],
)
def test_other_files_under_a_weight_name(tmp_path, suffix, content, text):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    _fails(path, text)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".h5"])
def test_truncated(tmp_path, small, suffix, share):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.numpy.save_file(small, path)
    elif suffix == ".npz":
        np.savez(path, **small)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["conv1_conv/kernel"] = small["conv1.weight"]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    _fails(path, "truncated|damaged|no safetensors file")


@pytest.mark.parametrize("change", [lambda b: b + b"more", lambda b: bytes(8) + b, lambda b: b[9:]])
def test_safetensors_with_bytes_too_many_or_too_few(tmp_path, small, change):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(small, path)
    path.write_bytes(change(path.read_bytes()))
    _fails(path, "truncated, damaged or no safetensors file")


def test_damage_inside_an_npz(tmp_path, small):
    path = tmp_path / "weights.npz"
    np.savez(path, **small)
    content = bytearray(path.read_bytes())
    content[300:340] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        weights.load(str(path), models.parse("cifar_resnet20"), {"params": {}})


def test_pickles_in_an_npz_do_not_run(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, conv1=np.array([_Touch(tmp_path / "ran")], dtype=object))
    with pytest.raises(UserError, match="more than arrays"):
        weights.load(str(path), models.parse("cifar_resnet20"), {"params": {}})
    assert not (tmp_path / "ran").exists()


def test_an_empty_zip_is_no_npz(tmp_path):
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(UserError, match="no NumPy file"):
        weights.load(str(path), models.parse("cifar_resnet20"), {"params": {}})


def test_missing_file_offers_the_nearest(tmp_path, small):
    np.savez(tmp_path / "resnet20.npz", **small)
    _fails(tmp_path / "resnet02.npz", "there is no file .*did you mean 'resnet20.npz'")
    _fails(tmp_path / "resnet20.pkl", "should end in .safetensors, .npz")


def test_sha256_is_compared_and_recorded(tmp_path, small):
    path = tmp_path / "weights.npz"
    np.savez(path, **small)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    weights.check(str(path), sha256=right.upper())
    assert weights.load(str(path), None, {}, allow=("*",), normalization="caffe").sha256 == right
    _fails(path, f"config.weights.sha256: .* has {right}, not {'0' * 64}", sha256="0" * 64)
    with pytest.raises(UserError, match="config.weights.sha256: 'abc' is not 64 hex"):
        weights.check(str(path), sha256="abc")


def test_hub_names_carry_the_hash(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {"conv1.weight": torch.ones(3)}}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    good = tmp_path / f"resnet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    good.write_bytes(content)
    weights.check(str(good))
    bad = tmp_path / "resnet-0123abcd.pth"
    bad.write_bytes(content)
    _fails(bad, "not with 0123abcd as in its name")


class _Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickles_in_a_torch_file_do_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {"conv1.weight": _Touch(tmp_path / "ran")}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="never run"):
        weights.load(str(tmp_path / "w.pth"), models.parse("cifar_resnet20"), {"params": {}})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_truncated_torch_file(tmp_path, small, zipped, share):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth"
    tensors = {name: torch.from_numpy(value) for name, value in small.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(
        UserError, match="truncated or damaged|truncated: its zip|is damaged, or a pickle"
    ):
        weights.load(str(path), models.parse("cifar_resnet20"), {"params": {}})


@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: {"state_dict": d, "epoch": 3}, lambda d: {"model": d}]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_wrappings(tmp_path, variables, state_dict, shapes, wrap, prefix):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.th"
    torch.save(
        wrap({prefix + name: torch.from_numpy(value) for name, value in state_dict.items()}), path
    )
    loaded = weights.load(str(path), models.parse("cifar_resnet20"), shapes("cifar_resnet20"))
    want = variables["params"]["layer3_2"]["conv2"]["kernel"]
    np.testing.assert_array_equal(loaded.variables["params"]["layer3_2"]["conv2"]["kernel"], want)
    assert loaded.normalization == NORMALIZATIONS["torchvision"]


def test_a_torch_file_of_something_else(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save([torch.ones(3)], tmp_path / "w.pth")
    with pytest.raises(UserError, match="no state_dict"):
        weights.load(str(tmp_path / "w.pth"), models.parse("cifar_resnet20"), {"params": {}})


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"\x80\x02")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install medtl\[torch\]"):
        weights.check(str(path))


def test_check_imports_nothing_heavy(tmp_path, small):
    np.savez(tmp_path / "w.npz", **small)
    code = (
        "import sys\nfrom medtl import weights\n"
        f"weights.check({str(tmp_path / 'w.npz')!r})\n"
        "assert not {'jax', 'torch', 'flax', 'h5py', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mutated_safetensors_are_read_or_refused_in_one_line(tmp_path):
    """Headers hold anything: offsets as text, deep nesting, foreign dtypes, negative shapes."""
    import safetensors.numpy

    tensors = {"conv1.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(4, np.float16)}
    good = safetensors.numpy.save(tensors, {"a": "b"})
    rng, path = np.random.default_rng(0), tmp_path / "w.safetensors"
    inserted = (b"[", b"{", b'"', b"-", b"9" * 20, b"[" * 5000, b'"F8_E4M3"')
    for trial in range(400):
        content, length = bytearray(good), int.from_bytes(good[:8], "little")
        where = 8 + int(rng.integers(length))
        if trial % 4 == 0:
            content[where] ^= 1 << int(rng.integers(8))
        elif trial % 4 == 1:
            content = content[: int(rng.integers(len(content)))]
        elif trial % 4 == 2:
            content[where] = int(rng.choice(list(b'"{}[]:,0123456789aF')))
        else:
            text = inserted[int(rng.integers(len(inserted)))]
            content[where:where] = text
            content[:8] = (length + len(text)).to_bytes(8, "little")
        path.write_bytes(content)
        try:
            formats.check(str(path))
            formats.read(str(path))
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_dtype_that_numpy_lacks_is_named(shared):
    path = str(shared / "cases/faults/inputs/weights.safetensors_3044.safetensors")
    with pytest.raises(UserError, match="has dtype F8_E4M3; the tensors must be F64"):
        formats.read(path)
