"""Networks of linear layers whose weights are of low rank and large beside the rest, or have a few large columns."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from edgeq.data.dataset import Dataset, make_dataset
from edgeq.frontends.load import load
from edgeq.model.model import Model

WIDTH, HIDDEN, TOKENS = 64, 128, 5
FAR, HEAVY = (7, 50), (20,)


class Block(nn.Module):
    """A normalisation, a layer behind it, and one behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.relu(self.up(self.norm(x))))


def planted(net: Block, kind: str) -> None:
    """Makes one thing outlying: what is of low rank, and large in some rows and columns, or `columns`, of the value and
    of the weights."""
    with torch.no_grad():
        if kind != "columns":
            for layer in (net.up, net.down):
                left, right = (torch.randn(size).pow(3) for size in layer.weight.shape)
                layer.weight += 0.2 * torch.outer(left, right)
        else:
            net.norm.weight[list(FAR)] *= 40
            net.up.weight[:, list(FAR)] /= 8
            net.up.weight[:, list(HEAVY)] *= 40


@cache
def model(kind: str) -> Model:
    """Of `columns` or of low `rank`, with tokens to read; or of low rank, with `rows`."""
    torch.manual_seed(5)
    net = Block().eval()
    planted(net, kind)
    batch = torch.export.Dim("batch", max=256)
    return load(torch.export.export(net, (torch.from_numpy(tokens(2, kind=kind)),), dynamic_shapes=({0: batch},)))


def tokens(count: int, seed: int = 0, *, kind: str) -> np.ndarray:
    shape = (count, WIDTH) if kind == "rows" else (count, TOKENS, WIDTH)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(kind: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {model(kind).inputs[0].name: tokens(count, seed, kind=kind)}


def data(kind: str, count: int, seed: int = 0) -> Dataset:
    return make_dataset(inputs(kind, count, seed), model(kind).inputs, labels=None, source=f"seed {seed}")
