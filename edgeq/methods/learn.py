"""Learns a block's rounding, scales and biases: its outputs come near what it gives in float.

The samples of a step are shared out in parts, as many whatever the machine, and their gradients added up in order: what
is learned does not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch

from edgeq.lowering.assign import Version
from edgeq.methods.block_loss import Loss
from edgeq.methods.block_run import Layer, Pool, Run, Values, each, stacked
from edgeq.methods.learned import Learned
from edgeq.methods.learned_scale import RATE, LearnedScale
from edgeq.methods.method import HELD_OUT
from edgeq.model.graph import Program

PARTS = 4
"""Of the samples of one step, that are looked at side by side."""


class Learning(NamedTuple):
    """What is learned of a block: of its layers by graph node, and of the activations that it computes."""

    layers: Mapping[str, Learned]
    scales: Mapping[Version, LearnedScale]

    def now(self) -> tuple[dict[str, Layer], dict[Version, torch.Tensor]]:
        """Weights and biases, and activations' scales, with the gradients of what is learned."""
        layers = {root: one.real() for root, one in self.layers.items()}
        return layers, {version: one.now() for version, one in self.scales.items()}


def learn(
    pool: Pool,
    run: Run,
    program: Program,
    learning: Learning,
    given: Values,
    loss: Loss,
    steps_and_samples: tuple[int, int],
    tell: Callable[[int], None],
) -> Learning | None:
    """Takes so many steps by Adam, shorter and shorter, each on so many samples drawn at random.

    Args:
        given: by input of the block, its value for each sample.
        tell: hears how many steps were taken.

    Returns:
        What was learned; None where the samples that are held out speak against it.
    """
    held = {node: values[::HELD_OUT] for node, values in given.items()}
    before = loss.held_out(each(pool, run, program, held))
    steps, samples = steps_and_samples
    generator = torch.Generator().manual_seed(0)
    rates = [group for one in learning.layers.values() for group in one.rates()]
    rates += [{"params": [one.growth], "lr": RATE} for one in learning.scales.values()]
    optimizer = torch.optim.Adam(rates)
    slower = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for step in range(steps):
        drawn = torch.randint(len(loss.learned), (samples,), generator=generator).tolist()
        layers, scales = learning.now()
        values = [value for pair in layers.values() for value in pair] + list(scales.values())

        def gradients(
            part: list[int], layers: Mapping[str, Layer] = layers, scales: Mapping[Version, torch.Tensor] = scales
        ) -> tuple[torch.Tensor, ...]:
            own = {root: (_leaf(weight), _leaf(bias)) for root, (weight, bias) in layers.items()}
            grids = {version: _leaf(scale) for version, scale in scales.items()}
            picked = [loss.learned[i] for i in part]
            outputs = stacked(run([[given[name][i] for name in program.inputs] for i in picked], own, grids, True))
            found = loss.of(dict(zip(program.outputs, outputs, strict=True)), picked) * (len(part) / samples)
            leaves = [value for pair in own.values() for value in pair] + list(grids.values())
            if not found.requires_grad:  # nothing that is learned reaches an output by a gradient
                return tuple(map(torch.zeros_like, leaves))
            moved = torch.autograd.grad(found, leaves, allow_unused=True)
            return tuple(torch.zeros_like(v) if g is None else g for v, g in zip(leaves, moved, strict=True))

        parts = [part for start in range(PARTS) if (part := drawn[start::PARTS])]
        total = [sum(column[1:], column[0]) for column in zip(*pool.map(gradients, parts), strict=True)]
        optimizer.zero_grad()
        torch.autograd.backward(values, total)
        optimizer.step()
        slower.step()
        tell(step + 1)
    with torch.no_grad():
        layers, scales = learning.now()
    after = loss.held_out(each(pool, partial(run, layers=layers, scales=scales), program, held))
    return learning if after < before else None


def _leaf(value: torch.Tensor) -> torch.Tensor:
    return value.detach().requires_grad_()
