"""Fitting tensors to a backbone: values, report, surprises, stem, normalization."""

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from medtl import models, weights
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS, Normalization
from medtl.weights import pretrained


def _write(path, tensors, **metadata):
    safetensors.numpy.save_file(tensors, path, metadata=metadata or None)
    return str(path)


def test_values_arrive_transposed_and_nothing_else(variables, state_dict, load_npz):
    loaded = load_npz(state_dict)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype(np.float32)}
    assert len(loaded.report.loaded) == len(jax.tree.leaves(variables))
    assert loaded.report.left_random == loaded.report.unused == loaded.report.mismatched == ()
    assert len(loaded.sha256) == 64


def test_classifier_and_step_counters_are_reported_as_unused(state_dict, load_npz):
    extra = {
        "linear.weight": np.zeros((10, 64)),
        "linear.bias": np.zeros(10),
        "bn1.num_batches_tracked": np.array(3),
    }
    report = load_npz({**state_dict, **extra}).report
    assert report.unused == (
        ("linear.weight", (10, 64)),
        ("linear.bias", (10,)),
        ("bn1.num_batches_tracked", ()),
    )
    assert "unused: 3 (linear.weight [10, 64]" in report.summary()


def test_layers_that_are_cut_off_stay_unused(variables, state_dict, load_npz):
    loaded = load_npz(state_dict, last_layer="layer1")
    assert set(loaded.variables["params"]) == {"conv1", "bn1", "layer1_0", "layer1_1", "layer1_2"}
    assert {name.split(".")[0] for name, _ in loaded.report.unused} == {"layer2", "layer3"}


def test_missing_unused_and_mismatched_are_named(state_dict, load_npz):
    del state_dict["layer1.0.bn1.bias"]
    state_dict["layer1.0.conv9.weight"] = np.zeros((2, 2, 1, 1))
    state_dict["layer3.2.conv2.weight"] = np.zeros((64, 64, 5, 5))
    with pytest.raises(UserError) as error:
        load_npz(state_dict)
    message = str(error.value)
    assert "in 3 tensors" in message
    assert "layer1.0.bn1.bias [16] is missing" in message
    assert "layer1.0.conv9.weight [2, 2, 1, 1] is not in the backbone" in message
    assert "layer3.2.conv2.weight [64, 64, 5, 5] should be [64, 64, 3, 3]" in message


def test_what_is_allowed_to_differ_is_left_out(variables, state_dict, load_npz):
    del state_dict["layer1.0.bn1.bias"]
    state_dict["layer3.2.conv2.weight"] = np.zeros((64, 64, 5, 5))
    loaded = load_npz(state_dict, allow=("layer3.2.*", "*.bn1.bias"))
    assert loaded.report.left_random == (("layer1.0.bn1.bias", (16,)),)
    assert loaded.report.mismatched == (("layer3.2.conv2.weight", (64, 64, 5, 5), (64, 64, 3, 3)),)
    del variables["params"]["layer1_0"]["bn1"]["bias"], variables["params"]["layer3_2"]["conv2"]
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_another_architecture_is_named_with_the_first_five_tensors(
    shapes, randomize, state_dict, load_npz
):
    with pytest.raises(UserError) as error:
        load_npz(state_dict, "cifar_resnet32")
    assert "It looks like cifar_resnet20" in str(error.value)
    assert str(error.value).count(" is missing;") == 5
    assert len(str(error.value).splitlines()) == 2


def test_another_architecture_whose_first_layers_fit_is_refused(tmp_path, shapes, randomize):
    deep = randomize(shapes("vgg13", last_layer="block2"))
    path = tmp_path / "vgg13.safetensors"
    normalization = NORMALIZATIONS["torchvision"]
    weights.export(path, "vgg13", deep, normalization=normalization, last_layer="block2")

    def load(name):
        variables = shapes(name, last_layer="block1")
        return weights.load(str(path), models.parse(name), variables, last_layer="block1")

    assert {name for name, _ in load("vgg13").report.unused} == {
        f"features.{i}.{leaf}" for i in (5, 7) for leaf in ("weight", "bias")
    }
    with pytest.raises(UserError, match="fit vgg16 with last_layer='block1'\nIt looks like vgg13"):
        load("vgg16")
    with pytest.raises(
        UserError, match=r"features.2.weight .* is not in the backbone.*\nIt looks like vgg13"
    ):
        load("vgg11")


def test_a_file_of_fewer_layers_names_its_last(state_dict, load_npz):
    with pytest.raises(
        UserError, match="It ends with layer2: set config.model.last_layer='layer2'"
    ):
        load_npz(
            {name: tensor for name, tensor in state_dict.items() if not name.startswith("layer3")}
        )


def test_half_precision_becomes_float32(tmp_path, shapes, state_dict):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        halves = {name: tensor.astype(dtype) for name, tensor in state_dict.items()}
        path = _write(tmp_path / "half.safetensors", halves)
        loaded = weights.load(
            path, models.parse("cifar_resnet20"), shapes("cifar_resnet20")
        ).variables
        want = halves["layer2.0.conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(loaded["params"]["layer2_0"]["conv1"]["kernel"], want)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_stem_responds_to_a_grey_image_as_before(channels, state_dict, load_npz):
    """A grey image has equal channels: a kernel acts through its sum over them, for C = 1 or 3n."""
    loaded = load_npz(state_dict, channels=channels)
    kernel = loaded.variables["params"]["conv1"]["kernel"]
    rgb = state_dict["conv1.weight"].transpose(2, 3, 1, 0)
    assert kernel.shape == (3, 3, channels, 16)
    if channels in (1, 6):
        np.testing.assert_allclose(kernel.sum(axis=2), rgb.sum(axis=2), rtol=1e-5, atol=1e-6)
    if channels > 1:
        for i in range(channels):
            np.testing.assert_allclose(kernel[:, :, i], rgb[:, :, i % 3] * 3 / channels, rtol=1e-6)
    assert any("conv1.weight adapted" in note for note in loaded.report.notes)


def test_stem_goes_from_grey_to_rgb():
    kernel = np.random.default_rng(0).normal(size=(4, 1, 3, 3)).astype(np.float32)
    adapted = pretrained.adapt_stem(kernel, 3)
    np.testing.assert_allclose(adapted.sum(axis=1, keepdims=True), kernel, rtol=1e-6)


def test_only_the_stem_is_adapted(state_dict, load_npz):
    state_dict["layer1.0.conv1.weight"] = np.zeros((16, 3, 3, 3))
    with pytest.raises(
        UserError, match=r"layer1.0.conv1.weight \[16, 3, 3, 3\] should be \[16, 16, 3, 3\]"
    ):
        load_npz(state_dict)


@pytest.mark.parametrize(
    ("bad", "text"), [(np.nan, "NaN or Inf"), (np.inf, "NaN or Inf"), (-1.0, "negative variance")]
)
def test_bad_numbers_are_refused(bad, text, state_dict, load_npz):
    state_dict["layer2.1.bn1.running_var"][3] = bad
    with pytest.raises(UserError, match=f"{text} in layer2.1.bn1.running_var"):
        load_npz(state_dict)


def test_npz_states_no_normalization(state_dict, load_npz):
    with pytest.raises(
        UserError, match="set config.weights.normalization to torchvision, caffe, centered"
    ):
        load_npz(state_dict, normalization="auto")
    assert load_npz(state_dict, normalization="caffe").normalization == NORMALIZATIONS["caffe"]
    with pytest.raises(UserError, match="did you mean 'torchvision'"):
        load_npz(state_dict, normalization="torchvison")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("RGB 0-255 minus (123.68, 116.779, 103.939), no scaling", NORMALIZATIONS["caffe"]),
        (
            "RGB 0-255 minus (123.675, 116.28, 103.53), divided by (58.395, 57.12, 57.375)",
            NORMALIZATIONS["torchvision"],
        ),
        (
            "RGB 0-255 minus (1, 2, 3), no scaling",
            Normalization("stated", (1.0, 2.0, 3.0), (1.0, 1.0, 1.0)),
        ),
    ],
)
def test_input_in_prose_is_understood(text, want, tmp_path, shapes, state_dict):
    path = _write(tmp_path / "w.safetensors", state_dict, input=text)
    assert (
        weights.load(path, models.parse("cifar_resnet20"), shapes("cifar_resnet20")).normalization
        == want
    )
    with pytest.raises(UserError, match="states its input as"):
        weights.load(
            path, models.parse("cifar_resnet20"), shapes("cifar_resnet20"), normalization="centered"
        )


def test_input_that_is_not_understood_must_be_configured(tmp_path, shapes, state_dict):
    path = _write(tmp_path / "w.safetensors", state_dict, input="BGR, somehow")
    with pytest.raises(UserError, match="BGR, somehow.*set config.weights.normalization"):
        weights.load(path, models.parse("cifar_resnet20"), shapes("cifar_resnet20"))
    loaded = weights.load(
        path, models.parse("cifar_resnet20"), shapes("cifar_resnet20"), normalization="centered"
    )
    assert loaded.normalization == NORMALIZATIONS["centered"]


def test_plain_safetensors_are_taken_for_torchvision_and_said_so(tmp_path, shapes, state_dict):
    path = _write(tmp_path / "w.safetensors", state_dict, format="pt")
    loaded = weights.load(path, models.parse("cifar_resnet20"), shapes("cifar_resnet20"))
    assert loaded.normalization == NORMALIZATIONS["torchvision"]
    assert any("torchvision: assumed" in note for note in loaded.report.notes)


def test_broken_metadata_is_refused(tmp_path, shapes, state_dict):
    path = _write(tmp_path / "w.safetensors", state_dict, normalization='{"mean": 3}')
    with pytest.raises(UserError, match="metadata of .* cannot be understood"):
        weights.load(path, models.parse("cifar_resnet20"), shapes("cifar_resnet20"))


def test_stride_must_be_where_the_weights_had_it(tmp_path, shapes, randomize):
    path = tmp_path / "v1.safetensors"
    v1 = "resnet50(stride_in='1x1')"
    cut = randomize(shapes(v1, last_layer="layer1"))
    normalization = NORMALIZATIONS["caffe"]
    weights.export(
        path,
        v1,
        cut,
        normalization=normalization,
        last_layer="layer1",
        epsilon=1.001e-5,
    )
    loaded = weights.load(str(path), models.parse(v1), cut, last_layer="layer1")
    assert (loaded.epsilon, loaded.normalization) == (1.001e-5, normalization)
    with pytest.raises(
        UserError,
        match=r"stride in the 1x1 convolution.*set config.model.name=.resnet50\(stride_in='1x1'\)",
    ):
        weights.load(str(path), models.parse("resnet50"), cut, last_layer="layer1")


def test_timm_keeps_the_dense_layers_of_a_vgg_as_convolutions(tmp_path):
    """timm's pre_logits.fc1 is a 7x7 convolution of the numbers of torchvision's classifier.0."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(8, 7 * 7 * 4)).astype(np.float32)
    tensors = {
        "pre_logits.fc1.weight": dense.reshape(8, 4, 7, 7),
        "pre_logits.fc1.bias": np.zeros(8, np.float32),
        "head.fc.weight": np.zeros((5, 8), np.float32),
    }
    wanted = {"params": {"classifier_0": {"kernel": np.zeros((196, 8)), "bias": np.zeros(8)}}}
    loaded = weights.load(_write(tmp_path / "w.safetensors", tensors), None, wanted)
    np.testing.assert_array_equal(loaded.variables["params"]["classifier_0"]["kernel"], dense.T)
    assert loaded.report.unused == (("classifier.6.weight", (5, 8)),)


def test_a_users_own_module_takes_weights_by_name_alone(tmp_path, state_dict, variables):
    """No other architecture is guessed: the module is not in the table."""
    path = _write(tmp_path / "w.safetensors", state_dict)
    part = {"params": {"conv1": variables["params"]["conv1"]}}
    with pytest.raises(UserError, match="does not fit the backbone, in .* is not in the backbone"):
        weights.load(path, None, part)
    loaded = weights.load(path, None, part, allow=("bn1.*", "layer*"))
    np.testing.assert_array_equal(
        loaded.variables["params"]["conv1"]["kernel"], part["params"]["conv1"]["kernel"]
    )
