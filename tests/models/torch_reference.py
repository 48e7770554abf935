"""The backbones in plain PyTorch from the papers' tables, with torchvision's parameter names.

Independent of `medtl.models`: shares no table of depths, widths or numbering with it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, stride_in: str, projection: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.width = width
        self.downsample = _projection(inputs, width, stride) if projection else None

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample(x)
        elif x.shape[1] != self.width:
            quarter = self.width // 4
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        return torch.relu(x + y)


class Bottle(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, stride_in: str, projection: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, stride if stride_in == "1x1" else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride if stride_in == "3x3" else 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _projection(inputs, 4 * width, stride) if projection else None

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _layer(
    block, inputs: int, width: int, depth: int, stride: int, stride_in: str, option_a: bool
) -> nn.Sequential:
    blocks = []
    for i in range(depth):
        changes = i == 0 and (stride == 2 or inputs != width * block.expansion)
        blocks.append(
            block(inputs, width, stride if i == 0 else 1, stride_in, changes and not option_a)
        )
        inputs = width * block.expansion
    return nn.Sequential(*blocks)


class ImageNetResNet(nn.Module):
    def __init__(self, block, depths: list[int], stride_in: str):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(block, 64, 64, depths[0], 1, stride_in, False)
        self.layer2 = _layer(block, 64 * block.expansion, 128, depths[1], 2, stride_in, False)
        self.layer3 = _layer(block, 128 * block.expansion, 256, depths[2], 2, stride_in, False)
        self.layer4 = _layer(block, 256 * block.expansion, 512, depths[3], 2, stride_in, False)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class CifarResNet(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _layer(Basic, 16, 16, n, 1, "", True)
        self.layer2 = _layer(Basic, 16, 32, n, 2, "", True)
        self.layer3 = _layer(Basic, 32, 64, n, 2, "", True)

    def forward(self, x):
        return self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))


class Vgg(nn.Module):
    def __init__(self, plan: str, batch_norm: bool, classifier: bool):
        super().__init__()
        widths = {"a": 64, "b": 128, "c": 256, "d": 512}
        layers, inputs = [], 3
        for symbol in plan:
            if symbol == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(inputs, widths[symbol], 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(widths[symbol]))
            layers.append(nn.ReLU())
            inputs = widths[symbol]
        self.features = nn.Sequential(*layers)
        self.classifier = None
        if (
            classifier
        ):  # as in torchvision, up to the last layer's input; Dropout does nothing in eval mode
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(4096, 4096),
                nn.ReLU(),
            )

    def forward(self, x):
        x = self.features(x)
        return (
            x if self.classifier is None else self.classifier(torch.flatten(x, 1))[:, :, None, None]
        )


_VGG_PLANS = {
    "vgg11": "aMbMccMddMddM",
    "vgg13": "aaMbbMccMddMddM",
    "vgg16": "aaMbbMcccMdddMdddM",
    "vgg19": "aaMbbMccccMddddMddddM",
}


def build(name: str, stride_in: str = "3x3", classifier: bool = False) -> nn.Module:
    """The backbone of that name, without values: the caller loads all of them."""
    with torch.device("meta"):
        net = _build(name, stride_in, classifier)
    return net.to_empty(device="cpu")


def _build(name: str, stride_in: str, classifier: bool) -> nn.Module:
    if name.startswith("vgg"):
        return Vgg(_VGG_PLANS[name.removesuffix("_bn")], name.endswith("_bn"), classifier)
    if name.startswith("cifar"):
        return CifarResNet(
            {"20": 3, "32": 5, "44": 7, "56": 9, "110": 18}[name.removeprefix("cifar_resnet")]
        )
    block, depths = {
        "resnet18": (Basic, [2, 2, 2, 2]),
        "resnet34": (Basic, [3, 4, 6, 3]),
        "resnet50": (Bottle, [3, 4, 6, 3]),
        "resnet101": (Bottle, [3, 4, 23, 3]),
        "resnet152": (Bottle, [3, 8, 36, 3]),
    }[name]
    return ImageNetResNet(block, depths, stride_in)
