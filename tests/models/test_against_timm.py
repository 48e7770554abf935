"""Backbones against timm's and torchvision's own modules, names included."""

from __future__ import annotations

import pytest

from medtl import models
from medtl.models.convnext import ConvNeXt
from medtl.models.densenet import DenseNet
from medtl.models.efficientnet import EfficientNet
from medtl.models.resnet import ResNet
from medtl.models.resnetv2 import ResNetV2
from medtl.models.vit import ViT

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
from equal_weights import compare  # noqa: E402

KW = dict(embed_dim=32, depth=2, num_heads=2, num_classes=0, img_size=32, patch_size=8)
OURS = dict(width=32, depth=2, heads=2, patch=8, size=32)
VITS = {
    "vit_small_patch16_224": ({}, {}),
    "vit_small_patch14_reg4_dinov2": (
        {"dynamic_img_size": True},
        dict(layer_scale=True, registers=4, antialias=True),
    ),
    "vit_base_patch16_siglip_224": (
        {"act_layer": "gelu_tanh"},
        dict(class_token=False, activation="gelu_tanh", pool="attention"),
    ),
    "vit_base_patch16_clip_quickgelu_224": (
        {},
        dict(pre_norm=True, patch_bias=False, activation="quick_gelu", norm_epsilon=1e-5),
    ),
}


def assert_equal(errors):
    print(errors)
    assert errors.evaluation < 1e-5
    assert errors.training < 1e-4
    assert errors.statistics < 1e-4
    assert errors.gradient < 1e-3


@pytest.mark.parametrize("px", [32, 24])
@pytest.mark.parametrize("name", VITS)
def test_vit(name, px, tmp_path):
    options, ours = VITS[name]
    net = timm.create_model(name, **{**KW, "dynamic_img_size": True, **options})
    module = ViT(**{**OURS, "antialias": True, **ours})
    has_extra_row = "reg4" in name  # of position embeddings, which timm has not
    assert_equal(compare(net, module, tmp_path, px=px, features=net, gradient=not has_extra_row))


def test_dinov3(tmp_path):
    net = timm.create_model("vit_small_plus_patch16_dinov3", **{**KW, "mlp_ratio": 4})
    ours = dict(layer_scale=True, position="rope", registers=4, norm_epsilon=1e-5, gated=True)
    module = ViT(**OURS, **ours, pool="mean")
    errors = compare(net, module, tmp_path, px=32, features=net, gradient=False)
    assert "names of timm's EVA; blocks.0.attn.qkv.bias, ...: 2 biases of zeros" in errors.notes
    assert_equal(errors)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_convnext(library, tmp_path):
    depths, widths = (1, 1, 2, 1), (8, 16, 24, 32)
    if library == "timm":
        net = timm.create_model("convnext_tiny", depths=depths, dims=widths, num_classes=0)
    else:
        from torchvision.models.convnext import CNBlockConfig
        from torchvision.models.convnext import ConvNeXt as Theirs

        ends = zip(widths, (*widths[1:], None), depths, strict=True)
        net = Theirs([CNBlockConfig(*row) for row in ends])
        net.classifier[2] = torch.nn.Identity()
    errors = compare(net, ConvNeXt(depths, widths), tmp_path, px=97, features=net)
    assert ("names of torchvision's ConvNeXt" in errors.notes) == (library == "torchvision")
    assert_equal(errors)


def test_densenet(tmp_path):
    net = torchvision.models.DenseNet(8, (2, 2, 3, 2), num_init_features=16)
    ours = DenseNet((2, 2, 3, 2), growth=8, stem=16)

    def features(images):
        return torch.relu(net.features(images))

    errors = compare(net, ours, tmp_path, px=75, features=features, batch=4)
    assert "the prefix 'features.'" in errors.notes
    assert_equal(errors)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_b0"])
def test_efficientnet(name, tmp_path):
    """The gradient is compared where SiLU makes it smooth: rounding flips some of Lite's ReLU6."""
    net = timm.create_model(f"tf_{name}", num_classes=0, bn_momentum=0.01)
    lite = "lite" in name
    module = EfficientNet((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), lite)
    features = net.forward_features
    errors = compare(net, module, tmp_path, px=65, features=features, batch=4, gradient=not lite)
    assert_equal(errors)


@pytest.mark.parametrize("name", ["resnet18d", "resnext50d_32x4d", "wide_resnet50_2"])
def test_resnet(name, tmp_path):
    row = models.parse(name)
    net = timm.create_model(name, num_classes=0, layers=[1, 2, 1, 1])
    module = ResNet(**{**row.fields, "depths": (1, 2, 1, 1)})
    net_features = net.forward_features
    errors = compare(net, module, tmp_path, px=69, features=net_features, batch=4, exact=True)
    assert_equal(errors)


def test_bit(tmp_path):
    shape = dict(layers=[1, 2, 1], channels=[128, 256, 256], stem_chs=32, num_classes=0)
    net = timm.models.resnetv2._create_resnetv2_bit("resnetv2_50x1_bit", **shape)
    module = ResNetV2((1, 2, 1), (128, 256, 256))
    assert_equal(compare(net, module, tmp_path, px=69, features=net.forward_features))


@pytest.mark.parametrize(
    "name", [n for n in models.NAMES if models.parse(n).family == "resnetv2" or n[-1] == "d"]
)
def test_residual_names_and_shapes_are_timm_s(name):
    """Every variable of a named network has a tensor of its shape in timm's, and the reverse."""
    import jax

    from medtl.weights import naming

    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    module = models.backbone(name)()
    like = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)
    ours = {n: leaf.torch_shape for n, leaf in naming.leaves(like).items()}
    theirs = {n: tuple(x.shape) for n, x in net.state_dict().items() if "num_batches" not in n}
    assert ours == theirs
    assert name in naming.guess(theirs)
