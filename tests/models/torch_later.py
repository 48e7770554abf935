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


class Bottle(nn.Module):
    """A bottleneck of a ResNeXt, Wide ResNet or ResNet-D, as timm has it."""

    def __init__(self, inputs, planes, stride, groups, base, pools):
        super().__init__()
        width = planes * base // 64 * groups
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(width), nn.BatchNorm2d(4 * planes)
        self.conv3 = nn.Conv2d(width, 4 * planes, 1, bias=False)
        self.downsample = nn.Identity()
        if stride > 1 or inputs != 4 * planes:
            pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
            first = [pool if stride > 1 else nn.Identity()] if pools else []
            conv = nn.Conv2d(inputs, 4 * planes, 1, 1 if pools else stride, bias=False)
            self.downsample = nn.Sequential(*first, conv, nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + self.downsample(x))


def resnet(depths, groups=1, base=64, is_d=False):
    net = nn.Sequential()
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    if is_d:
        stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 1, 1, bias=False),
        )  # fmt: skip
    net.add_module("conv1", stem)
    net.add_module("bn1", nn.BatchNorm2d(64))
    net.add_module("relu", nn.ReLU())
    net.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for i, depth in enumerate(depths):
        blocks = []
        for j in range(depth):
            stride = 2 if i and not j else 1
            blocks.append(Bottle(inputs, 64 * 2**i, stride, groups, base, is_d))
            inputs = 256 * 2**i
        net.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
    return net


class StdConv(nn.Conv2d):
    """Weight standardization, written out."""

    def forward(self, x):
        rows = self.weight.flatten(1)
        rows = rows - rows.mean(dim=1, keepdim=True)
        rows = rows / torch.sqrt(rows.pow(2).mean(dim=1, keepdim=True) + 1e-8)
        kernel = rows.view_as(self.weight)
        return f.conv2d(x, kernel, None, self.stride, self.padding)


class BitBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        width = outputs // 4
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(32, n) for n in (inputs, width, width))
        self.conv1 = StdConv(inputs, width, 1, bias=False)
        self.conv2 = StdConv(width, width, 3, stride, 1, bias=False)
        self.conv3 = StdConv(width, outputs, 1, bias=False)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Module()
            self.downsample.conv = StdConv(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        y = torch.relu(self.norm1(x))
        x = x if self.downsample is None else self.downsample.conv(y)
        y = self.conv2(torch.relu(self.norm2(self.conv1(y))))
        return x + self.conv3(torch.relu(self.norm3(y)))


class Bit(nn.Module):
    def __init__(self, depths, widths):
        super().__init__()
        inputs = widths[0] // 4
        self.stem = nn.Sequential()
        self.stem.add_module("conv", StdConv(3, inputs, 7, 2, 3, bias=False))
        self.stem.add_module("pad", nn.ConstantPad2d(1, 0.0))
        self.stem.add_module("pool", nn.MaxPool2d(3, 2))
        self.stages = nn.ModuleList()
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stage = nn.Module()
            blocks = []
            for j in range(depth):
                blocks.append(BitBlock(inputs, width, 2 if i and not j else 1))
                inputs = width
            stage.blocks = nn.Sequential(*blocks)
            self.stages.append(stage)
        self.norm = nn.GroupNorm(32, inputs)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage.blocks(x)
        return torch.relu(self.norm(x))


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
        (3, 1, 16), (3, 2, 24), (5, 2, 40), (3, 2, 80), (5, 1, 112), (5, 2, 192), (3, 1, 320),
    )  # fmt: skip

    def __init__(self, depths=(1, 2, 2, 3, 3, 4, 1)):
        super().__init__()
        self.conv_stem, self.bn1 = Same(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, 1e-3, 0.01)
        stages, inputs = [], 32
        for i, (size, stride, width) in enumerate(self.PLAN):
            blocks = []
            for j in range(depths[i]):
                blocks.append(LiteBlock(inputs, width, size, 1 if j else stride, i > 0))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280, 1e-3, 0.01)

    def forward(self, x):
        x = self.blocks(f.relu6(self.bn1(self.conv_stem(x))))
        return f.relu6(self.bn2(self.conv_head(x)))
