"""A convolutional network, and the same function with channels that differ a thousandfold in scale."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgeq.data.dataset import Dataset, make_dataset
from edgeq.frontends.load import load
from edgeq.model.model import Model

SIZE = 10


class Net(nn.Module):
    """Links through ReLU, into a depthwise layer and out of it, through a pool, and through a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.wide, self.head = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, groups=3), nn.Linear(12, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.point(F.relu(self.deep(F.relu(self.stem(image))))))
        return self.head(F.relu(self.wide(F.max_pool2d(x, 2))).mean((2, 3)))


def scaled(first: nn.Module, second: nn.Module, factors: torch.Tensor) -> None:
    """The channels between two layers times factors; what the second one gives stays what it was."""
    first.weight.mul_(factors.reshape(-1, *[1] * (first.weight.dim() - 1)))
    first.bias.mul_(factors)
    if isinstance(second, nn.Linear):
        second.weight.div_(factors)
        return
    inputs = second.weight.shape[1]
    for output in range(len(second.weight)):
        group = output * second.groups // len(second.weight)
        second.weight[output].div_(factors[group * inputs : (group + 1) * inputs].reshape(-1, 1, 1))


@cache
def model(*, scale: float) -> Model:
    """The network with channels that are up to `scale` times larger or smaller than they were."""
    torch.manual_seed(3)
    net = Net().eval()
    generator = torch.Generator().manual_seed(4)
    layers = [net.stem, net.deep, net.point, net.wide, net.head]
    with torch.no_grad():
        for first, second in pairwise(layers):
            count = len(first.weight)
            scaled(first, second, scale ** (2 * torch.rand(count, generator=generator) - 1))
    batch = torch.export.Dim("batch", max=256)
    return load(torch.export.export(net, (torch.zeros(2, 3, SIZE, SIZE),), dynamic_shapes=({0: batch},)))


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def data(net: Model, count: int, seed: int = 0) -> Dataset:
    return make_dataset({net.inputs[0].name: images(count, seed)}, net.inputs, labels=None, source=f"seed {seed}")


def answers(net: Model, array: np.ndarray) -> np.ndarray:
    return net.run([[torch.from_numpy(array)]])[0][0].numpy()
