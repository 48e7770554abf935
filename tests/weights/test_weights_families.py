"""Checkpoints of other families load under their own names, or are refused with those names."""

import re

import jax
import numpy as np
import pytest

from medtl import models, weights
from medtl.errors import UserError
from medtl.weights import families, naming

PREFIXES = ("backbone.", "module.", "_orig_mod.", "module.encoder_q.", "student.backbone.model.")
SEQUENTIAL = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}
HUGGING_FACE = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.downsample\.0", r"stage\1.\2.shortcut.convolution"),
    (r"^layer(\d)\.(\d+)\.downsample\.1", r"stage\1.\2.shortcut.normalization"),
    (r"^layer(\d)\.(\d+)\.conv1", r"stage\1.\2.layer.0.convolution"),
    (r"^layer(\d)\.(\d+)\.conv2", r"stage\1.\2.layer.1.convolution"),
    (r"^layer(\d)\.(\d+)\.conv3", r"stage\1.\2.layer.2.convolution"),
    (r"^layer(\d)\.(\d+)\.bn1", r"stage\1.\2.layer.0.normalization"),
    (r"^layer(\d)\.(\d+)\.bn2", r"stage\1.\2.layer.1.normalization"),
    (r"^layer(\d)\.(\d+)\.bn3", r"stage\1.\2.layer.2.normalization"),
    (r"^stage(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers."),
)


def same(loaded, variables):
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_constant_prefix_is_found_and_named(variables, state_dict, load_npz, prefix):
    named = {f"{prefix}{name}": tensor for name, tensor in state_dict.items()}
    loaded = load_npz({**named, "head.weight": np.zeros((2, 64))})
    same(loaded, variables)
    assert f"the prefix {prefix!r} of the names left out" in loaded.report.notes


def test_of_two_encoders_the_first_is_taken_and_the_rest_is_named(variables, state_dict, load_npz):
    momentum = {f"encoder_k.{name}": tensor + 1 for name, tensor in state_dict.items()}
    loaded = load_npz({**{f"encoder_q.{n}": t for n, t in state_dict.items()}, **momentum})
    same(loaded, variables)
    notes = " ".join(loaded.report.notes)
    assert f"{len(state_dict)} tensors outside of it are not used (encoder_k." in notes


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_numbers_of_a_sequential_are_layers(variables, state_dict, load_npz, prefix):
    def numbered(name):
        first, _, rest = name.partition(".")
        return f"{prefix}{SEQUENTIAL[first]}.{rest}"

    loaded = load_npz({numbered(name): tensor for name, tensor in state_dict.items()})
    same(loaded, variables)
    assert "names of the layers of an nn.Sequential" in loaded.report.notes


def test_every_name_of_a_resnet50_comes_back_from_hugging_face(shapes):
    wanted = list(naming.leaves(shapes("resnet50")))
    foreign = {}
    for name in wanted:
        other = name
        for pattern, replacement in HUGGING_FACE:
            other = re.sub(pattern, replacement, other)
        foreign[f"resnet.{other}"] = name
    assert "resnet.encoder.stages.3.layers.0.shortcut.normalization.running_var" in foreign
    renamed, notes = families.renamed(foreign, wanted, lambda name: True)
    assert renamed == {name: name for name in wanted}
    assert notes[0] == "names of Hugging Face's ResNet"


def test_names_that_fit_already_are_kept(state_dict):
    more = {**state_dict, "backbone.conv1.weight": np.zeros(1)}
    assert families.renamed(more, state_dict, lambda name: True) == (more, ())


def test_without_a_name_that_fits_the_file_s_names_are_shown(state_dict, load_npz):
    foreign = {f"x{i}": tensor for i, tensor in enumerate(state_dict.values())}
    for allow in ((), ("*",)):
        with pytest.raises(UserError, match=r"0 of its 95 tensors fit; it has x0, x1, x2, x3, x4"):
            load_npz(foreign, allow=allow)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"a": 1.0}, ""),
        ({"net": {"a": 1.0}, "epoch": 3}, "net"),
        ({"model": {"ema": {"a": 1.0}}, "optimizer": {"state": {}}}, "model/ema"),
        ({"ema": {"a": 1.0}, "state_dict": {"a": 2.0}}, "state_dict"),
    ],
)
def test_the_state_dict_is_searched_for(content, key):
    tensors, note = families.state_dict(content, lambda value: isinstance(value, float))
    assert list(tensors) == ["a"]
    assert f'"{key}"' in note if key else not note
    if "ema" in content:
        assert note.endswith('not from "ema"')


@pytest.mark.parametrize(
    ("file", "name", "note"),
    [
        ("prefixed.safetensors", "cifar_resnet20", "the prefix 'backbone.'"),
        ("net_key.pth", "cifar_resnet20", 'tensors taken from "net"'),
        ("sequential.pt", "cifar_resnet20", "names of the layers of an nn.Sequential"),
        ("keras_flat.h5", "resnet50(stride_in='1x1')", "caffe: assumed"),
        ("keras_nested.h5", "resnet50(stride_in='1x1')", "caffe: assumed"),
    ],
)
def test_the_cases_load_whole(shared, shapes, file, name, note):
    if file.endswith(("pt", "pth")):
        pytest.importorskip("torch")
    path, last = str(shared / "cases/weights" / file), "layer1" if "keras" in file else ""
    weights.check(path)
    variables = shapes(name, last_layer=last)
    loaded = weights.load(path, models.parse(name), variables, last_layer=last)
    assert len(loaded.report.loaded) == len(jax.tree.leaves(variables))
    assert any(note in text for text in loaded.report.notes)
