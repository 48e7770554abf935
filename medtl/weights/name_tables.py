"""The names of families of checkpoints as torchvision's or timm's: one rule a line.

A table is a list of regular expressions with their replacements, applied in order to each name.
"""

from __future__ import annotations

from medtl.models.presets import EFFICIENTNET_DEPTHS

Rules = tuple[tuple[str, str], ...]
_START = r"^((?:[A-Za-z_]\w*\.)*)"  # the prefix of the first number in a name


def _efficientnet_rules() -> Rules:
    """Number the blocks of all stages together, as Lukas Melas-Kyriazi's PyTorch port does."""
    rules = []
    block = 0
    for stage, depth in enumerate(EFFICIENTNET_DEPTHS):
        for i in range(depth):
            rules.append((rf"_blocks\.{block}\.", f"blocks.{stage}.{i}."))
            block += 1
    return (
        *rules,
        (r"_conv_stem\.", "conv_stem."),
        (r"_conv_head\.", "conv_head."),
        (r"(blocks\.0\.\d+)\._bn1\.", r"\1.bn1."),  # stage 0 does not expand
        (r"(blocks\.0\.\d+)\._bn2\.", r"\1.bn2."),
        (r"(blocks\.0\.\d+)\._project_conv\.", r"\1.conv_pw."),
        (r"(blocks\.[1-6]\.\d+)\._bn2\.", r"\1.bn3."),
        (r"(blocks\.[1-6]\.\d+)\._bn1\.", r"\1.bn2."),
        (r"(blocks\.[1-6]\.\d+)\._bn0\.", r"\1.bn1."),
        (r"_expand_conv\.", "conv_pw."),
        (r"_depthwise_conv\.", "conv_dw."),
        (r"_project_conv\.", "conv_pwl."),
        (r"_se_reduce\.", "se.conv_reduce."),
        (r"_se_expand\.", "se.conv_expand."),
        (r"(^|\.)_bn1\.", r"\1bn2."),  # after the last convolution
        (r"(^|\.)_bn0\.", r"\1bn1."),
        (r"(^|\.)_fc\.", r"\1classifier."),
    )


def _bit_rules() -> Rules:
    """Count from 0 what BiT counts from 1; its second generation of names comes first."""
    conv = r"standardized_conv2d(?:\.\d+)?\."
    rules = [(rf"(^|\.)block{n}\.", rf"\1stages.{n - 1}.") for n in range(1, 5)]
    rules += [(rf"\.unit{n:02d}\.", f".blocks.{n - 1}.") for n in range(1, 37)]
    for n, part in enumerate("abc", 1):
        rules += [(rf"\.{part}\.{conv}", f".conv{n}."), (rf"\.{part}\.group_norm\.", f".norm{n}.")]
    return (
        *rules,
        (r"\.gn([123])\.", r".norm\1."),
        (rf"\.(?:conv_proj\.|a\.proj\.{conv})", ".downsample.conv."),
        (rf"root_block\.(?:conv_root\.|{conv})", "stem.conv."),
        (r"(?:norm-pre-head|group_norm)\.", "norm."),
    )


TABLES: dict[str, Rules] = {
    "the layers of an nn.Sequential": (
        (_START + r"0\.(weight|bias)$", r"\1conv1.\2"),
        (_START + r"1\.(weight|bias|running_\w+|num_\w+)$", r"\1bn1.\2"),
        (_START + r"4\.", r"\1layer1."),
        (_START + r"5\.", r"\1layer2."),
        (_START + r"6\.", r"\1layer3."),
        (_START + r"7\.", r"\1layer4."),
    ),
    "Hugging Face's ResNet": (
        (r"embedder\.embedder\.convolution\.", "conv1."),
        (r"embedder\.embedder\.normalization\.", "bn1."),
        (r"encoder\.stages\.0\.layers\.", "layer1."),
        (r"encoder\.stages\.1\.layers\.", "layer2."),
        (r"encoder\.stages\.2\.layers\.", "layer3."),
        (r"encoder\.stages\.3\.layers\.", "layer4."),
        (r"shortcut\.convolution\.", "downsample.0."),
        (r"shortcut\.normalization\.", "downsample.1."),
        (r"layer\.0\.convolution\.", "conv1."),
        (r"layer\.0\.normalization\.", "bn1."),
        (r"layer\.1\.convolution\.", "conv2."),
        (r"layer\.1\.normalization\.", "bn2."),
        (r"layer\.2\.convolution\.", "conv3."),
        (r"layer\.2\.normalization\.", "bn3."),
    ),
    # ViT, MAE, DINOv2, DINOv3, CLIP and SigLIP, as transformers 4 and 5 name them.
    "Hugging Face's vision transformer": (
        (r"embeddings\.(?:cls_token|class_embedding)$", "cls_token"),
        (r"embeddings\.register_tokens$", "reg_token"),
        (r"embeddings\.(?:position_embeddings|position_embedding\.weight)$", "pos_embed"),
        (r"embeddings\.patch_embeddings?\.(?:projection\.)?", "patch_embed.proj."),
        (r"pre_layrnorm\.", "norm_pre."),
        (r"head\.probe$", "attn_pool.latent"),
        (r"head\.attention\.(q|kv)\.", r"attn_pool.\1."),
        (r"head\.attention\.out_proj\.", "attn_pool.proj."),
        (r"head\.layernorm\.", "attn_pool.norm."),
        (r"head\.mlp\.", "attn_pool.mlp."),
        (r"(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
        (r"(?:attention\.)?attention\.qkv\.", "attn.qkv."),
        (r"self_attn\.qkv\.", "attn.qkv."),
        (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
        (r"self_attn\.out_proj\.", "attn.proj."),
        (r"(?:layernorm_before|layer_norm1)\.", "norm1."),
        (r"(?:layernorm_after|layer_norm2)\.", "norm2."),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"mlp\.gate_proj\.", "mlp.fc1_g."),
        (r"mlp\.up_proj\.", "mlp.fc1_x."),
        (r"mlp\.down_proj\.", "mlp.fc2."),
        (r"layer_scale([12])\.lambda1$", r"ls\1.gamma"),
        (r"(^|\.)(?:post_)?layernorm\.", r"\1norm."),
    ),
    "the DINO of its authors": (
        (r"(?:register|storage)_tokens$", "reg_token"),
        (r"mlp\.w1\.", "mlp.fc1_g."),
        (r"mlp\.w2\.", "mlp.fc1_x."),
        (r"mlp\.w3\.", "mlp.fc2."),
    ),
    "timm's EVA": ((r"(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),),
    "the CLIP of its authors": (
        (r"class_embedding$", "cls_token"),
        (r"positional_embedding$", "pos_embed"),
        (r"conv1\.weight$", "patch_embed.proj.weight"),
        (r"ln_pre\.", "norm_pre."),
        (r"ln_post\.", "norm."),
        (r"transformer\.resblocks\.", "blocks."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"attn\.in_proj_", "attn.qkv."),
        (r"attn\.out_proj\.", "attn.proj."),
        (r"mlp\.c_fc\.", "mlp.fc1."),
        (r"mlp\.c_proj\.", "mlp.fc2."),
    ),
    "torchvision's ConvNeXt": (
        (r"features\.0\.([01])\.", r"stem.\1."),
        (r"features\.1\.(\d+)\.", r"stages.0.blocks.\1."),
        (r"features\.3\.(\d+)\.", r"stages.1.blocks.\1."),
        (r"features\.5\.(\d+)\.", r"stages.2.blocks.\1."),
        (r"features\.7\.(\d+)\.", r"stages.3.blocks.\1."),
        (r"features\.2\.", "stages.1.downsample."),
        (r"features\.4\.", "stages.2.downsample."),
        (r"features\.6\.", "stages.3.downsample."),
        (r"(blocks\.\d+)\.block\.0\.", r"\1.conv_dw."),
        (r"(blocks\.\d+)\.block\.2\.", r"\1.norm."),
        (r"(blocks\.\d+)\.block\.3\.", r"\1.mlp.fc1."),
        (r"(blocks\.\d+)\.block\.5\.", r"\1.mlp.fc2."),
        (r"(blocks\.\d+)\.layer_scale$", r"\1.gamma"),
        (r"classifier\.0\.", "head.norm."),
    ),
    "the ConvNeXt of its authors": (
        (r"downsample_layers\.0\.", "stem."),
        (r"downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"^((?!.*stages).*)norm\.", r"\1head.norm."),
    ),
    "Hugging Face's ConvNeXt": (
        (r"embeddings\.patch_embeddings\.", "stem.0."),
        (r"embeddings\.layernorm\.", "stem.1."),
        (r"encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
        (r"encoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
        (r"layer_scale_parameter$", "gamma"),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"(blocks\.\d+)\.layernorm\.", r"\1.norm."),
        (r"^((?!.*stages).*)layernorm\.", r"\1head.norm."),
    ),
    "big_vision's ViT": (
        (r"(?:Transformer\.)?encoderblock\.(\d+)\.", r"blocks.\1."),
        (r"Transformer\.encoder_norm\.", "norm."),
        (r"(?:Transformer\.)?(?:posembed_input\.)?pos_embedding$", "pos_embed"),
        (r"(^|\.)cls$", r"\1cls_token"),
        (r"(^|\.)embedding\.", r"\1patch_embed.proj."),
        (r"MAPHead\.0\.probe$", "attn_pool.latent"),
        (r"MAPHead\.0\.MultiHeadDotProductAttention\.0\.out\.", "attn_pool.proj."),
        (r"MAPHead\.0\.MultiHeadDotProductAttention\.0\.", "attn_pool."),
        (r"MAPHead\.0\.LayerNorm\.0\.", "attn_pool.norm."),
        (r"MAPHead\.0\.MlpBlock\.0\.", "attn_pool.mlp."),
        (r"MultiHeadDotProductAttention\.\d\.out\.", "attn.proj."),
        (r"MultiHeadDotProductAttention\.\d\.", "attn."),
        (r"LayerNorm\.0\.", "norm1."),
        (r"LayerNorm\.[12]\.", "norm2."),
        (r"MlpBlock\.\d\.", "mlp."),
        (r"Dense\.0\.", "fc1."),
        (r"Dense\.1\.", "fc2."),
    ),
    "the BiT of its authors": _bit_rules(),
    "Hugging Face's BiT": (
        (r"embedder\.convolution\.", "stem.conv."),
        (r"encoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
    ),
    "torchvision's first DenseNets": ((r"\.(norm|conv)\.([12])\.", r".\1\2."),),
    "the EfficientNet of Melas-Kyriazi": _efficientnet_rules(),
}
