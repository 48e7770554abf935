"""Vision transformers and ConvNeXt against Hugging Face's own modules, names included."""

from __future__ import annotations

import pytest

from medtl.models.convnext import ConvNeXt
from medtl.models.resnetv2 import ResNetV2
from medtl.models.vit import ViT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from equal_weights import compare  # noqa: E402

SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
PLAIN = dict(**SIZE, intermediate_size=64, image_size=32, patch_size=8)
OURS = dict(width=32, depth=2, heads=2, patch=8, size=32, mlp_width=64)
SIGLIP = dict(class_token=False, activation="gelu_tanh", pool="attention")
CLIP = dict(pre_norm=True, patch_bias=False, activation="quick_gelu", norm_epsilon=1e-5)
DINOV2 = {**OURS, "mlp_width": 128, "layer_scale": True}
DINOV3 = dict(layer_scale=True, position="rope", registers=3, key_bias=False, norm_epsilon=1e-5)
CASES = {
    "ViT": ("ViT", dict(PLAIN, layer_norm_eps=1e-6), OURS),
    "Dinov2": ("Dinov2", dict(**SIZE, patch_size=8, image_size=32), DINOV2),
    "Dinov2WithRegisters": (
        "Dinov2WithRegisters",
        dict(**SIZE, patch_size=8, image_size=32, num_register_tokens=3),
        dict(DINOV2, registers=3, antialias=True),
    ),
    "DINOv3": ("DINOv3ViT", dict(PLAIN, num_register_tokens=3), dict(OURS, **DINOV3)),
    "DINOv3, gated": (
        "DINOv3ViT",
        dict(PLAIN, num_register_tokens=3, use_gated_mlp=True, hidden_act="silu"),
        dict(OURS, **DINOV3, gated=True),
    ),
    "CLIP": ("CLIPVision", PLAIN, dict(OURS, **CLIP)),
    "SigLIP": ("SiglipVision", PLAIN, dict(OURS, **SIGLIP)),
}


def build(kind, config):
    settings = getattr(transformers, f"{kind}Config")(**config, attn_implementation="eager")
    return getattr(transformers, f"{kind}Model")(settings)


def pooled(net, **options):
    def features(images):
        output = net(pixel_values=images, **options)
        if hasattr(output, "last_hidden_state") and "ViTModel" in type(net).__name__[:8]:
            return output.last_hidden_state[:, 0]
        return output.pooler_output

    return features


@pytest.mark.parametrize("px", [32, 24])
@pytest.mark.parametrize("name", CASES)
def test_features_and_gradients(name, px, tmp_path):
    """At the native size, and at one where position embeddings are interpolated."""
    kind, config, ours = CASES[name]
    net = build(kind, config)
    if kind == "DINOv3ViT":  # in training it moves positions at random
        for field in ("shift", "jitter", "rescale"):
            setattr(net.config, f"pos_embed_{field}", None)
    options = {} if "DINO" in kind.upper() else {"interpolate_pos_encoding": True}
    errors = compare(net, ViT(**ours), tmp_path, px=px, features=pooled(net, **options))
    print(name, px, errors)
    assert "Hugging Face's vision transformer" in errors.notes
    assert errors.evaluation < 1e-5
    assert errors.training < 1e-4
    assert errors.gradient < 1e-3


def test_masked_autoencoder_without_masking(tmp_path):
    config = transformers.ViTMAEConfig(**PLAIN, mask_ratio=0.0, layer_norm_eps=1e-6)
    net = transformers.ViTMAEModel(config)
    net.embeddings.position_embeddings.requires_grad_(True)

    def features(images):
        noise = torch.arange(16.0).expand(len(images), -1)  # keeps the order of the patches
        return net(pixel_values=images, noise=noise).last_hidden_state[:, 1:].mean(dim=1)

    errors = compare(net, ViT(**OURS, pool="mean"), tmp_path, px=32, features=features)
    print(errors)
    assert errors.evaluation < 1e-5
    assert errors.gradient < 1e-3


@pytest.mark.parametrize("px", [64, 97])
def test_convnext(px, tmp_path):
    depths, widths = (1, 1, 2, 1), (8, 16, 24, 32)
    config = transformers.ConvNextConfig(
        depths=depths, hidden_sizes=widths, layer_norm_eps=1e-6, drop_path_rate=0.0
    )
    net = transformers.ConvNextModel(config)
    errors = compare(
        net, ConvNeXt(depths, widths), tmp_path, px=px, features=lambda x: net(x).pooler_output
    )
    print(errors)
    assert "Hugging Face's ConvNeXt" in errors.notes
    assert errors.evaluation < 1e-5
    assert errors.training < 1e-4
    assert errors.gradient < 1e-3


def test_bit(tmp_path):
    depths, widths = (1, 2, 1), (128, 256, 256)
    config = transformers.BitConfig(embedding_size=32, hidden_sizes=widths, depths=depths)
    net = transformers.BitModel(config)
    errors = compare(
        net, ResNetV2(depths, widths), tmp_path, px=69, features=lambda x: net(x).last_hidden_state
    )
    print(errors)
    assert "Hugging Face's BiT" in errors.notes
    assert errors.evaluation < 1e-5
    assert errors.gradient < 1e-3
