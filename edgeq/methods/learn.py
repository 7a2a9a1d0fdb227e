"""Learns a block's rounding, scales and biases: its outputs come near what it gives in float.

The samples of a step are shared out in parts, as many whatever the machine, and their gradients added up in order: what
is learned does not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from edgeq.lowering.assign import Version
from edgeq.methods.block_loss import Loss
from edgeq.methods.block_run import Layer, Pool, Run, Values, each, stacked
from edgeq.methods.learned import Learned
from edgeq.methods.learned_scale import RATE, LearnedScale
from edgeq.methods.method import HELD_OUT, STEPS
from edgeq.model.graph import Program

PARTS = 4
"""Of the samples of one step, that are looked at side by side."""

LONGER = 3
"""A run is so many times as long as the one before it."""


class Task(NamedTuple):
    """What is to be learned from.

    Attributes:
        run: the block, as it rounds.
        given: by input of the block, its value for each sample.
        samples: drawn at random for each step.
        pace: of learning, in parts of what it is where nothing was learned before.
    """

    pool: Pool
    run: Run
    program: Program
    given: Values
    loss: Loss
    samples: int
    pace: float


class Learning(NamedTuple):
    """What is learned of a block: of its layers by graph node, and of the activations that it computes."""

    layers: Mapping[str, Learned]
    scales: Mapping[Version, LearnedScale]

    def now(self) -> tuple[dict[str, Layer], dict[Version, torch.Tensor]]:
        """Weights and biases, and activations' scales, with the gradients of what is learned."""
        layers = {root: one.real() for root, one in self.layers.items()}
        return layers, {version: one.now() for version, one in self.scales.items()}

    def rates(self) -> list[dict[str, Any]]:
        """What is learned, and how fast: groups of parameters for an optimizer."""
        groups = [group for one in self.layers.values() for group in one.rates()]
        return groups + [{"params": [one.growth], "lr": RATE} for one in self.scales.values()]


def learn(task: Task, learning: Learning, steps: int, tell: Callable[[int], None]) -> bool:
    """Takes so many steps at most, in runs that grow longer: each begins with what the samples that are held out
    speak for most, and the last is the one that they speak against.

    Source: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5.

    Args:
        learning: where to start; what was best in the end.
        tell: hears how many steps were taken.

    Returns:
        Whether anything was learned.
    """
    values = [value for group in learning.rates() for value in group["params"]]
    best, least = [value.detach().clone() for value in values], _held_out(task)
    taken, length, found = 0, STEPS, False
    generator = torch.Generator().manual_seed(0)
    while taken < steps:
        length = min(length, steps - taken)
        _anneal(task, learning, length, generator, partial(_further, tell, taken))
        now = _held_out(task, learning)
        if not now < least:
            break
        best, least, found = [value.detach().clone() for value in values], now, True
        taken, length = taken + length, length * LONGER
    with torch.no_grad():
        for value, kept in zip(values, best, strict=True):
            value.copy_(kept)
    return found


def _anneal(
    task: Task, learning: Learning, steps: int, generator: torch.Generator, tell: Callable[[int], None]
) -> None:
    """Steps of Adam, shorter and shorter."""
    optimizer = torch.optim.Adam(learning.rates())
    pace = 0.5 * task.pace
    slower = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace * (1 + math.cos(math.pi * step / steps)))
    for step in range(steps):
        drawn = torch.randint(len(task.loss.learned), (task.samples,), generator=generator).tolist()
        layers, scales = learning.now()
        values = [value for pair in layers.values() for value in pair] + list(scales.values())
        parts = [part for start in range(PARTS) if (part := drawn[start::PARTS])]
        found = task.pool.map(partial(_gradients, task, layers, scales), parts)
        total = [sum(column[1:], column[0]) for column in zip(*found, strict=True)]
        optimizer.zero_grad()
        torch.autograd.backward(values, total)
        optimizer.step()
        slower.step()
        tell(step + 1)


def _further(tell: Callable[[int], None], taken: int, step: int) -> None:
    tell(taken + step)


def _gradients(
    task: Task, layers: Mapping[str, Layer], scales: Mapping[Version, torch.Tensor], part: list[int]
) -> tuple[torch.Tensor, ...]:
    """Of weights and biases, then of activations' scales, for some of a step's samples."""
    own = {root: (_leaf(weight), _leaf(bias)) for root, (weight, bias) in layers.items()}
    grids = {version: _leaf(scale) for version, scale in scales.items()}
    picked = [task.loss.learned[i] for i in part]
    given = [[task.given[name][i] for name in task.program.inputs] for i in picked]
    outputs = stacked(task.run(given, own, grids, True))
    found = task.loss.of(dict(zip(task.program.outputs, outputs, strict=True)), picked) * (len(part) / task.samples)
    leaves = [value for pair in own.values() for value in pair] + list(grids.values())
    if not found.requires_grad:  # nothing that is learned reaches an output by a gradient
        return tuple(map(torch.zeros_like, leaves))
    moved = torch.autograd.grad(found, leaves, allow_unused=True)
    return tuple(torch.zeros_like(v) if g is None else g for v, g in zip(leaves, moved, strict=True))


def _held_out(task: Task, learning: Learning | None = None) -> float:
    """How far the outputs are from float's on the samples that are held out."""
    held = {node: values[::HELD_OUT] for node, values in task.given.items()}
    layers, scales = learning.now() if learning else ({}, {})
    with torch.no_grad():
        return task.loss.held_out(each(task.pool, partial(task.run, layers=layers, scales=scales), task.program, held))


def _leaf(value: torch.Tensor) -> torch.Tensor:
    return value.detach().requires_grad_()
