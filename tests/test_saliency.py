"""Grad-CAM and integrated gradients: closed forms of linear models, CAM, completeness, invariances; and pictures read back."""

import base64
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from medtl.models import saliency
from medtl.models.model import Head, Model
from medtl.models.resnet import ResNet
from medtl.models.vgg import VGG

TARGET = np.array([0, 2, 1])

BACKBONES = {
    "resnet": ResNet((1, 1), (64, 16)),
    "bottleneck": ResNet((1,), (64,), bottleneck=True),
    "cifar": ResNet((1, 1), (8, 16), cifar=True),
    "vgg": VGG(((0,), (3, 5)), (8, 16)),
    "vgg_bn": VGG(((0,), (4,)), (8, 16), batch_norm=True),
}


# As one program each: op by op they take far longer to compile.
grad_cam = jax.jit(saliency.grad_cam, static_argnums=0, static_argnames="domain")
integrated_gradients = jax.jit(
    saliency.integrated_gradients, static_argnums=0, static_argnames=("domain", "steps")
)
apply = jax.jit(Model.apply, static_argnums=0, static_argnames="train")


def drawn(model, shape):
    """Variables like those of a trained model, by NumPy: compiling `init` takes longer than all else here."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(
                np.float32
            )
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.1, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(
        draw, jax.eval_shape(lambda key: model.init(key, shape), jax.random.key(0))
    )


def make(name, *, shared=False, hidden=(), dtype=jnp.float32):
    """A narrow model, its variables, and three images."""
    heads = (
        {"shared": Head(3, hidden)}
        if shared
        else {"source": Head(2, hidden), "target": Head(3, hidden)}
    )
    head_of = {domain: "shared" if shared else domain for domain in ("source", "target")}
    model = Model(BACKBONES[name].clone(dtype=dtype), heads, head_of)
    image = np.random.default_rng(1).normal(size=(3, 16, 16, 1)).astype(np.float32)
    return model, drawn(model, (16, 16, 1)), image


def logits(model, variables, image, domain="target"):
    batch = {domain: {"image": jnp.asarray(image), "mask": jnp.ones(len(image))}}
    return np.asarray(apply(model, variables, batch, train=False)[0][domain].logits, np.float64)


def chosen(model, variables, image, target=TARGET):
    return logits(model, variables, image)[np.arange(len(target)), target]


def feature_map(model, variables, image):
    parts = {name: variables[name]["backbone"] for name in ("params", "batch_stats")}
    return np.asarray(
        jax.jit(lambda v, x: model.backbone.apply(v, x, use_batch_stats=False))(parts, image),
        np.float64,
    )


def bilinear(x, size):
    """[B, h, w] -> [B, size, size] with pixel centres at (i + 1/2) / size, edges repeated; written out."""

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
    """Zhou et al. 2016: the channel weights are those of the head, sum_k w_kc A_k (Selvaraju et al. 2017, section 3.1)."""
    model, variables, image = make(name)
    kernel = np.asarray(variables["params"]["heads"]["target"]["logits"]["kernel"], np.float64)
    activations = feature_map(model, variables, image)
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
    activations = feature_map(model, variables, image)
    open_ = (
        activations.mean(axis=(1, 2)) @ head["hidden_0"]["kernel"] + head["hidden_0"]["bias"] > 0
    )
    weights = (open_ * head["logits"]["kernel"].T[TARGET]) @ head["hidden_0"]["kernel"].T
    found = grad_cam(model, variables, image, domain="source", target=TARGET)
    np.testing.assert_allclose(found, by_channel_weights(weights, activations, 16), atol=2e-5)


def test_a_vgg_with_its_fully_connected_layers_is_explained_before_them():
    backbone = VGG(convs=((0,),), features=(4,), stages=1, classifier=True)
    model = Model(backbone, {"target": Head(3)}, {"target": "target"})
    variables = drawn(model, (14, 14, 1))
    image = np.random.default_rng(0).normal(0, 1, (3, 14, 14, 1)).astype(np.float32)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    parts = {"params": variables["params"]["backbone"]}
    activations = np.asarray(
        backbone.clone(classifier=False).apply(parts, image, use_batch_stats=False), np.float64
    )
    assert activations.shape == (3, 7, 7, 4)

    flat = activations.transpose(0, 3, 1, 2).reshape(3, -1)
    first, second = p["backbone"]["classifier_0"], p["backbone"]["classifier_3"]
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
    attribution = integrated_gradients(
        model, variables, image, domain="target", target=TARGET, steps=64
    )
    gain = chosen(model, variables, image) - chosen(model, variables, 0 * image)
    np.testing.assert_allclose(
        np.sum(attribution, axis=(1, 2, 3)), gain, atol=0.02 * np.abs(gain).max()
    )


def test_what_lowers_the_logit_is_not_shown_and_no_class_is_nothing():
    model, variables, image = make("cifar")
    heads = variables["params"]["heads"]
    # After the last ReLU activations are at least 0, so nowhere can these weights raise the logit of class 1.
    kernel = np.abs(heads["target"]["logits"]["kernel"]) * np.array([1, -1, 1], np.float32)
    heads = {**heads, "target": {"logits": {**heads["target"]["logits"], "kernel": kernel}}}
    variables = {**variables, "params": {**variables["params"], "heads": heads}}
    found = np.asarray(
        grad_cam(model, variables, image, domain="target", target=np.array([1, 0, -1]))
    )
    assert np.all(found[0] == 0) and np.all(found[2] == 0)
    assert found[1].max() == 1 and found[1].min() >= 0


class Linear(nn.Module):
    """A backbone that hands the image through: pooled, the logit is linear in the pixels."""

    @nn.compact
    def __call__(self, x, *, use_batch_stats, mask=None):
        return x * self.param("scale", nn.initializers.ones, (1,))


class Quadratic(nn.Module):
    @nn.compact
    def __call__(self, x, *, use_batch_stats, mask=None):
        return x**2 * self.param("scale", nn.initializers.ones, (1,))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_integrated_gradients_of_polynomials_are_exact(steps):
    image = np.random.default_rng(0).normal(0, 1, (3, 4, 5, 2)).astype(np.float32)
    baseline = np.full((4, 5, 2), 0.5, np.float32)
    for backbone, power in ((Linear(), 1), (Quadratic(), 2)):
        model = Model(backbone, {"h": Head(3)}, {"target": "h"})
        variables = drawn(model, (4, 5, 2))
        kernel = np.asarray(variables["params"]["heads"]["h"]["logits"]["kernel"])
        found = integrated_gradients(
            model, variables, image, domain="target", target=TARGET, baseline=baseline, steps=steps
        )
        scale = variables["params"]["backbone"]["scale"] / 20
        expected = scale * (image**power - baseline**power) * kernel.T[TARGET][:, None, None]
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["cifar", "resnet", "vgg_bn"])
def test_integrated_gradients_sum_to_the_gain_in_the_logit(name):
    model, variables, image = make(name)
    gain = chosen(model, variables, image) - chosen(model, variables, 0 * image)
    error = []
    for steps in (4, 32, 256):
        found = integrated_gradients(
            model, variables, image, domain="target", target=TARGET, steps=steps
        )
        assert found.shape == image.shape
        error.append(
            np.abs(np.sum(np.asarray(found, np.float64), axis=(1, 2, 3)) - gain).max()
            / np.abs(gain).max()
        )
    assert error[2] < error[0] and error[1] < 0.05 and error[2] < 0.01, error


def test_an_image_is_explained_alone():
    model, variables, image = make("cifar")
    for function in (grad_cam, functools.partial(integrated_gradients, steps=4)):
        whole = function(model, variables, image, domain="target", target=TARGET)
        alone = function(model, variables, image[1:2], domain="target", target=TARGET[1:2])
        np.testing.assert_allclose(alone[0], whole[1], atol=1e-5)


def test_without_jit_it_is_the_same():
    model, variables, image = make("vgg")
    options = {"domain": "target", "target": TARGET}
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
