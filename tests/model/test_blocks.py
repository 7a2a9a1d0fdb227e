"""Blocks: run one after the other they are the network, and each layer is in one of them."""

from __future__ import annotations

import pytest
import small_models
import torch

from edgeq.model.blocks import find_blocks
from edgeq.model.execute import execute
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED


def layers_of(net: Model) -> list[str]:
    return [group.root for group in net.groups if group.op in WEIGHTED and group.weight]


@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize("name", small_models.SMALL)
def test_blocks_run_one_after_the_other_are_the_network(name: str, most: int) -> None:
    net = small_models.model(name)
    layers = layers_of(net)
    blocks = find_blocks(net.program, layers, most)
    assert [layer for block in blocks for layer in block.layers] == layers
    (batch,) = [
        [
            torch.from_numpy(array)
            for array in small_models.arrays(name, 1 if small_models.SMALL[name].static else 2).values()
        ]
    ]
    values = dict(zip(net.input_nodes, batch, strict=True))
    for block in blocks:
        given = [values[read] for read in block.program.inputs]
        values |= dict(zip(block.program.outputs, execute(block.program, [given])[0], strict=True))
    for node, expected in zip(net.output_nodes, net.run([batch])[0], strict=True):
        torch.testing.assert_close(values[node], expected)


class Chain(torch.nn.Module):
    """Two inverted residual blocks: narrow at their ends."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [(4, 16), (16, 16), (16, 4)] * 2
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 1) for a, b in pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def test_a_block_ends_where_the_fewest_numbers_are_alive() -> None:
    import edgeq

    net = edgeq.load(Chain().eval(), inputs=["1x4x8x8"])
    assert [len(block.layers) for block in find_blocks(net.program, layers_of(net))] == [3, 3]


class Skips(torch.nn.Module):
    """A small U-Net: what the first layers give is read by the last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.down = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 3, 2, 1) for _ in range(6))
        self.up = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 3, 1, 1) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for layer in self.down:
            kept.append(x)
            x = torch.relu(layer(x))
        for layer in self.up:
            x = torch.relu(layer(torch.nn.functional.interpolate(x, scale_factor=2.0) + kept.pop()))
        return x


def test_skips_do_not_make_a_network_one_block() -> None:
    import edgeq

    net = edgeq.load(Skips().eval(), inputs=["1x4x64x64"])
    blocks = find_blocks(net.program, layers_of(net))
    assert len(blocks) >= 3
    assert max(len(block.layers) for block in blocks) <= 4
