"""Transformers, ConvNeXts, DenseNets and EfficientNets apart from other libraries."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from random_variables import relative_error

from medtl import models, weights
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS
from medtl.models import convs, positions
from medtl.models.convnext import ConvNeXt
from medtl.models.densenet import DenseNet
from medtl.models.efficientnet import EfficientNet
from medtl.models.resnet import ResNet
from medtl.models.resnetv2 import ResNetV2
from medtl.models.vit import ViT
from medtl.weights import families, transformers

TINY = dict(width=16, depth=1, heads=2, patch=8, size=32)
MODULES = {
    "vit": ViT(**TINY, layer_scale=True, registers=2),
    "rope": ViT(**TINY, position="rope", gated=True, pool="mean", key_bias=False),
    "siglip": ViT(**TINY, class_token=False, pool="attention", activation="gelu_tanh"),
    "convnext": ConvNeXt((1, 1), (4, 8)),
    "densenet": DenseNet((1, 1), growth=4, stem=8),
    "efficientnet": EfficientNet((1, 1), (4, 8), last_layer="layer2"),
    "resnet_d": ResNet((1, 1), (64, 128), True, cardinality=8, deep_stem=True, pool_shortcut=True),
    "bit": ResNetV2((1, 1), (128, 256)),
}


def shapes(module, px=56, channels=3):
    images = jax.ShapeDtypeStruct((2, px, px, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, True), images)


@pytest.mark.parametrize(
    "name",
    [
        "dinov2_vits14_reg",
        "dinov3_vits16",
        "clip_vitb32",
        "siglip_vitb16",
        "densenet169",
        "resnext50d_32x4d",
        "resnetv2_50x1_bit",
    ],
)
def test_groups_of_a_cut_network_are_its_parameters(name):
    architecture = models.parse(name)
    module = models.backbone(name, last_layer="layer2")()
    features, variables = shapes(module, 56 if "14" in name else 64)
    groups = module.groups()
    assert groups == architecture.groups("layer2")
    assert sorted(sum(groups.values(), ())) == sorted(variables["params"])
    assert set(groups.items()) <= set(architecture.groups().items())
    assert features.shape[-1] == architecture.widths[1]


# Published sizes (timm's and torchvision's tables), less the classifier and unused tokens.
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("deit_tiny_patch16", 5_717_416 - 193_000),
        ("dinov2_vits14", 22_056_576 - 384),
        ("convnext_tiny", 28_589_128 - 769_000),
        ("densenet121", 7_978_856 - 1_025_000),
        ("efficientnet_lite0", 4_652_008 - 1_281_000),
        ("efficientnet_b0", 5_288_548 - 1_281_000),
        ("resnet18d", 11_708_744 - 513_000),
        ("resnet26d", 16_014_408 - 2_049_000),
        ("resnet50d", 25_576_264 - 2_049_000),
        ("resnext50_32x4d", 25_028_904 - 2_049_000),
        ("resnext101_32x8d", 88_791_336 - 2_049_000),
        ("resnext101_64x4d", 83_455_272 - 2_049_000),
        ("wide_resnet50_2", 68_883_240 - 2_049_000),
        ("wide_resnet101_2", 126_886_696 - 2_049_000),
        ("resnetv2_50x1_bit", 25_549_352 - 2_049_000),
        ("resnetv2_152x4_bit", 936_533_224 - 8_193_000),
    ],
)
def test_published_parameter_counts(text, count):
    module = models.backbone(text)()
    _, variables = shapes(module, 56 if "14" in text else 64)
    assert module.groups() == models.parse(text).groups()
    assert sorted(sum(module.groups().values(), ())) == sorted(variables["params"])
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count


def drawn(module, px=64):
    _, like = shapes(module, px)
    rng = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(
            rng.uniform(0.5, 1.5, x.shape)
            if path[-1].key in ("scale", "var", "gamma")
            else rng.normal(size=x.shape) / np.sqrt(max(np.prod(x.shape[:-1]), 25)),
            jnp.float32,
        ),
        like,
    )


@pytest.mark.parametrize("kind", MODULES)
def test_remat_and_bfloat16_compute_the_same(kind):
    module, variables = MODULES[kind], drawn(MODULES[kind])
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 64, 64, 3)), jnp.float32)

    def gradient(module):
        def loss(params):
            features, _ = module.apply(
                {**variables, "params": params}, images, True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.cos(features.astype(jnp.float32)))

        return jax.jit(jax.grad(loss))(variables["params"])

    expected = traverse_util.flatten_dict(gradient(module))
    found = traverse_util.flatten_dict(gradient(module.clone(remat=True)))
    total = np.sqrt(sum(float(jnp.sum(x**2)) for x in expected.values()))
    assert total > 0
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-4 * total, err_msg=path)

    narrow = module.clone(dtype=jnp.bfloat16).apply(variables, images, False)
    assert narrow.dtype == jnp.bfloat16
    assert relative_error(narrow, module.apply(variables, images, False)) < 0.05


def test_keys_without_a_bias_never_get_one():
    module, variables = MODULES["rope"], drawn(MODULES["rope"])
    images = jnp.ones((1, 32, 32, 3))
    loss = jax.grad(lambda p: module.apply({"params": p}, images, True).sum())
    bias = loss(variables["params"])["blocks_0"]["attn"]["qkv"]["bias"].reshape(3, -1)
    assert (bias[1] == 0).all() and (bias[0] != 0).any() and (bias[2] != 0).any()


@pytest.mark.parametrize(
    ("size", "stride", "same"),
    [(3, 1, False), (7, 1, False), (4, 1, True), (5, 2, True), (3, 2, True)],
)
def test_both_forms_of_a_depthwise_convolution_are_equal(size, stride, same):
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 11, 8, 5), (size, size, 1, 5))
    )
    padding = [(size // 2, size // 2)] * 2
    if same:
        padding = [convs.same_padding(side, size, stride) for side in (11, 8)]

    def value_and_gradient(form):
        def loss(x, kernel):
            y = convs.depthwise(x, kernel, stride=stride, padding=padding, form=form)
            return jnp.sum(jnp.sin(y)), y

        def of_gradient(x, kernel):  # as weights that a held-out loss learns need it
            return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1), has_aux=True)(x, kernel)[0])

        (_, y), gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
        return y, *gradient, *jax.grad(of_gradient, (0, 1))(x, kernel)

    for found, expected in zip(value_and_gradient("cpu"), value_and_gradient("plain"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("groups", "stride"), [(32, 1), (6, 2)])
def test_both_forms_of_a_grouped_convolution_are_equal(groups, stride):
    """128 channels are two dense convolutions, 18 are one with all groups."""
    rng = np.random.default_rng(0)
    channels = 4 * groups if stride == 1 else 3 * groups
    x, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 9, 6, channels), (3, 3, channels // groups, 2 * groups))
    )

    def value_and_gradient(form):
        def loss(x, kernel):
            y = convs.grouped(x, kernel, stride=stride, padding=1, groups=groups, form=form)
            return jnp.sum(jnp.sin(y)), y

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (_, y), gradient = run(x, kernel)
        return y, *gradient

    for found, expected in zip(value_and_gradient("cpu"), value_and_gradient("plain"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(("antialias", "offset"), [(False, 0.0), (True, 0.0), (False, 0.1)])
@pytest.mark.parametrize("grid", [(5, 9), (11, 7), (7, 7)])
def test_embeddings_are_interpolated_as_pytorch_does(grid, antialias, offset):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(1, 1 + 49, 4)).astype(np.float32)
    patches = torch.from_numpy(table[:, 1:]).reshape(1, 7, 7, 4).permute(0, 3, 1, 2).double()
    size = dict(scale_factor=[(n + offset) / 7 for n in grid]) if offset else dict(size=grid)
    expected = torch.nn.functional.interpolate(
        patches, **size, mode="bicubic", align_corners=False, antialias=antialias
    )
    expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 4).numpy()
    found = positions.resize(jnp.asarray(table), 1, grid, antialias=antialias, offset=offset)
    np.testing.assert_array_equal(found[:, :1], table[:, :1])
    if grid != (7, 7):
        np.testing.assert_allclose(found[:, 1:], expected, atol=1e-5)
    else:  # DINO does not interpolate then either
        np.testing.assert_array_equal(found, table)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("dinov2_vits14_reg", "layer1"),
        ("dinov3_vits16plus", "layer1"),
        ("siglip_vitb16", "layer1"),
        ("convnext_tiny", "layer1"),
        ("densenet121", "layer2"),
        ("efficientnet_lite0", "layer3"),
        ("resnet18d", "layer2"),
        ("resnext50d_32x4d", "layer1"),
        ("wide_resnet50_2", "layer1"),
        ("resnetv2_50x1_bit", "layer1"),
    ],
)
def test_export_comes_back_bit_for_bit(name, last, tmp_path):
    module = models.backbone(name, last_layer=last)()
    variables = drawn(module, 112)
    path = tmp_path / "out.safetensors"
    normalization = NORMALIZATIONS["inception"]
    weights.export(path, name, variables, normalization=normalization, last_layer=last)
    _, like = shapes(module, 112)
    like = {collection: like.get(collection, {}) for collection in ("params", "batch_stats")}
    loaded = weights.load(str(path), models.parse(name), like, last_layer=last)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, {"batch_stats": {}, **variables})
    if name == "densenet121":
        assert "features.denseblock2.denselayer12.conv2.weight" in weights_of(path)


def weights_of(path):
    from safetensors.numpy import load_file

    return load_file(path)


def test_names_of_transformers_4(tmp_path):
    """The files on the Hub have these names, although transformers 5 has others in memory."""
    start = "vit.encoder.layer.0."
    foreign = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        f"{start}attention.attention.qkv.weight": "blocks.0.attn.qkv.weight",
        f"{start}attention.output.dense.bias": "blocks.0.attn.proj.bias",
        f"{start}intermediate.dense.weight": "blocks.0.mlp.fc1.weight",
        f"{start}output.dense.weight": "blocks.0.mlp.fc2.weight",
        f"{start}layernorm_before.weight": "blocks.0.norm1.weight",
        f"{start}layernorm_after.weight": "blocks.0.norm2.weight",
        "vit.layernorm.weight": "norm.weight",
    }
    found, notes = families.renamed(foreign, set(foreign.values()), lambda name: True)
    assert found == {name: name for name in foreign.values()}
    assert notes == (
        "names of Hugging Face's vision transformer",
        "the prefix 'vit.' of the names left out",
    )


def test_queries_keys_and_values_are_joined():
    parts = {n: np.full((2, 2), i, np.float32) for i, n in enumerate(("query", "key", "value"))}
    tensors = {f"x.{name}.weight": value for name, value in parts.items()}
    tensors |= {"x.query.bias": np.ones(2, np.float32), "x.value.bias": np.ones(2, np.float32)}
    strict, found = dict(tensors), dict(tensors)
    transformers.join(strict)
    assert "x.query.bias" in strict and "x.qkv.bias" not in strict  # is missing the key's, loudly
    transformers.join(found, key_bias=False)
    np.testing.assert_array_equal(found["x.qkv.weight"], np.repeat([0, 1, 2], 2)[:, None] * [1, 1])
    np.testing.assert_array_equal(found["x.qkv.bias"], [1, 1, 0, 0, 1, 1])
    del tensors["x.key.weight"], tensors["x.value.weight"]
    transformers.join(tensors)
    assert "x.query.weight" in tensors  # a misfit, with the file's own name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vit_small_patch16(size=100)", "size of vit_small_patch16 is 100; it can be a multiple"),
        ("dinov2_vits14(pool='attention')", "it can be 'token' or 'mean'"),
        ("siglip_vitb16(pool='token')", "it can be 'attention' or 'mean'"),
        ("dinov3_vits16(size=32)", "no option 'size'"),
        ("convnext_tiny(size=32)", "no option 'size'"),
        ("convnext_tinny", "did you mean 'convnext_tiny'"),
    ],
)
def test_wrong_options_name_what_is_right(text, message):
    with pytest.raises(UserError, match=message):
        models.backbone(text)


def test_an_image_of_parts_of_patches_is_refused():
    with pytest.raises(UserError, match=r"100x100 is not a whole number of patches.*98 or 112"):
        shapes(models.backbone("dinov2_vits14")(), 100)


def test_a_file_without_a_block_does_not_fit(tmp_path):
    name, module = "deit_tiny_patch16", models.backbone("deit_tiny_patch16")()
    _, like = shapes(module, 64)
    state = {n: np.zeros(leaf.torch_shape) for n, leaf in weights.naming.leaves(like).items()}
    state = {n: x for n, x in state.items() if not n.startswith("blocks.11.")}
    np.savez(tmp_path / "w.npz", **state)
    with pytest.raises(UserError, match="It ends with layer11"):
        weights.load(str(tmp_path / "w.npz"), models.parse(name), {**like, "batch_stats": {}})
