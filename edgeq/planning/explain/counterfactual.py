"""What if: a quantized model with something changed in it, many such changes side by side, in simulation.

Every run computes only what lies behind its change; what is before it is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.evaluation.accuracy import tied_percent
from edgeq.model.batches import batches, side_by_side
from edgeq.model.execute import constants
from edgeq.model.graph import Node
from edgeq.model.groups import only_moves
from edgeq.model.model import Model
from edgeq.numerics import QParams, Scheme, same_steps
from edgeq.numerics.fake import fake_quantize
from edgeq.planning.sensitivity.damages import damage
from edgeq.progress import Progress, Silent
from edgeq.quantization.quantize import Quantized
from edgeq.quantization.simulate import rounded_constants

TOGETHER = 48
"""Changes that run side by side: they hold as many values of what lies behind them."""

BATCH = 4

Rounding = Callable[[torch.Tensor], torch.Tensor]
"""What is done to a tensor's values on their way."""


@dataclass(frozen=True)
class Edit:
    """What is otherwise than in the quantized model.

    Attributes:
        tensors: by graph node, what is done to its values.
        constants: by graph node, what takes its place: float32.
        reads: by a reader's graph node and the one that it reads, what is done to the values on their way.
    """

    tensors: Mapping[str, Rounding] = field(default_factory=dict)
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    reads: Mapping[tuple[str, str], Rounding] = field(default_factory=dict)

    def and_also(self, other: Edit) -> Edit:
        return Edit(
            {**self.tensors, **other.tensors}, {**self.constants, **other.constants}, {**self.reads, **other.reads}
        )


@dataclass(frozen=True)
class Outcome:
    """What one run moved the float model's outputs by.

    Attributes:
        losses: [samples], squared movement of the outputs over their own power (see `damages.damage`).
        tied: percent of answers that share the first place; None where the first output holds no answers.
    """

    losses: NDArray[np.float64]
    tied: float | None


def exact(values: torch.Tensor) -> torch.Tensor:
    """Neither rounded nor clipped."""
    return values


def rounded(q: QParams) -> Rounding:
    """As integers of this scale hold them."""
    return partial(fake_quantize, q=q)


def unclipped(q: QParams) -> Rounding:
    """To the same steps, which go on beyond the ends of the range."""
    return partial(fake_quantize, q=QParams(Scheme("int32"), q.scale, q.zero_point, q.axis))


def clipped(q: QParams) -> Rounding:
    """Cut at the ends of the range, and not rounded between them."""
    return partial(torch.clamp, min=q.low, max=q.high)


def copies(model: Model, quantized: Quantized) -> set[str]:
    """Graph nodes whose values were rounded to the same steps before they came there, such as what a max pooling picks.

    Rounding them again changes nothing. It would only hide what becomes of them without the first rounding.
    """
    scales = {node: tensor.q for node, tensor in quantized.activations.items()}
    found = set()
    for group in model.groups:
        own = scales.get(group.output)
        if own is None or not only_moves(group, model.nodes[group.root]):
            continue
        read = [quantized.read(group, node) for node in group.inputs]
        if all(tensor is not None and same_steps(tensor.q, own) for tensor in read):
            found.add(group.output)
    return found


def difference(model: Model, quantized: Quantized, other: Quantized) -> Edit:
    """What turns one quantization of a model into another."""
    tensors: dict[str, Rounding] = {}
    copied, copied_there = copies(model, quantized), copies(model, other)
    written, written_there = quantized.rounded, other.rounded
    for node in written.keys() | written_there.keys():
        here, there = written.get(node), written_there.get(node)
        if there is None:
            tensors[node] = exact
        elif here is None or not same_steps(here.q, there.q) or (node in copied and node not in copied_there):
            tensors[node] = rounded(there.q)
    own, new = rounded_constants(model, quantized), rounded_constants(model, other)
    held = constants(model.program)
    changed = {
        node: new.get(node, held[node])
        for node in own.keys() | new.keys()
        if node not in own or node not in new or not torch.equal(own[node], new[node])
    }
    reads: dict[tuple[str, str], Rounding] = {}
    before, after = quantized.rounded_by_readers(model), other.rounded_by_readers(model)
    for pair in before.keys() | after.keys():
        was, now = before.get(pair), after.get(pair)
        if now is None:
            reads[pair] = exact
        elif was is None or not same_steps(was.q, now.q):
            reads[pair] = rounded(now.q)
    return Edit(tensors, changed, reads)


def run_edits(
    model: Model,
    quantized: Quantized,
    inputs: Mapping[str, np.ndarray],
    edits: Sequence[Edit],
    progress: Progress | None = None,
) -> list[Outcome]:
    """The outcome of the quantized model as it is, then of each change to it.

    The time grows with the number of changes, each of which takes as long as what lies behind it.

    Args:
        inputs: by input name, [N, ...].
        edits: best in the order of the layers that they change, so that those with much in common run together.
    """
    progress = progress or Silent()
    parts = [edits[i : i + TOGETHER] for i in range(0, len(edits), TOGETHER)] or [[]]
    columns = list(batches(model, inputs, BATCH))
    copied = copies(model, quantized)
    plan = {node: rounded(tensor.q) for node, tensor in quantized.rounded.items() if node not in copied}
    reads = {pair: rounded(tensor.q) for pair, tensor in quantized.rounded_by_readers(model).items()}
    work = partial(_one_batch, model, plan, reads, rounded_constants(model, quantized), constants(model.program))
    given = [(part, batch) for part in parts for batch in columns]
    losses: list[list[NDArray[np.float64]]] = [[] for _ in range(len(edits) + 1)]
    ties: list[list[tuple[int, float | None]]] = [[] for _ in range(len(edits) + 1)]
    for done, found in enumerate(side_by_side(work, given)):
        first = done // len(columns) * TOGETHER
        for number, (moved, tied) in enumerate(found):
            run = first + number if number else 0
            if run or not first:  # the model as it is runs beside each part, and counts once
                losses[run].append(moved)
                ties[run].append((len(moved), tied))
        progress.step(done + 1, len(given))
    return [Outcome(np.concatenate(moved), _mean(tied)) for moved, tied in zip(losses, ties, strict=True)]


def _one_batch(
    model: Model,
    plan: Mapping[str, Rounding],
    reads: Mapping[tuple[str, str], Rounding],
    own: Mapping[str, torch.Tensor],
    held: Mapping[str, torch.Tensor],
    given: tuple[Sequence[Edit], list[torch.Tensor]],
) -> list[tuple[NDArray[np.float64], float | None]]:
    """By run, the losses of the batch's samples and its ties: of the quantized model, then of each change.

    Args:
        plan: by graph node, what the quantized model does to its values.
        reads: by a reader's graph node and the one that it reads, what it does to those on their way.
        own, held: constants of the quantized model and of the float one.
    """
    edits, batch = given
    everyone = [Edit(), *edits]

    def hook(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        ways = [edit.tensors.get(node.name, plan.get(node.name)) for edit in everyone]
        done: dict[tuple[int, int], torch.Tensor] = {}
        result = [values[0]]
        for value, way in zip(values[1:], ways, strict=True):
            if way is not None and way is not exact:
                key = (id(value), id(way))
                if key not in done:
                    done[key] = way(value)
                value = done[key]
            result.append(value)
        return result

    touched = dict.fromkeys([*own, *(node for edit in edits for node in edit.constants)])
    replaced = {
        node: [held[node], *(edit.constants.get(node, own.get(node, held[node])) for edit in everyone)]
        for node in touched
    }
    pairs = dict.fromkeys([*reads, *(pair for edit in edits for pair in edit.reads)])
    on_the_way = {
        pair: [None, *(None if (way := edit.reads.get(pair, reads.get(pair))) is exact else way for edit in everyone)]
        for pair in pairs
    }
    reference, *outputs = model.run([batch] * (len(everyone) + 1), hook, replaced, on_the_way)
    samples = len(batch[0]) if model.inputs[0].batched else 1
    return [(_by_sample(found, reference, samples), tied_percent(_first(found))) for found in outputs]


def _by_sample(outputs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], samples: int) -> NDArray[np.float64]:
    if samples == 1:
        return np.array([damage(outputs, reference)])
    rows = [slice(i, i + 1) for i in range(samples)]
    return np.array([damage([o[row] for o in outputs], [r[row] for r in reference]) for row in rows])


def _first(outputs: Sequence[torch.Tensor]) -> np.ndarray:
    """The output that answers are looked for in: [N, ...]."""
    return outputs[0].numpy() if outputs[0].dim() else outputs[0].reshape(1).numpy()


def _mean(tied: Sequence[tuple[int, float | None]]) -> float | None:
    known = [(count, percent) for count, percent in tied if percent is not None]
    return sum(count * percent for count, percent in known) / sum(c for c, _ in known) if known else None
