"""Runs a block of a network as its integers would, sample by sample, or several side by side where it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import torch

from edgeq.lowering.assign import Version
from edgeq.methods.learned_scale import rounded_by
from edgeq.model.blocks import Block
from edgeq.model.execute import Reads, execute
from edgeq.model.graph import Node, Program
from edgeq.model.model import Model
from edgeq.numerics.fake import fake_quantize
from edgeq.quantization.activations import QuantizedTensor
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import rounded_constants, rounded_reads

Values = dict[str, list[torch.Tensor]]
"""By graph node, its value for each sample."""

Layer = tuple[torch.Tensor, torch.Tensor]
"""Weight and bias."""

Pool = ThreadPoolExecutor


class Run(Protocol):
    """A block that rounds."""

    def __call__(
        self,
        samples: Sequence[Sequence[torch.Tensor]],
        layers: Mapping[str, Layer] = {},
        scales: Mapping[Version, torch.Tensor] = {},
        differentiable: bool = False,
    ) -> list[list[torch.Tensor]]:
        """What comes of each sample; of all in one where the block learns, and can take several side by side.

        Args:
            layers: what takes the place of weights and biases, by graph node.
            scales: what takes the place of activations' scales.
        """


def block_run(model: Model, quantized: Quantized, block: Block, *, side_by_side: bool) -> Run:
    """A block as it is in a quantized model."""
    inside = {node.name for node in block.program.nodes}
    held = {name: value for name, value in rounded_constants(model, quantized).items() if name in inside}
    written = quantized.rounded
    read = {pair: way for pair, way in rounded_reads(model, quantized).items() if pair[0] in inside}
    learned = {pair: tensor for pair, tensor in quantized.rounded_by_readers(model).items() if pair in read}

    def run(
        samples: Sequence[Sequence[torch.Tensor]],
        layers: Mapping[str, Layer] = {},
        scales: Mapping[Version, torch.Tensor] = {},
        differentiable: bool = False,
    ) -> list[list[torch.Tensor]]:
        def way(tensor: QuantizedTensor) -> Callable[[torch.Tensor], torch.Tensor]:
            scale = scales.get(tensor.version)
            return partial(fake_quantize, q=tensor.q) if scale is None else partial(rounded_by, q=tensor.q, scale=scale)

        def round_off(node: Node, values: list[Any]) -> list[Any]:
            tensor = None if node.op == "placeholder" else written.get(node.name)
            return values if tensor is None else list(map(way(tensor), values))

        given = [stacked(samples)] if side_by_side and differentiable else samples
        ways = read | {pair: way(tensor) for pair, tensor in learned.items() if tensor.version in scales}
        reads: Reads = {pair: [one] * len(given) for pair, one in ways.items()}
        constants = dict(held)
        for root, values in layers.items():
            nodes = model.nodes[root].all_input_nodes[1:3]
            constants |= {node.name: value for node, value in zip(nodes, values, strict=True)}
        return execute(block.program, given, round_off, constants, reads, differentiable)

    return run


def each(pool: Pool, run: Callable[..., list[list[torch.Tensor]]], program: Program, given: Values) -> Values:
    """What comes of each sample, by output."""
    samples = zip(*(given[name] for name in program.inputs), strict=True)
    found = pool.map(lambda sample: [value.clone() for value in run([sample])[0]], samples)
    return dict(zip(program.outputs, map(list, zip(*found, strict=True)), strict=True))


def stacks(program: Program, given: Values) -> bool:
    """Whether several samples go through a block side by side: its graph may be made for one."""
    samples = list(zip(*(given[name][:2] for name in program.inputs), strict=True))
    alone = execute(program, samples)
    try:
        (both,) = execute(program, [stacked(samples)])
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    return all(
        one.shape == other.shape and torch.allclose(one.double(), other.double(), atol=1e-4, rtol=1e-3, equal_nan=True)
        for one, other in zip(stacked(alone), both, strict=True)
    )


def stacked(samples: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """Values of several samples, one behind the other."""
    return [
        torch.cat([value if value.dim() else value[None] for value in column]) for column in zip(*samples, strict=True)
    ]
