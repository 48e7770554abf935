"""What a backbone is, apart from its numbers: names, shapes, dtypes, freezing, errors; and the real ResNet-50 trunk."""

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
from medtl.models import architectures, layers


def shapes(name, px=64, channels=3, **options):
    """Variables and features of a batch of 2, as shapes."""
    module = models.backbone(name, **options)
    images = jax.ShapeDtypeStruct((2, px, px, channels), jnp.float32)
    return jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, use_batch_stats=True), images
    )[::-1]


@pytest.mark.parametrize("name", models.NAMES)
def test_truncation_gives_the_channels_and_the_frozen_names(name):
    """The first n stages have exactly the parameters that freezing n stages freezes."""
    known = architectures.architecture(name)
    for stages in range(1, len(known.depths) + 1):
        variables, features = shapes(name, stages=stages)
        stride = {"resnet": 2 ** (stages + 1), "cifar_resnet": 2 ** (stages - 1), "vgg": 2**stages}[
            known.family
        ]
        assert features.shape == (2, 64 // stride, 64 // stride, models.features(name, stages))
        assert set(models.freeze_prefixes(name, stages)) == set(variables["params"])
    assert shapes(name)[1].shape == features.shape
    assert models.features(name) == models.features(name, stages)


def test_documented_features():
    assert models.features("resnet50", 3) == 1024
    assert models.features("resnet18") == 512
    assert models.features("cifar_resnet56") == 64
    assert models.features("vgg16", 4) == 512
    assert models.features("vgg16", classifier=True) == 4096


# Published sizes (torchvision's and the CIFAR port's tables), less the last layer.
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("resnet18", {}, 11_689_512 - 513_000),
        ("resnet34", {}, 21_797_672 - 513_000),
        ("resnet50", {}, 25_557_032 - 2_049_000),
        ("resnet101", {}, 44_549_160 - 2_049_000),
        ("resnet152", {}, 60_192_808 - 2_049_000),
        ("cifar_resnet20", {}, 269_722 - 650),
        ("cifar_resnet110", {}, 1_727_962 - 650),
        ("vgg11", {"classifier": True}, 132_863_336 - 4_097_000),
        ("vgg13_bn", {"classifier": True}, 133_053_736 - 4_097_000),
        ("vgg16_bn", {"classifier": True}, 138_365_992 - 4_097_000),
        ("vgg19", {"classifier": True}, 143_667_240 - 4_097_000),
    ],
)
def test_published_parameter_counts(name, options, count):
    variables, _ = shapes(name, 224, **options)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20", "vgg11_bn"])
def test_bfloat16_computes_on_float32_parameters(name):
    variables, features = shapes(name, dtype="bfloat16")
    assert features.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    wide, narrow = (
        models.backbone(name, stages=2, dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    variables = random_variables(wide, (32, 32, 3))
    for use_batch_stats in (False, True):
        expected, found = (
            m.apply(variables, images, use_batch_stats=use_batch_stats, mutable=["batch_stats"])
            for m in (wide, narrow)
        )
        assert 1e-4 < relative_error(found[0], expected[0]) < 0.03  # bfloat16 has 8 bits
        assert {x.dtype for x in jax.tree.leaves(found[1])} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20", "vgg11"])
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(name, channels):
    assert shapes(name, channels=channels)[1].shape[-1] == models.features(name)


@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3"), ("cifar_resnet20", "bn2")]
)
@pytest.mark.parametrize("zero_init_residual", [False, True])
def test_initial_scales(name, last, zero_init_residual):
    """All are 1, but for the last of each block under `zero_init_residual`: the block then starts as the identity."""
    module = models.backbone(name, zero_init_residual=zero_init_residual)

    @jax.jit  # returns the scales alone, so that no kernel is drawn
    def initial_scales(key):
        variables = module.init(key, jnp.zeros((1, 32, 32, 3)), use_batch_stats=False)
        return {
            path: x
            for path, x in traverse_util.flatten_dict(variables["params"]).items()
            if path[-1] == "scale"
        }

    for path, scale in initial_scales(jax.random.key(0)).items():
        np.testing.assert_array_equal(
            scale, 0 if zero_init_residual and path[-2] == last else 1, err_msg=str(path)
        )


def test_he_initialisation():
    """Convolutions start with variance 2 / fan_out."""
    conv = layers.Conv(512, 3, padding=1)
    kernel = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 512)), rtol=0.01)
    np.testing.assert_allclose(kernel.mean(), 0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5"}, "'resnet50'"),
        ({"name": "resnet50", "stages": 5}, "stages 1..4"),
        ({"name": "cifar_resnet20", "stages": 4}, "stages 1..3"),
        ({"name": "resnet50", "stride_in": "2x2"}, "'3x3' or '1x1'"),
        ({"name": "resnet18", "stride_in": "1x1"}, "no 1x1 convolution"),
        ({"name": "resnet50", "dtype": "float23"}, "'float32'"),
        ({"name": "resnet50", "classifier": True}, "only a VGG"),
        ({"name": "vgg16", "classifier": True, "stages": 3}, "last stage"),
    ],
)
def test_wrong_options_name_what_is_right(arguments, message):
    with pytest.raises(UserError, match=message):
        models.backbone(**arguments)


def test_wrong_inputs_name_what_is_right():
    with pytest.raises(UserError, match="at least 32 px, not 28x28"):
        shapes("vgg11", 28)
    with pytest.raises(UserError, match="224 px"):
        shapes("vgg11", 64, classifier=True)
    with pytest.raises(UserError, match=r"stages 1\.\.4, not 0"):
        models.freeze_prefixes("resnet50", 0)


def test_names_are_known_without_jax():
    code = "import sys, medtl.models as m; m.check('resnet50', 3, '1x1'); m.features('vgg11'); print('jax' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "False"


def test_real_resnet50_trunk_reproduces_its_reference(shared):
    state = load_file(shared / "weights/resnet50_imagenet_c4.safetensors")
    reference = np.load(shared / "weights/resnet50_imagenet_c4.reference.npz")
    module = models.backbone("resnet50", stages=3, stride_in="1x1")
    like, _ = shapes("resnet50", stages=3, stride_in="1x1")
    variables = from_torch(like, state)
    expected_names = {name for name in state if not name.endswith("num_batches_tracked")}
    assert len(traverse_util.flatten_dict(variables)) == len(expected_names)

    images = reference["images_uint8_nhwc"] - np.array(NORMALIZATIONS["caffe"].mean, np.float32)
    found = jax.jit(lambda x: module.apply(variables, x, use_batch_stats=False))(
        images.astype(np.float32)
    )
    error = relative_error(found, reference["features_nhwc"])
    print(f"resnet50 trunk: {error:.1e}")
    assert error < 2e-5
    assert relative_error(np.mean(found, axis=(1, 2)), reference["pooled"]) < 2e-5
