"""Block reconstruction: rounding, scales and biases are learned so that each block gives what it gives in float.

Blocks are taken in the order in which they run. Each is given what the rounded blocks before it give on the calibration
samples, and asked for what the float model has there: it makes up for their errors, as far as it can. No labels are
needed.

Source: Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", equation 10,
with all outputs weighted alike. In place of AdaRound's relaxation (Nagel et al. 2020), which takes 20,000 steps,
weights are rounded as `edgeq.methods.learned` says: a hundred steps do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from edgeq.errors import UsageError
from edgeq.methods import GPTQ
from edgeq.methods.bias_correction import corrected
from edgeq.methods.gptq import FEW_BITS
from edgeq.methods.learned import Learned, begin
from edgeq.methods.method import Change, Seen, Wanted
from edgeq.model.batches import batches, one_thread_each
from edgeq.model.blocks import Block, find_blocks
from edgeq.model.execute import Reads, execute
from edgeq.model.graph import Node, Program, itemsize
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.values import tensor_of, traced_size
from edgeq.numerics.fake import fake_quantize
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import rounded_constants, rounded_reads

Values = dict[str, list[torch.Tensor]]
"""By graph node, its value for each sample."""

Layer = tuple[torch.Tensor, torch.Tensor]
"""Weight and bias."""

Run = Callable[..., list[list[torch.Tensor]]]
Pool = ThreadPoolExecutor

PARTS = 4
"""Of the samples of one step, that are looked at side by side."""

STEP_MACS = 1e8
"""Multiply-accumulates of a block in one step of learning: it decides how many samples that takes."""

MOST_SAMPLES = 32
"""Of one step."""

HELD_OUT = 8
"""One sample of so many judges what a block has learned from the others."""

MEMORY = 2 << 30
"""Bytes that the values between two blocks may take, of all samples: large models are given fewer."""


def reconstruct(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Rounds layers together, block by block. What is beside them in a block stays as `seen.quantized` has it."""
    if not seen.inputs:
        raise UsageError("blocks cannot be reconstructed without calibration samples", remedy="take another method")
    groups = {group.name: group for group in model.groups}
    by_root = {groups[one.layer].root: one for one in wanted}
    start = _start(groups, _few(model, wanted, seen), by_root, seen)
    blocks = find_blocks(model.program, by_root)
    given = _samples(model, seen, blocks)
    real: Values = {name: [sample[i] for sample in given] for i, name in enumerate(model.input_nodes)}
    rounded = {name: [_rounded(start, name, v) for v in values] for name, values in real.items()}
    weights = {one.layer: start.weights[one.layer] for one in wanted}
    biases = {one.layer: start.biases[one.layer] for one in wanted}
    with one_thread_each() as pool:
        for number, block in enumerate(blocks):
            targets, units = _in_float(pool, block, real)
            run = _block_of(model, start, block, stacks=_stacks(block.program, real))
            answers = _each(pool, run, block.program, rounded)
            if block.layers and (loss := _Loss(targets)).wanted:
                learned = {
                    root: begin(one, weights[one.layer], biases[one.layer], units[root])
                    for root in block.layers
                    for one in [by_root[root]]
                }
                macs = sum(groups[by_root[root].layer].macs for root in learned)
                at_once = max(1, min(len(given), MOST_SAMPLES, round(STEP_MACS / max(macs, 1))))
                _learn(pool, run, block.program, learned, rounded, loss, (seen.steps, at_once))
                with torch.no_grad():
                    real_of = {root: one.real() for root, one in learned.items()}
                others = _each(pool, partial(run, layers=real_of), block.program, rounded)
                if loss.held_out(others) < loss.held_out(answers):
                    answers = others
                    for root, one in learned.items():
                        weights[by_root[root].layer], biases[by_root[root].layer] = one.found()
            later = {name for one in blocks[number + 1 :] for name in one.program.inputs}
            given_on = dict(zip(block.program.outputs, answers, strict=True))
            real = {name: values for name, values in {**real, **targets}.items() if name in later}
            rounded = {name: values for name, values in {**rounded, **given_on}.items() if name in later}
            seen.progress.step(number + 1, len(blocks))
    return Change(weights, biases)


def _few(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    few = [one for one in wanted if one.scheme.width <= FEW_BITS]
    return seen.by(GPTQ)(model, few, seen) if few else Change({})


def _start(groups: Mapping[str, Group], change: Change, by_root: Mapping[str, Wanted], seen: Seen) -> Quantized:
    """What is known so far, with what GPTQ makes of layers of few bits: there it is nearer than the nearest."""
    quantized = seen.quantized
    biases = {
        one.layer: corrected(groups[one.layer], one, change.weights[one.layer], seen.calibration)
        for one in by_root.values()
        if one.layer in change.weights
    }
    return replace(quantized, weights={**quantized.weights, **change.weights}, biases={**quantized.biases, **biases})


def _samples(model: Model, seen: Seen, blocks: Sequence[Block]) -> list[list[torch.Tensor]]:
    """One by one, as many as there is memory for: what blocks are given and give is held four times."""

    def size(names: Iterable[str]) -> int:
        values = (tensor_of(model.nodes[name]) for name in names)
        return sum(math.prod(map(traced_size, v.shape)) * itemsize(v.dtype) for v in values if v is not None)

    largest = max(max(size(b.program.inputs), size(b.program.outputs)) for b in blocks)
    most = max(1, MEMORY // (4 * max(largest, 1)))
    few = {name: array[:most] for name, array in seen.inputs.items()}
    return list(batches(model, few, 1))


def _rounded(quantized: Quantized, name: str, value: torch.Tensor) -> torch.Tensor:
    tensor = quantized.rounded.get(name)
    return value if tensor is None else fake_quantize(value, tensor.q)


def _in_float(pool: Pool, block: Block, real: Values) -> tuple[Values, dict[str, torch.Tensor]]:
    """What a block gives in float for each sample, and the root mean square of the outputs of each of its layers."""

    def run(samples: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
        squares: dict[str, torch.Tensor] = {}

        def see(node: Node, values: list[Any]) -> list[Any]:
            if node.name in block.layers:
                squares[node.name] = values[0].square().mean()
            return values

        (found,) = execute(block.program, samples, see)
        return [[*found, *(squares[name] for name in block.layers)]]

    outputs = block.program.outputs
    columns = _each(pool, run, block.program, real)
    units = {
        name: torch.stack(found).mean().sqrt()
        for name, found in zip(block.layers, columns[len(outputs) :], strict=True)
    }
    return dict(zip(outputs, columns, strict=False)), units


def _each(pool: Pool, run: Run, program: Program, given: Values) -> list[list[torch.Tensor]]:
    """What comes of each sample: for each output, one behind the other."""
    samples = zip(*(given[name] for name in program.inputs), strict=True)
    found = pool.map(lambda sample: [value.clone() for value in run([sample])[0]], samples)
    return [list(column) for column in zip(*found, strict=True)]


def _stacks(program: Program, given: Values) -> bool:
    """Whether several samples go through a block side by side: its graph may be made for one."""
    samples = list(zip(*(given[name][:2] for name in program.inputs), strict=True))
    alone = execute(program, samples)
    try:
        (both,) = execute(program, [_stacked(samples)])
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    return all(
        one.shape == other.shape and torch.allclose(one.double(), other.double(), atol=1e-4, rtol=1e-3, equal_nan=True)
        for one, other in zip(_stacked(alone), both, strict=True)
    )


def _stacked(samples: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    return [
        torch.cat([value if value.dim() else value[None] for value in column]) for column in zip(*samples, strict=True)
    ]


def _block_of(model: Model, quantized: Quantized, block: Block, *, stacks: bool) -> Run:
    """A block that rounds: a function of samples, which gives what comes of each, or of all in one where it learns."""
    inside = {node.name for node in block.program.nodes}
    held = {name: value for name, value in rounded_constants(model, quantized).items() if name in inside}
    ways = {pair: way for pair, way in rounded_reads(model, quantized).items() if pair[0] in inside}

    def round_off(node: Node, values: list[Any]) -> list[Any]:
        return values if node.op == "placeholder" else [_rounded(quantized, node.name, value) for value in values]

    def run(
        samples: Sequence[Sequence[torch.Tensor]],
        layers: Mapping[str, Layer] | None = None,
        differentiable: bool = False,
    ) -> list[list[torch.Tensor]]:
        given = [_stacked(samples)] if stacks and differentiable else samples
        reads: Reads = {pair: [way] * len(given) for pair, way in ways.items()}
        constants = dict(held)
        for root, values in (layers or {}).items():
            nodes = model.nodes[root].all_input_nodes[1:3]
            constants |= {node.name: value for node, value in zip(nodes, values, strict=True)}
        return execute(block.program, given, round_off, constants, reads, differentiable)

    return run


class _Loss:
    """How far a block's outputs are from what it gives in float: mean squares, each output's in units of its power.

    Args:
        targets: by output, its value for each sample. One in `HELD_OUT` is kept from learning, and judges it.
    """

    def __init__(self, targets: Values) -> None:
        self.wanted = {n: values for n, values in targets.items() if values and values[0].is_floating_point()}
        self.names = list(targets)
        self.powers = {
            n: _mean([v.square().mean() for v in values]).clamp(min=1e-12) for n, values in self.wanted.items()
        }
        samples = range(max(map(len, targets.values()), default=0))
        self.held = samples[::HELD_OUT]
        self.learned = [i for i in samples if i % HELD_OUT] or list(samples)

    def of(self, outputs: Sequence[torch.Tensor], samples: Sequence[int]) -> torch.Tensor:
        """Of outputs in the block's order, the given samples of each one behind the other."""
        found = dict(zip(self.names, outputs, strict=True))
        aims = {name: _stacked([[values[i]] for i in samples])[0] for name, values in self.wanted.items()}
        return _mean([(found[name] - aim).square().mean() / self.powers[name] for name, aim in aims.items()])

    def held_out(self, outputs: Sequence[Sequence[torch.Tensor]]) -> float:
        return float(self.of([_stacked([[values[i]] for i in self.held])[0] for values in outputs], self.held))


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).mean()


def _learn(
    pool: Pool,
    run: Run,
    program: Program,
    learned: Mapping[str, Learned],
    given: Values,
    loss: _Loss,
    steps_and_samples: tuple[int, int],
) -> None:
    """Moves what is learned so that the block's outputs come near their targets. The samples of a step are shared out
    in parts, as many whatever the machine, and their gradients added up in order."""
    steps, samples = steps_and_samples
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([group for one in learned.values() for group in one.rates()])
    slower = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for _ in range(steps):
        drawn = torch.randint(len(loss.learned), (samples,), generator=generator).tolist()
        real = {root: one.real() for root, one in learned.items()}
        leaves = {root: (w.detach().requires_grad_(), b.detach().requires_grad_()) for root, (w, b) in real.items()}

        def gradients(part: list[int], leaves: Mapping[str, Layer] = leaves) -> tuple[torch.Tensor, ...]:
            picked = [loss.learned[i] for i in part]
            rows = [[given[name][i] for name in program.inputs] for i in picked]
            found = loss.of(_stacked(run(rows, leaves, True)), picked) * (len(part) / samples)
            values = [value for pair in leaves.values() for value in pair]
            if not found.requires_grad:  # nothing that is learned reaches an output by a gradient
                return tuple(map(torch.zeros_like, values))
            moved = torch.autograd.grad(found, values, allow_unused=True)
            return tuple(torch.zeros_like(v) if g is None else g for v, g in zip(values, moved, strict=True))

        parts = [part for start in range(PARTS) if (part := drawn[start::PARTS])]
        total = [sum(column[1:], column[0]) for column in zip(*pool.map(gradients, parts), strict=True)]
        optimizer.zero_grad()
        torch.autograd.backward([value for values in real.values() for value in values], total)
        optimizer.step()
        slower.step()
