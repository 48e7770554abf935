"""Backbones apart from their numbers: names, shapes, dtypes, groups, errors; a real trunk."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from random_variables import from_torch, random_variables, relative_error
from safetensors.numpy import load_file

from medtl import models
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS
from medtl.models import layers


def shapes(name, px=64, channels=3, **options):
    """Variables and features of a batch of 2, as shapes."""
    module = models.backbone(name, **options)()
    images = jax.ShapeDtypeStruct((2, px, px, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, True), images)[
        ::-1
    ]


STRIDES = {"resnet": 4, "cifar_resnet": 1, "vgg": 2}  # of the first layer of each family


@pytest.mark.parametrize("name", [n for n in models.NAMES if models.parse(n).family in STRIDES])
def test_the_kept_layers_have_the_width_and_the_parameters_of_the_table(name):
    """A truncated backbone's groups are its parameters, and begin those of the complete one."""
    architecture = models.parse(name)
    for i, (layer, width) in enumerate(zip(architecture.layers, architecture.widths, strict=True)):
        variables, features = shapes(name, last_layer=layer)
        side = 64 // (STRIDES[architecture.family] * 2**i)
        assert features.shape == (2, side, side, width)
        groups = models.backbone(name, last_layer=layer)().groups()
        assert groups == architecture.groups(layer)
        assert sorted(sum(groups.values(), ())) == sorted(variables["params"])
        assert list(groups)[-1] == layer
        assert list(groups.items()) == list(architecture.groups().items())[: len(groups)]
    assert shapes(name)[1].shape == features.shape
    assert models.backbone(name)().groups() == groups


def test_the_fully_connected_layers_of_a_vgg_are_the_last_group():
    groups = models.backbone("vgg11(classifier=True)")().groups()
    assert list(groups.items())[-1] == ("classifier", ("classifier_0", "classifier_3"))
    variables, features = shapes("vgg11(classifier=True)", 224)
    assert sorted(sum(groups.values(), ())) == sorted(variables["params"])
    assert features.shape == (2, 4096)


# Published sizes (torchvision's and the CIFAR port's tables), less the last layer.
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
        ("resnet152", 60_192_808 - 2_049_000),
        ("cifar_resnet20", 269_722 - 650),
        ("cifar_resnet110", 1_727_962 - 650),
        ("vgg11(classifier=True)", 132_863_336 - 4_097_000),
        ("vgg13_bn(classifier=True)", 133_053_736 - 4_097_000),
        ("vgg16_bn(classifier=True)", 138_365_992 - 4_097_000),
        ("vgg19(classifier=True)", 143_667_240 - 4_097_000),
    ],
)
def test_published_parameter_counts(text, count):
    variables, _ = shapes(text, 224)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20", "vgg11_bn"])
def test_bfloat16_computes_on_float32_parameters(name):
    variables, features = shapes(name, dtype="bfloat16")
    assert features.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    images = jnp.asarray(np.random.default_rng(0).standard_normal((4, 32, 32, 3)), jnp.float32)
    wide, narrow = (
        models.backbone(name, last_layer=models.parse(name).layers[1], dtype=dtype)()
        for dtype in ("float32", "bfloat16")
    )
    variables = random_variables(wide, (32, 32, 3))
    for train in (False, True):
        expected, found = (
            m.apply(variables, images, train, mutable=["batch_stats"]) for m in (wide, narrow)
        )
        assert 1e-4 < relative_error(found[0], expected[0]) < 0.03  # bfloat16 has 8 bits
        assert {x.dtype for x in jax.tree.leaves(found[1])} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20", "vgg11"])
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(name, channels):
    assert shapes(name, channels=channels)[1].shape[-1] == models.parse(name).widths[-1]


def test_he_initialization():
    """Convolutions start with variance 2 / fan_out."""
    conv = layers.Conv(512, 3, padding=1)
    kernel = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 512)), rtol=0.01)
    np.testing.assert_allclose(kernel.mean(), 0, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("resnet5", {}, "config.model.name: there is no backbone 'resnet5'.*'resnet50'"),
        ("resnet50", {"last_layer": "layer5"}, "last_layer: resnet50 has no layer 'layer5'"),
        ("cifar_resnet20", {"last_layer": "layer4"}, "it can be layer1, layer2, layer3, or ''"),
        ("vgg16", {"last_layer": "layer1"}, "it can be block1, block2, block3, block4, block5"),
        ("resnet50(stride_in='2x2')", {}, "is '2x2'; it can be '3x3' or '1x1'"),
        ("resnet50('1x1')", {}, "must name its options"),
        ("resnet50(strid_in='1x1')", {}, "no option 'strid_in'; did you mean 'stride_in'"),
        ("resnet18(stride_in='1x1')", {}, "resnet18 has no option 'stride_in'; it has none"),
        ("resnet50(classifier=True)", {}, "resnet50 has no option 'classifier'"),
        ("vgg16(classifier='yes')", {}, "it can be False or True"),
        ("vgg16(classifier=True)", {"last_layer": "block3"}, "follow block5, not block3"),
        ("resnet50", {"dtype": "float23"}, "'float32'"),
    ],
)
def test_wrong_options_name_what_is_right(text, settings, message):
    with pytest.raises(UserError, match=message):
        models.backbone(text, **settings)


def test_a_table_entry_says_its_options():
    assert models.parse("resnet50").text == "resnet50"
    for text in ("resnet50(stride_in='1x1')", "vgg11(classifier=True)"):
        assert models.parse(text).text == text


NET = """
from flax import linen as nn
import jax.numpy as jnp

class Net(nn.Module):
    width: int
    dtype: jnp.dtype = jnp.float32
    last_layer: str = ""
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        return nn.Conv(self.width, (3, 3), dtype=self.dtype)(x)

class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x

def net(width):
    return Net(width)
"""


def test_a_users_own_module_takes_the_settings_it_has_fields_for(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(NET)
    assert models.parse(f"{file}:Net(width=8)") is None
    make = models.backbone(f"{file}:Net(width=8)", last_layer="x", dtype="bfloat16", axis_name="i")
    module = make(name="image")
    assert (module.width, module.last_layer, module.axis_name) == (8, "x", "i")
    assert (module.name, module.dtype) == ("image", jnp.bfloat16)
    x = jnp.zeros((1, 4, 4, 2))
    assert module.init_with_output(jax.random.key(0), x, True)[0].shape == (1, 4, 4, 8)
    models.backbone(f"{file}:Plain", epsilon=1e-3, axis_name="i")()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Plain", {"last_layer": "layer1"}, "config.model.last_layer: Plain in .* has no field"),
        ("Plain", {"remat": True}, "config.model.remat: Plain in .* has no field 'remat'"),
        ("Plain", {"dtype": "bfloat16"}, "config.model.dtype: Plain in .* has no field 'dtype'"),
        ("Net", {}, "missing 1 required positional argument: 'width'"),
        ("net(width=8)", {}, "must be a flax.linen.Module class"),
        ("Net(widht=8)", {}, "did you mean 'width'"),
    ],
)
def test_a_users_own_module_that_does_not_fit_is_refused(tmp_path, name, settings, message):
    file = tmp_path / "net.py"
    file.write_text(NET)
    with pytest.raises(UserError, match=message):
        models.backbone(f"{file}:{name}", **settings)


def test_wrong_inputs_name_what_is_right():
    with pytest.raises(UserError, match="at least 32 px, not 28x28"):
        shapes("vgg11", 28)
    with pytest.raises(UserError, match="224 px"):
        shapes("vgg11(classifier=True)", 64)


def test_names_are_known_without_jax():
    code = "import sys, medtl.models as m; m.parse('vgg11').groups(); print('jax' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "False"


def test_real_resnet50_trunk_reproduces_its_reference(shared):
    state = load_file(shared / "weights/resnet50_imagenet_c4.safetensors")
    reference = np.load(shared / "weights/resnet50_imagenet_c4.reference.npz")
    text = "resnet50(stride_in='1x1')"
    module = models.backbone(text, last_layer="layer3")()
    like, _ = shapes(text, last_layer="layer3")
    variables = jax.tree.map(jnp.asarray, from_torch(like, state))
    expected_names = {name for name in state if not name.endswith("num_batches_tracked")}
    assert len(traverse_util.flatten_dict(variables)) == len(expected_names)

    images = reference["images_uint8_nhwc"] - np.array(NORMALIZATIONS["caffe"].mean, np.float32)
    found = jax.jit(lambda x: module.apply(variables, x, False))(images.astype(np.float32))
    error = relative_error(found, reference["features_nhwc"])
    print(f"resnet50 trunk: {error:.1e}")
    assert error < 2e-5
    assert relative_error(np.mean(found, axis=(1, 2)), reference["pooled"]) < 2e-5
