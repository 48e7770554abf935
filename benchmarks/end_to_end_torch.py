"""The PyTorch side of `end_to_end.py`: CIFAR ResNet-20 in a plain loop with all images in memory.

    python benchmarks/end_to_end_torch.py --batch=128 --size=28 --train=546 --val=78 --threads=2

The loop keeps the images as one uint8 tensor (on the GPU where there is one). Each epoch takes a
permutation; normalization and random flips run on the batch at once; the optimizer is AdamW with a
cosine schedule; an evaluation and a checkpoint of model and optimizer follow each epoch. Every
batch is full, as medtl's are: permutations follow one another without a gap.

Prints "ready" and the device after one epoch. Then each line "N" trains N epochs and prints the
seconds of training and of the whole round. Needs only PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import peers_torch
import torch
from torch import nn
from torch.nn import functional

EVALUATED = 64  # images at once, as medtl's config.evaluation.batch_size


class Pad(nn.Module):
    """The shortcut without parameters: every second pixel, channels padded with zeros."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x):
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def resnet20(classes: int) -> nn.Module:
    """Return the net of He et al. 2015, section 4.2: a 3x3 stem, three layers of three blocks."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
    ]
    inputs = 16
    for layer in range(3):
        width = 16 * 2**layer
        for i in range(3):
            block = peers_torch.Block(inputs, width, 2 if layer > 0 and i == 0 else 1, False)
            if inputs != width:
                block.shortcut = Pad(inputs, width)
            layers.append(block)
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def endless(n: int, batch: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the rows of full batches from permutations one after the other."""
    left = torch.empty(0, dtype=torch.int64, device=device)
    while True:
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(n, device=device)])
        yield left[:batch]
        left = left[batch:]


class Loop:
    """The model, its data and its training."""

    def __init__(self, args: argparse.Namespace, device: torch.device, folder: Path):
        self.device, self.folder = device, folder
        self.format = torch.channels_last if args.channels_last else torch.contiguous_format
        self.net = resnet20(2).to(device, memory_format=self.format)
        self.image, self.label = self.draw(args.train, args.size)
        self.val_image, self.val_label = self.draw(args.val, args.size)
        self.rows = endless(args.train, args.batch, device)
        self.steps = -(-args.train // args.batch)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, weight_decay=1e-2)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, 10_000 * self.steps
        )

    def draw(self, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.randint(256, (n, 3, size, size), dtype=torch.uint8)
        return image.to(self.device, memory_format=self.format), torch.arange(
            n, device=self.device
        ) % 2

    def normalized(self, image: torch.Tensor) -> torch.Tensor:
        return image.to(torch.float32, memory_format=self.format).sub_(127.5).div_(63.75)

    def epoch(self) -> float:
        """Train for an epoch; return its seconds."""
        start = time.perf_counter()
        self.net.train()
        total = torch.zeros((), device=self.device)
        for _ in range(self.steps):
            rows = next(self.rows)
            x = self.normalized(self.image[rows])
            flipped = torch.rand(len(x), 1, 1, 1, device=self.device) < 0.5
            x = torch.where(flipped, x.flip(-1), x)
            self.optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(self.net(x), self.label[rows])
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach()
        total.item()  # for the log; waits for the device
        return time.perf_counter() - start

    def conclude(self) -> None:
        """Compute loss and accuracy on val, and save a checkpoint."""
        self.net.eval()
        loss = correct = torch.zeros((), device=self.device)
        with torch.inference_mode():
            for start in range(0, len(self.val_image), EVALUATED):
                label = self.val_label[start : start + EVALUATED]
                logits = self.net(self.normalized(self.val_image[start : start + EVALUATED]))
                loss = loss + functional.cross_entropy(logits, label, reduction="sum")
                correct = correct + (logits.argmax(dim=1) == label).sum()
        loss.item(), correct.item()
        state = {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, self.folder / "checkpoint.pt")

    def run(self, epochs: int) -> tuple[float, float]:
        """Train; return the seconds of training and of the whole round."""
        start, training = time.perf_counter(), 0.0
        for _ in range(epochs):
            training += self.epoch()
            self.conclude()
        return training, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--train", type=int, default=546)
    parser.add_argument("--val", type=int, default=78)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--channels_last", action="store_true")
    args = parser.parse_args()
    device = peers_torch.start(args.threads)
    with tempfile.TemporaryDirectory(prefix="medtl-benchmark-") as folder:
        loop = Loop(args, device, Path(folder))
        loop.run(1)
        peers_torch.serve(device, lambda epochs: "{} {}".format(*loop.run(epochs)))


if __name__ == "__main__":
    main()
