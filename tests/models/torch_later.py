"""The later backbones in plain PyTorch from the papers, with timm's or torchvision's names.

Independent of `medtl.models`: shares no table with it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as f


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(f.gelu(self.fc1(x)))


class VitBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Dinov2(nn.Module):
    """DINOv2 with registers, which have no position."""

    def __init__(self, width, depth, heads, patch, side, registers):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        self.blocks = nn.Sequential(*(VitBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.side = side

    def forward(self, x):
        x = self.patch_embed.proj(x)
        table = self.pos_embed[:, 1:].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        table = f.interpolate(table, size=x.shape[2:], mode="bicubic", antialias=True)
        x = (x + table).flatten(2).transpose(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, self.reg_token.expand(len(x), -1, -1), x], dim=1)
        return self.norm(self.blocks(x))[:, 0]


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.mlp = nn.LayerNorm(width, 1e-6), Mlp(width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self, depths, widths):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], 1e-6))
        self.stages, before = nn.ModuleList(), None
        for depth, width in zip(depths, widths, strict=True):
            stage = nn.Module()
            stage.downsample = nn.Identity()
            if before:
                halve = nn.Conv2d(before, width, 2, 2)
                stage.downsample = nn.Sequential(ChannelNorm(before, 1e-6), halve)
            stage.blocks = nn.Sequential(*(ConvNextBlock(width) for _ in range(depth)))
            self.stages.append(stage)
            before = width
        self.head = nn.Module()
        self.head.norm = nn.LayerNorm(before, 1e-6)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage.blocks(stage.downsample(x))
        return self.head.norm(x.mean(dim=(2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], dim=1)


def densenet(depths, growth, stem):
    net = nn.Sequential()
    net.add_module("conv0", nn.Conv2d(3, stem, 7, 2, 3, bias=False))
    net.add_module("norm0", nn.BatchNorm2d(stem))
    net.add_module("relu0", nn.ReLU())
    net.add_module("pool0", nn.MaxPool2d(3, 2, 1))
    width = stem
    for i, depth in enumerate(depths, 1):
        block = nn.Sequential()
        for j in range(1, depth + 1):
            block.add_module(f"denselayer{j}", DenseLayer(width, growth))
            width += growth
        net.add_module(f"denseblock{i}", block)
        if i < len(depths):
            half = nn.Sequential()
            half.add_module("norm", nn.BatchNorm2d(width))
            half.add_module("relu", nn.ReLU())
            half.add_module("conv", nn.Conv2d(width, width // 2, 1, bias=False))
            half.add_module("pool", nn.AvgPool2d(2, 2))
            net.add_module(f"transition{i}", half)
            width //= 2
    net.add_module("norm5", nn.BatchNorm2d(width))
    net.add_module("relu5", nn.ReLU())
    return net


class Same(nn.Conv2d):
    """TensorFlow's padding: an odd zero is after the side."""

    def forward(self, x):
        (size, _), (stride, _) = self.kernel_size, self.stride
        total = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:]]
        rows, columns = ((n // 2, n - n // 2) for n in total)
        return super().forward(f.pad(x, (*columns, *rows)))


class LiteBlock(nn.Module):
    """MBConv without squeeze-and-excitation; the first stage does not expand."""

    def __init__(self, inputs, outputs, size, stride, expands):
        super().__init__()
        width = 6 * inputs if expands else inputs
        norms = [nn.BatchNorm2d(n, 1e-3, 0.01) for n in (width, width, outputs)]
        middle = Same(width, width, size, stride, groups=width, bias=False)
        last = nn.Conv2d(width, outputs, 1, bias=False)
        if expands:
            self.conv_pw = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1, self.bn2, self.bn3 = norms
            self.conv_dw, self.conv_pwl = middle, last
        else:
            self.bn1, self.bn2 = norms[1:]
            self.conv_dw, self.conv_pw = middle, last
        self.expands, self.adds = expands, stride == 1 and inputs == outputs

    def forward(self, x):
        y = x
        if self.expands:
            y = f.relu6(self.bn1(self.conv_pw(y)))
            y = self.bn3(self.conv_pwl(f.relu6(self.bn2(self.conv_dw(y)))))
        else:
            y = self.bn2(self.conv_pw(f.relu6(self.bn1(self.conv_dw(y)))))
        return x + y if self.adds else y


class Lite0(nn.Module):
    PLAN = (
        (1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80),
        (3, 5, 1, 112), (4, 5, 2, 192), (1, 3, 1, 320),
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn1 = Same(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, 1e-3, 0.01)
        stages, inputs = [], 32
        for i, (depth, size, stride, width) in enumerate(self.PLAN):
            blocks = []
            for j in range(depth):
                blocks.append(LiteBlock(inputs, width, size, 1 if j else stride, i > 0))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280, 1e-3, 0.01)

    def forward(self, x):
        x = self.blocks(f.relu6(self.bn1(self.conv_stem(x))))
        return f.relu6(self.bn2(self.conv_head(x)))
