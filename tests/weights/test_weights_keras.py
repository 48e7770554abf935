"""Files of keras.applications, loaded here, give Keras's own features for the same uint8 images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medtl import models, weights
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS
from medtl.weights import keras_h5

h5py = pytest.importorskip("h5py")
keras = pytest.importorskip("keras")

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of Keras's writer
SIZE = 64


def _hoist(whole, path):
    """A model as Keras 2 saved it -> the published layout: `model_weights` moves to the root."""
    with h5py.File(whole) as source, h5py.File(path, "w") as target:
        for name, group in source["model_weights"].items():
            source.copy(group, target, name)
        for name, value in source["model_weights"].attrs.items():
            target.attrs[name] = value


def _randomize(model, seed):
    """Random biases and statistics too; small last scales, so that depth amplifies no rounding."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name in ("gamma", "moving_variance"):
                last = weight.name == "gamma" and layer.name.endswith("_3_bn")
                weight.assign(rng.uniform(0.8, 1.2, weight.shape) * (0.2 if last else 1.0))
            elif weight.name == "kernel":
                weight.assign(
                    rng.normal(size=weight.shape) * np.sqrt(2 / np.prod(weight.shape[:-1]))
                )
            else:
                weight.assign(rng.normal(size=weight.shape) * 0.1)


BUILD = {
    "resnet50": (keras.applications.ResNet50, keras.applications.resnet),
    "resnet101": (keras.applications.ResNet101, keras.applications.resnet),
    "resnet152": (keras.applications.ResNet152, keras.applications.resnet),
    "vgg16": (keras.applications.VGG16, keras.applications.vgg16),
    "vgg19": (keras.applications.VGG19, keras.applications.vgg19),
}
QUICK = ("resnet50", "vgg16")


@pytest.fixture(
    scope="module",
    params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BUILD],
)
def trained(request, tmp_path_factory):
    """Name, folder with the weights in each layout, uint8 images, and Keras's features of them."""
    build, module = BUILD[request.param]
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # Keras's own initializers are compiled for each shape, half a minute
        zeros = lambda self, shape, dtype=None: np.zeros(shape, np.float32)  # noqa: E731
        patch.setattr(keras.initializers.GlorotUniform, "__call__", zeros)
        model = build(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    _randomize(model, seed=0)
    folder = tmp_path_factory.mktemp(request.param)
    model.save(folder / "model.h5")
    _hoist(folder / "model.h5", folder / "legacy.h5")
    model.save_weights(folder / "keras3.weights.h5")
    images = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    return (
        request.param,
        folder,
        images,
        model.predict(module.preprocess_input(images.astype(np.float32)), verbose=0),
    )


def _text(name):
    return f"{name}(stride_in='1x1')" if name.startswith("resnet") else name


def test_features_equal_keras(trained, shapes):
    name, folder, images, want = trained
    text = _text(name)
    weights.check(str(folder / "legacy.h5"))
    loaded = weights.load(str(folder / "legacy.h5"), models.parse(text), shapes(text))
    assert loaded.normalization == NORMALIZATIONS["caffe"]
    assert loaded.epsilon == 1.001e-5
    assert loaded.report.left_random == loaded.report.unused == ()
    x = (images - np.array(loaded.normalization.mean)) / np.array(loaded.normalization.std)
    module = models.backbone(text, epsilon=loaded.epsilon)()
    apply = jax.jit(lambda v, x: module.apply(v, x, False))
    found = apply(loaded.variables, jnp.asarray(x, jnp.float32))
    error = np.linalg.norm(found - want) / np.linalg.norm(want)
    print(f"{name}: {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize("file", ["model.h5", "keras3.weights.h5"])
def test_other_layouts_hold_the_same(trained, file):
    _, folder, *_ = trained
    tensors, metadata = keras_h5.read(str(folder / file))
    published, stated = keras_h5.read(str(folder / "legacy.h5"))
    assert (tensors.keys(), metadata) == (published.keys(), stated)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, published[name])


def test_config_that_contradicts_keras_is_refused(trained, shapes):
    name, folder, *_ = trained
    path = str(folder / "legacy.h5")
    if name.startswith("resnet"):
        with pytest.raises(
            UserError,
            match=r"stride in the 1x1 convolution.*set config.model.name=.resnet\d+\(stri",
        ):
            weights.load(path, models.parse(name), shapes(name))
    text = _text(name)
    assumed = weights.load(path, models.parse(text), shapes(text))
    assert assumed.normalization == NORMALIZATIONS["caffe"]
    assert any("caffe: assumed, as the file states none" in note for note in assumed.report.notes)
    given = "mean(127.5,127.5,127.5) std(127.5,127.5,127.5)"
    loaded = weights.load(path, models.parse(text), shapes(text), normalization=given)
    assert loaded.normalization.std == (127.5,) * 3
    with pytest.raises(UserError, match=f"It looks like {name}"):
        weights.load(path, models.parse("cifar_resnet20"), shapes("cifar_resnet20"))


def test_dense_layers_of_a_vgg_flatten_channels_first(tmp_path):
    """Keras's fc1 on a map, channels last, equals the loaded kernel on it, channels first."""
    rng = np.random.default_rng(0)
    kernels = {
        "block1_conv1": rng.normal(size=(3, 3, 3, 5)),
        "fc1": rng.normal(size=(7 * 7 * 5, 11)),
    }
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = list(kernels)
        for layer, kernel in kernels.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [
                f"{layer}_W_1:0",
                f"{layer}_b_1:0",
            ]  # as Keras 1 named them
            group[f"{layer}_W_1:0"], group[f"{layer}_b_1:0"] = kernel, np.zeros(kernel.shape[-1])
    tensors, _ = keras_h5.read(str(tmp_path / "w.h5"))
    feature_map = rng.normal(size=(7, 7, 5))
    found = tensors["classifier.0.weight"] @ feature_map.transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(found, feature_map.reshape(-1) @ kernels["fc1"], rtol=1e-10)
    bgr = tensors["features.0.weight"].transpose(2, 3, 1, 0)[:, :, ::-1]
    np.testing.assert_array_equal(bgr, kernels["block1_conv1"])


@pytest.mark.parametrize("layers", [["conv1_conv", "conv2_block1_preact_bn"], ["dense"], []])
def test_other_models_are_refused(tmp_path, layers):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer in layers:
            file.create_group(layer).attrs["weight_names"] = ["w"]
            file[layer]["w"] = np.zeros((3, 3, 3, 4), np.float32)
    with pytest.raises(
        UserError, match="Keras-applications ResNet or VGG|holds neither conv1_conv nor"
    ):
        weights.load(str(path), models.parse("resnet50"), {"params": {}})


def test_a_keras_file_is_read_also_where_the_model_is_nested(tmp_path):
    """`model.save("x.keras")` of a backbone, and of a classifier that has it as one layer."""
    backbone = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
    backbone.save(tmp_path / "plain.keras")
    keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]).save(
        tmp_path / "nested.keras"
    )
    plain, nested = (keras_h5.read(str(tmp_path / f"{n}.keras"))[0] for n in ("plain", "nested"))
    assert plain.keys() == nested.keys()
    kernel = np.asarray(backbone.get_layer("block5_conv3").kernel)
    for tensors in (plain, nested):
        np.testing.assert_array_equal(tensors["features.28.weight"], kernel.transpose(3, 2, 0, 1))
    content = (tmp_path / "plain.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated or no Keras file"):
        weights.check(str(tmp_path / "cut.keras"))
