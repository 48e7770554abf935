"""Grad-CAM: CAM, closed forms, invariances, any backbone; and pictures read back."""

import base64
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import freeze
from PIL import Image

from medtl.errors import UserError
from medtl.models import saliency
from medtl.models.layers import mark_feature_map
from medtl.models.model import Head, Model, init_variables
from medtl.models.resnet import ResNet
from medtl.models.vgg import VGG

TARGET = np.array([0, 2, 1])

BACKBONES = {
    "resnet": functools.partial(ResNet, (1, 1), (64, 16)),
    "bottleneck": functools.partial(ResNet, (1,), (64,), bottleneck=True),
    "cifar": functools.partial(ResNet, (1, 1), (8, 16), cifar=True),
    "vgg": functools.partial(VGG, (1, 2), (8, 16)),
    "vgg_bn": functools.partial(VGG, (1, 1), (8, 16), batch_norm=True),
}


# As one program each: op by op they take far longer to compile.
grad_cam = jax.jit(saliency.grad_cam, static_argnums=0, static_argnames="domain")


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, batch):
    return model.apply(variables, batch, train=False)


def drawn(model, shape):
    """Variables like those of a trained model, by NumPy: compiling `init` takes too long."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(
                np.float32
            )
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.1, leaf.shape).astype(np.float32)

    inputs = {"image": jax.ShapeDtypeStruct((1, *shape), jnp.float32)}
    return jax.tree.map_with_path(
        draw, jax.eval_shape(lambda key: init_variables(model, key, inputs), jax.random.key(0))
    )


def build(make_encoder, heads, head_of):
    """A model that `jit` can take as static: its attributes have a hash."""
    return Model(freeze({"image": make_encoder}), freeze(heads), freeze(head_of))


def make(name, *, shared=False, hidden=(), dtype=jnp.float32):
    """A narrow model, its variables, and three images."""
    heads = (
        {"shared": functools.partial(Head, 3, hidden)}
        if shared
        else {
            name: functools.partial(Head, k, hidden) for name, k in (("source", 2), ("target", 3))
        }
    )
    head_of = {domain: "shared" if shared else domain for domain in ("source", "target")}
    model = build(functools.partial(BACKBONES[name], dtype=dtype), heads, head_of)
    image = np.random.default_rng(1).normal(size=(3, 16, 16, 1)).astype(np.float32)
    return model, drawn(model, (16, 16, 1)), jnp.asarray(image)


def logits(model, variables, image, domain="target"):
    batch = {domain: {"image": jnp.asarray(image), "mask": jnp.ones(len(image))}}
    return np.asarray(apply(model, variables, batch)[domain].logits, np.float64)


def feature_map(make_encoder, variables, image):
    parts = {name: tree["encoders"]["image"] for name, tree in variables.items() if tree}
    found = jax.jit(lambda v, x: make_encoder().apply(v, x, False))(parts, image)
    return np.asarray(found, np.float64)


def bilinear(x, size):
    """[B, h, w] -> [B, size, size]: pixel centres at (i + 1/2) / size, edges repeated."""

    def weights(n):
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        matrix = np.zeros((size, n))
        matrix[np.arange(size), low] = 1 - (at - low)
        matrix[np.arange(size), np.minimum(low + 1, n - 1)] += at - low
        return matrix

    return np.einsum("ip,jq,bpq->bij", weights(x.shape[1]), weights(x.shape[2]), x)


def by_channel_weights(weights, activations, size):
    """The map of channel weights [B, D] over activations [B, h, w, D]."""
    cam = bilinear(np.maximum(np.einsum("bk,bijk->bij", weights, activations), 0), size)
    largest = cam.max(axis=(1, 2), keepdims=True)
    return np.divide(cam, largest, out=np.zeros_like(cam), where=largest > 0)


@pytest.mark.parametrize("name", BACKBONES)
def test_after_global_pooling_and_a_linear_head_it_is_cam(name):
    """Zhou et al. 2016: the channel weights are the head's (Selvaraju et al. 2017, section 3.1)."""
    model, variables, image = make(name)
    kernel = np.asarray(variables["params"]["heads"]["target"]["logits"]["kernel"], np.float64)
    activations = feature_map(model.make_encoders["image"], variables, image)
    assert activations.shape[1] > 1
    found = grad_cam(model, variables, image, domain="target", target=TARGET)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, by_channel_weights(kernel.T[TARGET], activations, 16), atol=2e-5
    )
    largest = np.max(found, axis=(1, 2))
    assert np.all((np.abs(largest - 1) < 1e-6) | (largest == 0)) and largest.any()


def test_a_hidden_layer_in_the_head_is_differentiated_by_hand():
    model, variables, image = make("cifar", shared=True, hidden=(16,))
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["heads"]["shared"])
    activations = feature_map(model.make_encoders["image"], variables, image)
    open_ = (
        activations.mean(axis=(1, 2)) @ head["hidden_0"]["kernel"] + head["hidden_0"]["bias"] > 0
    )
    weights = (open_ * head["logits"]["kernel"].T[TARGET]) @ head["hidden_0"]["kernel"].T
    found = grad_cam(model, variables, image, domain="source", target=TARGET)
    np.testing.assert_allclose(found, by_channel_weights(weights, activations, 16), atol=2e-5)


def test_a_vgg_with_its_fully_connected_layers_is_explained_before_them():
    backbone = functools.partial(VGG, (1,), (4,))
    model = build(
        functools.partial(backbone, classifier=True),
        {"target": functools.partial(Head, 3)},
        {"target": "target"},
    )
    variables = drawn(model, (14, 14, 1))
    image = jnp.asarray(np.random.default_rng(0).normal(0, 1, (3, 14, 14, 1)), jnp.float32)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    activations = feature_map(backbone, variables, image)
    assert activations.shape == (3, 7, 7, 4)

    flat = activations.transpose(0, 3, 1, 2).reshape(3, -1)
    first, second = (p["encoders"]["image"][name] for name in ("classifier_0", "classifier_3"))
    one = np.maximum(flat @ first["kernel"] + first["bias"], 0)
    two = np.maximum(one @ second["kernel"] + second["bias"], 0)
    head = p["heads"]["target"]["logits"]
    np.testing.assert_allclose(
        two @ head["kernel"] + head["bias"], logits(model, variables, image), rtol=1e-3, atol=1e-5
    )

    back = (two > 0) * head["kernel"].T[TARGET]
    back = ((one > 0) * (back @ second["kernel"].T)) @ first["kernel"].T
    weights = back.reshape(3, 4, 49).mean(axis=2)
    found = grad_cam(model, variables, image, domain="target", target=TARGET)
    np.testing.assert_allclose(found, by_channel_weights(weights, activations, 14), atol=2e-4)


def test_what_lowers_the_logit_is_not_shown_and_no_class_is_nothing():
    model, variables, image = make("cifar")
    heads = variables["params"]["heads"]
    # Activations are at least 0: nowhere can these weights raise the logit of class 1.
    kernel = np.abs(heads["target"]["logits"]["kernel"]) * np.array([1, -1, 1], np.float32)
    heads = {**heads, "target": {"logits": {**heads["target"]["logits"], "kernel": kernel}}}
    variables = {**variables, "params": {**variables["params"], "heads": heads}}
    found = np.asarray(
        grad_cam(model, variables, image, domain="target", target=np.array([1, 0, -1]))
    )
    assert np.all(found[0] == 0) and np.all(found[2] == 0)
    assert found[1].max() == pytest.approx(1, abs=1e-6) and found[1].min() >= 0


def test_an_image_is_explained_alone():
    model, variables, image = make("cifar")
    all_three = grad_cam(model, variables, image, domain="target", target=TARGET)
    alone = grad_cam(model, variables, image[1:2], domain="target", target=TARGET[1:2])
    np.testing.assert_allclose(alone[0], all_three[1], atol=1e-5)


class Pooled(nn.Module):
    """A user's own backbone; pools its map itself, which it may mark before."""

    marks: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        for i in range(self.marks):
            x = mark_feature_map(self, x) if i == 0 else Marked()(x)
        return jnp.mean(x, axis=(1, 2))


class Marked(nn.Module):
    @nn.compact
    def __call__(self, x):
        return mark_feature_map(self, x)


def test_a_users_own_backbone_is_explained_by_its_mark():
    image = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 8, 1)), jnp.float32)

    def heat(marks):
        model = build(
            functools.partial(Pooled, marks),
            {"target": functools.partial(Head, 3)},
            {"target": "target"},
        )
        variables = drawn(model, (8, 8, 1))
        return variables, grad_cam(model, variables, image, domain="target", target=TARGET)

    variables, found = heat(1)
    params = variables["params"]
    activations = nn.relu(
        nn.Conv(4, (3, 3)).apply({"params": params["encoders"]["image"]["Conv_0"]}, image)
    )
    weights = params["heads"]["target"]["logits"]["kernel"].T[TARGET]
    np.testing.assert_allclose(
        found, by_channel_weights(weights, np.asarray(activations), 8), atol=2e-5
    )
    with pytest.raises(UserError, match="gives no feature map"):
        heat(0)
    with pytest.raises(UserError, match="gives 2 feature maps"):
        heat(2)


class Table(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(5)(x)


def test_other_inputs_count_and_are_not_shown():
    """The head is linear: the table adds to the logit, and nothing to its gradient by the map."""
    image = make("cifar")[2]
    table = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)), jnp.float32)
    encoders = {"image": BACKBONES["cifar"], "table": Table}
    model = Model(freeze(encoders), freeze({"h": functools.partial(Head, 3)}), freeze({"": "h"}))
    inputs = jax.eval_shape(lambda: {"image": image[:1], "table": table[:1]})
    variables = init_variables(model, jax.random.key(0), inputs)
    heat = grad_cam(model, variables, image, domain="", target=TARGET, inputs={"table": table})
    kernel = np.asarray(variables["params"]["heads"]["h"]["logits"]["kernel"])[:16]
    activations = feature_map(BACKBONES["cifar"], variables, image)
    np.testing.assert_allclose(
        heat, by_channel_weights(kernel.T[TARGET], activations, 16), atol=2e-5
    )


def test_without_jit_it_is_the_same():
    model, variables, image = make("vgg")
    options = {"domain": "target", "target": jnp.asarray(TARGET)}
    variables = jax.tree.map(jnp.asarray, variables)
    eager = saliency.grad_cam(model, variables, image, **options)
    np.testing.assert_allclose(eager, grad_cam(model, variables, image, **options), atol=1e-5)


def test_grad_cam_does_not_depend_on_the_bias_or_the_scale_of_the_logit():
    model, variables, image = make("resnet", shared=True)
    head = variables["params"]["heads"]["shared"]["logits"]
    scaled = {"logits": {"kernel": 8 * head["kernel"], "bias": head["bias"] + 3}}
    other = {**variables, "params": {**variables["params"], "heads": {"shared": scaled}}}
    both = [grad_cam(model, v, image, domain="target", target=TARGET) for v in (variables, other)]
    np.testing.assert_allclose(*both, atol=1e-6)


def test_half_precision_gives_nearly_the_same_map():
    model, variables, image = make("cifar")
    half = make("cifar", dtype=jnp.bfloat16)[0]
    one, two = (
        grad_cam(m, variables, image, domain="target", target=TARGET) for m in (model, half)
    )
    assert two.dtype == jnp.float32 and np.all(np.isfinite(two))
    assert np.corrcoef(np.ravel(one), np.ravel(two))[0, 1] > 0.95


def decoded(uri):
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body, validate=True))))


def test_the_overlay_leaves_the_cold_and_colours_the_hot():
    image = np.array([[[0], [100], [200]]], np.uint8)
    found = saliency.overlay(image, np.array([[0.0, 1.0, 0.5]], np.float32))
    # 0.4 * 100 + 0.6 * (255, 255, 0), and 0.7 * 200 + 0.3 * (255, 127.5, 0).
    assert found.tolist() == [[[0, 0, 0], [193, 193, 40], [216, 178, 140]]]
    assert found.dtype == np.uint8
    assert np.array_equal(
        saliency.overlay(np.repeat(image, 3, axis=2), np.array([[-1.0, 2.0, 0.5]])), found
    )
    with pytest.raises(ValueError, match=r"heat is \[2, 3\] and the image \[1, 3, 1\]"):
        saliency.overlay(image, np.zeros((2, 3)))


def test_a_png_holds_the_very_pixels_and_a_large_one_is_made_smaller():
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 1), (5, 7, 3), (224, 100, 3)):
        image = rng.integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(
            decoded(saliency.png_data_uri(image)), image[..., 0] if shape[-1] == 1 else image
        )
    assert decoded(saliency.png_data_uri(np.zeros((100, 448), np.uint8))).shape == (50, 224)
    assert decoded(saliency.png_data_uri(np.zeros((100, 40, 3), np.uint8), max_side=50)).shape == (
        50,
        20,
        3,
    )
    with pytest.raises(ValueError, match=r"float64\[2, 2\]; it must be uint8"):
        saliency.png_data_uri(np.zeros((2, 2)))
