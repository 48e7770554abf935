"""The PyTorch side of `peers.py`: a network in a separate process, driven line by line over stdin.

    python benchmarks/peers_torch.py --model=resnet50 --batch=16 --size=224 --mode=train --threads=2

Prints "ready" and the device when warmed up. Then each line "N" runs N steps and prints the
seconds. Needs only PyTorch, and timm for networks other than ResNets.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}


class Block(nn.Module):
    """A basic block, or a bottleneck whose 3x3 convolution takes the stride."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        features = 4 * width if bottleneck else width
        plan = [(inputs, width, 1, 1), (width, width, 3, stride), (width, features, 1, 1)]
        if not bottleneck:
            plan = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in plan)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in plan)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != features:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x):
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            if i + 1 < len(self.convs):
                y = functional.relu(y, inplace=True)
        return functional.relu(y + self.shortcut(x), inplace=True)


def resnet(name: str, classes: int) -> nn.Module:
    """Return an ImageNet ResNet, as torchvision's (v1.5)."""
    bottleneck = name not in ("resnet18", "resnet34")
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
    ]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for layer, depth in enumerate(DEPTHS[name]):
        for i in range(depth):
            width = 64 * 2**layer
            layers.append(Block(inputs, width, 2 if layer > 0 and i == 0 else 1, bottleneck))
            inputs = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def build(name: str, classes: int, size: int) -> nn.Module:
    """Return a ResNet, or timm's network of that name, for images with sides of `size` pixels."""
    if name in DEPTHS:
        return resnet(name, classes)
    import timm

    sized = {"img_size": size} if name.startswith("vit") else {}
    suffix = "_224" if name.startswith("vit") else ""
    return timm.create_model(f"{name}{suffix}", num_classes=classes, **sized)


def start(threads: int) -> torch.device:
    """Set PyTorch up for both benchmarks and return the device; 0 threads: PyTorch's default."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("highest")  # float32 means float32 on both sides
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def serve(device: torch.device, answer: Callable[[int], object]) -> None:
    """Print that the process is ready, then answer each line's number by a line."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"ready torch {torch.__version__} {name}", flush=True)
    for line in sys.stdin:
        print(answer(int(line)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--mode", default="train", choices=("train", "infer"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device = start(args.threads)
    net = build(args.model, args.classes, args.size).to(device, memory_format=torch.channels_last)
    image = torch.randn(args.batch, 3, args.size, args.size, device=device).to(
        memory_format=torch.channels_last
    )
    label = torch.randint(args.classes, (args.batch,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    narrow = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")
    net.train(args.mode == "train")
    forward = torch.compile(net) if args.compile else net

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with narrow:
            loss = functional.cross_entropy(forward(image), label)
        loss.backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode(), narrow:
            forward(image)

    step = train if args.mode == "train" else infer

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    run(args.warmup)
    serve(device, run)


if __name__ == "__main__":
    main()
