"""Layers learned together: a network in blocks, each asked for what it gives in float.

Blocks are taken in the order in which they run. Each is given what the rounded blocks before it give on the calibration
samples: it makes up for their errors, as far as it can. What some of the samples say against is not taken. No labels
are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from edgeq.errors import UsageError
from edgeq.lowering.assign import Version
from edgeq.methods.block_loss import Loss
from edgeq.methods.block_run import Pool, Values, block_run, each, stacks
from edgeq.methods.learn import Learning, Task, learn
from edgeq.methods.learned import begin
from edgeq.methods.learned_scale import begin as begin_scales
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.model.batches import batches, one_thread_each
from edgeq.model.blocks import Block, find_blocks
from edgeq.model.execute import execute
from edgeq.model.graph import Node, itemsize
from edgeq.model.model import Model
from edgeq.model.values import tensor_of, traced_size
from edgeq.numerics.fake import fake_quantize
from edgeq.quantization.activations import ends
from edgeq.quantization.quantized import Quantized

LEAST_SAMPLES, MOST_SAMPLES = 4, 32
"""Of one step."""

MEMORY = 2 << 30
"""Bytes that the values between two blocks may take, of all samples: large models are given fewer."""


def learn_blocks(
    model: Model,
    wanted: Sequence[Wanted],
    seen: Seen,
    start: Quantized,
    *,
    name: str,
    most: float,
    step_macs: float,
    pace: float = 1,
) -> Change:
    """What is learned of the layers, from what a quantized model has of them. What is beside them stays as it is there.

    Args:
        name: of the method, which interrupted work is found by.
        most: layers in a block.
        step_macs: multiply-accumulates of a block in one step: they decide how many samples that takes.
        pace: of learning, slower where `start` was learned.

    Raises:
        UsageError: there are no samples.
    """
    if not seen.inputs:
        raise UsageError("nothing is learned without calibration samples", remedy="take another method")
    groups = {group.name: group for group in model.groups}
    by_root = {groups[one.layer].root: one for one in wanted}
    blocks = find_blocks(model.program, by_root, most)
    given = _samples(model, seen, blocks)
    real: Values = {node: [sample[i] for sample in given] for i, node in enumerate(model.input_nodes)}
    rounded = {node: _rounded(start, node, values) for node, values in real.items()}
    at_the_ends = ends(model)
    fixed = {tensor.version for node, tensor in start.activations.items() if node in at_the_ends}
    now = start
    with one_thread_each() as pool:
        for number, block in enumerate(blocks):
            targets, units = _in_float(pool, block, real)
            if block.layers and (loss := Loss(targets)).wanted:
                run = block_run(model, now, block, side_by_side=stacks(block.program, real))
                learning = _begin(block, by_root, now, units, fixed)
                macs = sum(groups[by_root[root].layer].macs for root in block.layers)
                samples = max(LEAST_SAMPLES, min(MOST_SAMPLES, round(step_macs / max(macs, 1))))
                tell = partial(_tell, seen, number, len(blocks))
                task = Task(pool, run, block.program, rounded, loss, samples, pace)
                names = {root: by_root[root].layer for root in block.layers}
                work = partial(_found, task, learning, seen.steps, tell, names)
                now = seen.kept(f"{name} {number}", work).on(now)
            _tell(seen, number, len(blocks), seen.steps)
            later = {node for one in blocks[number + 1 :] for node in one.program.inputs}
            if not later:
                break
            fixed |= {tensor.version for n in block.program.nodes if (tensor := now.activations.get(n.name))}
            answers = each(pool, block_run(model, now, block, side_by_side=False), block.program, rounded)
            real = {node: values for node, values in {**real, **targets}.items() if node in later}
            rounded = {node: values for node, values in {**rounded, **answers}.items() if node in later}
    layers = [one.layer for one in wanted]
    moved = {t.version: t.q.scale for node, t in now.activations.items() if t is not seen.quantized.activations[node]}
    return Change({n: now.weights[n] for n in layers}, {n: now.biases[n] for n in layers}, moved)


def _tell(seen: Seen, number: int, blocks: int, steps: int) -> None:
    seen.progress.step(number * seen.steps + steps, blocks * seen.steps)


def _begin(
    block: Block,
    by_root: Mapping[str, Wanted],
    start: Quantized,
    units: Mapping[str, torch.Tensor],
    fixed: Collection[Version],
) -> Learning:
    wanted = {root: by_root[root] for root in block.layers}
    layers = {
        root: begin(one, start.weights[one.layer], start.biases[one.layer], units[root]) for root, one in wanted.items()
    }
    return Learning(layers, begin_scales(block.program, start, fixed))


def _found(task: Task, learning: Learning, steps: int, tell: Callable[[int], None], names: Mapping[str, str]) -> Change:
    """What was learned, to be stored; nothing where nothing was.

    Args:
        names: of layers, by graph node.
    """
    if not learn(task, learning, steps, tell):
        return Change({})
    found = {names[root]: one.found() for root, one in learning.layers.items()}
    return Change(
        {layer: weight for layer, (weight, _) in found.items()},
        {layer: bias for layer, (_, bias) in found.items()},
        {version: one.found() for version, one in learning.scales.items()},
    )


def _samples(model: Model, seen: Seen, blocks: Sequence[Block]) -> list[list[torch.Tensor]]:
    """One by one, as many as there is memory for: what blocks are given and give is held four times."""

    def size(names: Iterable[str]) -> int:
        values = (tensor_of(model.nodes[name]) for name in names)
        return sum(math.prod(map(traced_size, v.shape)) * itemsize(v.dtype) for v in values if v is not None)

    largest = max(max(size(b.program.inputs), size(b.program.outputs)) for b in blocks)
    most = max(1, MEMORY // (4 * max(largest, 1)))
    few = {name: array[:most] for name, array in seen.inputs.items()}
    return list(batches(model, few, 1))


def _rounded(quantized: Quantized, name: str, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    tensor = quantized.rounded.get(name)
    return list(values) if tensor is None else [fake_quantize(value, tensor.q) for value in values]


def _in_float(pool: Pool, block: Block, real: Values) -> tuple[Values, dict[str, torch.Tensor]]:
    """What a block gives in float for each sample, and the root mean square of the outputs of each of its layers."""
    squares: dict[str, list[torch.Tensor]] = {name: [] for name in block.layers}

    def see(node: Node, values: list[Any]) -> list[Any]:
        if node.name in squares:
            squares[node.name].append(values[0].square().mean())
        return values

    targets = each(pool, partial(execute, block.program, hook=see), block.program, real)
    # sorted, since threads finish in any order
    return targets, {name: torch.stack(found).sort().values.mean().sqrt() for name, found in squares.items()}
