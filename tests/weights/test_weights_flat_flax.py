"""The flat `.npz` files of big_vision and BiT: names, axes of heads, stacked blocks, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from medtl import models, weights
from medtl.errors import UserError
from medtl.models.resnetv2 import ResNetV2
from medtl.models.vit import ViT

OURS = dict(width=32, depth=2, heads=2, patch=8, size=32, activation="gelu_tanh")
POOLS = {"tok": dict(), "map": dict(class_token=False, pool="attention")}


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(4 * x.shape[-1])(x))
        return nn.Dense(x.shape[-1])(hidden)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + MlpBlock()(nn.LayerNorm()(x))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = Block(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class MAPHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.normal(), (1, 1, x.shape[-1]))
        x = nn.MultiHeadDotProductAttention(2)(jnp.tile(probe, [len(x), 1, 1]), x)
        return (x + MlpBlock()(nn.LayerNorm()(x)))[:, 0]


class BigVision(nn.Module):
    """The ViT of big_vision from Flax's own layers, under its names."""

    pool: str

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (8, 8), strides=(8, 8), padding="VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, 32)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, 16, 32))
        if self.pool == "tok":
            token = self.param("cls", nn.initializers.normal(), (1, 1, 32))
            x = jnp.concatenate([jnp.tile(token, [len(x), 1, 1]), x], axis=1)
        x = Transformer(name="Transformer")(x)
        return x[:, 0] if self.pool == "tok" else MAPHead()(x)


@pytest.fixture(scope="module", params=POOLS)
def pair(request):
    """A network of big_vision: images, its variables by flat name, its features, and ours."""
    net, images = BigVision(request.param), jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    like = jax.eval_shape(net.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    flat = {
        "/".join(path): rng.normal(scale=0.3, size=x.shape).astype(np.float32)
        for path, x in traverse_util.flatten_dict(like).items()
    }
    params = traverse_util.unflatten_dict({tuple(k.split("/")): x for k, x in flat.items()})
    ours = ViT(**OURS, **POOLS[request.param])
    return images, flat, jax.jit(net.apply)({"params": params}, images), ours


def features(path, module, images, **options):
    like = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), images)
    loaded = weights.load(
        str(path), None, {"batch_stats": {}, **like}, normalization="inception", **options
    )
    apply = jax.jit(lambda variables, x: module.apply(variables, x, False))
    return apply(loaded.variables, images), loaded.report


def test_big_vision_s_vit_computes_the_same(pair, tmp_path):
    images, flat, expected, module = pair
    np.savez(tmp_path / "w.npz", **{f"params/img/{name}": x for name, x in flat.items()})
    found, report = features(tmp_path / "w.npz", module, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert "names of big_vision's ViT" in report.notes
    assert "the prefix 'params.img.' of the names left out" in report.notes


def test_stacked_blocks_of_bfloat16(pair, tmp_path):
    images, flat, expected, module = pair
    start = "Transformer/encoderblock_"
    stacked = {name: x for name, x in flat.items() if not name.startswith(start)}
    for name in [name for name in flat if name.startswith(f"{start}0/")]:
        both = [flat[name], flat[name.replace("block_0", "block_1")]]
        stacked[name.replace("block_0", "block")] = np.stack(both)
    narrow = {name: np.asarray(jnp.asarray(x, jnp.bfloat16)) for name, x in stacked.items()}
    np.savez(tmp_path / "w.npz", **narrow)
    with np.load(tmp_path / "w.npz") as file:
        assert file["Transformer/encoder_norm/scale"].dtype == np.dtype("V2")
    found, _ = features(tmp_path / "w.npz", module, images)
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def of_authors(name, is_first):
    """The name of a BiT's tensor in its authors' files, first or second generation, from timm's."""
    scale = {"weight": "gamma", "bias": "beta"} if is_first else {"weight": "scale", "bias": "bias"}
    *modules, leaf = name.split(".")
    if modules[0] == "stem":
        conv = "resnet/root_block/standardized_conv2d" if is_first else "root_block/conv_root"
        return f"{conv}/kernel"
    if modules[0] == "norm":
        return f"{'resnet/group_norm' if is_first else 'norm-pre-head'}/{scale[leaf]}"
    unit = f"block{int(modules[1]) + 1}/unit{int(modules[3]) + 1:02d}"
    kind, number = modules[4][:-1], modules[4][-1]
    if not is_first:
        inner = {"norm": f"gn{number}", "conv": f"conv{number}"}.get(kind, "conv_proj")
        return f"{unit}/{inner}/{scale[leaf] if kind == 'norm' else 'kernel'}"
    letter = "abc"[int(number) - 1] if number.isdigit() else "a/proj"
    inner = "group_norm" if kind == "norm" else "standardized_conv2d"
    return f"resnet/{unit}/{letter}/{inner}/{scale[leaf] if kind == 'norm' else 'kernel'}"


@pytest.mark.parametrize("is_first", [True, False])
def test_both_names_of_bit(is_first, tmp_path, randomize):
    module = ResNetV2((1, 11), (128, 256))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    like = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)
    variables = {"batch_stats": {}, **randomize(like)}
    named = {}
    for name, leaf in weights.naming.leaves(variables).items():
        value = leaf.value if is_first or leaf.value.ndim == 4 else leaf.value[None, None, None]
        named[of_authors(name, is_first)] = value
    named["resnet/head/conv2d/kernel" if is_first else "head/kernel"] = np.zeros((256, 5))
    assert any("block2/unit11/" in name for name in named)
    np.savez(tmp_path / "w.npz", **named)
    loaded = weights.load(str(tmp_path / "w.npz"), None, like, normalization="inception")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], variables["params"])
    assert "names of the BiT of its authors" in loaded.report.notes


def test_flat_variables_of_our_own(tmp_path, variables, shapes):
    flat = traverse_util.flatten_dict(variables, sep="/")
    np.savez(tmp_path / "w.npz", **flat)
    arguments = (models.parse("cifar_resnet20"), shapes("cifar_resnet20"))
    loaded = weights.load(str(tmp_path / "w.npz"), *arguments, normalization="caffe")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    del flat["params/layer1_0/conv1/kernel"]
    np.savez(tmp_path / "w.npz", **flat)
    with pytest.raises(UserError, match="layer1.0.conv1.weight .* is missing"):
        weights.load(str(tmp_path / "w.npz"), *arguments, normalization="caffe")
