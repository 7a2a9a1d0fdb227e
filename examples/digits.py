"""Train a small network on scikit-learn's digits and write what `edgeq deploy` needs: a model and two sets of samples.

python examples/digits.py FOLDER

FOLDER then holds `model.pt` (written by torch.export: no code, no pickled classes), `calib.npz` (images that were
trained on, without labels) and `eval.npz` (images that were not, with labels). It takes some seconds on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

SIDE = 32
EVALUATION = 597
CALIBRATION = 200
EPOCHS = 4
BATCH = 32


def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1797 digits, enlarged from 8x8 to 32x32 pixels from -1 to 1 and shuffled: [N, 1, 32, 32] and [N]."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = nn.functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(digits.target)[order]


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """A few passes over the images with Adam and a falling learning rate."""
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    generator = torch.Generator().manual_seed(1)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/digits.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums in one order: the same weights every time
    images, labels = images_and_labels()
    held_out, seen = slice(0, EVALUATION), slice(EVALUATION, None)
    network = Digits()
    train(network, images[seen], labels[seen])
    with torch.no_grad():
        correct = (network(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()

    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: batch},))
    with (folder / "model.pt").open("wb") as file:  # by its name alone, torch.export would warn of the suffix
        torch.export.save(program, file)
    np.savez(folder / "calib.npz", image=images[seen][:CALIBRATION].numpy())
    np.savez(folder / "eval.npz", image=images[held_out].numpy(), labels=labels[held_out].numpy())
    print(f"{folder}: {100 * correct:.1f} % of {EVALUATION} images that it was not trained on")


class Block(nn.Module):
    """A convolution, and a residual addition where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = convolution(inputs, outputs, 3, stride)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolution(x)
        return x + y if self.residual else y


class Digits(nn.Module):
    """32x32 pixels to ten classes; 28 million multiply-accumulates, most of them in 3x3 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(1, 32, 3, stride=2)
        self.body = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 128, 2), Block(128, 128))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(128, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.body(self.stem(image))).flatten(1))


if __name__ == "__main__":
    main()
