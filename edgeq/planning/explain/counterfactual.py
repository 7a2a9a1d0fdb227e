"""What if: a quantized model with something changed in it, many such changes side by side, in simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.evaluation.accuracy import tied_percent
from edgeq.model.batches import batches, side_by_side
from edgeq.model.execute import constants
from edgeq.model.groups import only_moves
from edgeq.model.model import Model
from edgeq.numerics import QParams, Scheme, same_steps
from edgeq.numerics.fake import fake_quantize
from edgeq.planning.sensitivity.edits import Edit, rounded, run
from edgeq.progress import Progress, Silent
from edgeq.quantization.dynamic import Rounding, dynamic_reads
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import movement, rounded_constants

TOGETHER = 48
"""Changes that run side by side: they hold as many values of what lies behind them."""

BATCH = 4

Key = TypeVar("Key")


class Outcome(NamedTuple):
    """What one run came to: [samples], what `movement` says of each, and the percent of answers that share the first
    place; None where the first output holds no answers."""

    losses: NDArray[np.float64]
    tied: float | None


def exact(values: torch.Tensor) -> torch.Tensor:
    """Neither rounded nor clipped."""
    return values


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
    found = set()
    for group in model.groups:
        own = quantized.activations.get(group.output)
        if own is None or not only_moves(group, model.nodes[group.root]):
            continue
        read = [quantized.read(group, node) for node in group.inputs]
        if all(tensor is not None and same_steps(tensor.q, own.q) for tensor in read):
            found.add(group.output)
    return found


def as_edit(model: Model, quantized: Quantized) -> Edit:
    """A quantized model as an edit of the float one."""
    copied = copies(model, quantized)
    return Edit(
        {node: rounded(tensor.q) for node, tensor in quantized.rounded.items() if node not in copied},
        rounded_constants(model, quantized),
        {pair: rounded(tensor.q) for pair, tensor in quantized.rounded_by_readers(model).items()}
        | dynamic_reads(model, quantized),
    )


def difference(model: Model, quantized: Quantized, other: Quantized) -> Edit:
    """What turns one quantization of a model into another."""
    here, there = as_edit(model, quantized), as_edit(model, other)

    def changed(before: Mapping[Key, Rounding], after: Mapping[Key, Rounding]) -> dict[Key, Rounding]:
        return {k: after.get(k, exact) for k in before.keys() | after.keys() if before.get(k) is not after.get(k)}

    held = constants(model.program)
    used = {node: there.constants.get(node, held[node]) for node in here.constants.keys() | there.constants.keys()}
    before = {**held, **here.constants}
    replaced = {node: value for node, value in used.items() if not torch.equal(value, before[node])}
    return Edit(changed(here.tensors, there.tensors), replaced, changed(here.reads, there.reads))


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
    progress, plan = progress or Silent(), as_edit(model, quantized)
    every = [plan.and_also(edit) for edit in edits]
    columns = list(batches(model, inputs, BATCH))
    # the model as it is runs beside each part: most of what is changed is computed for it
    given = [
        ([plan, *every[i : i + TOGETHER]], batch) for i in range(0, len(every) or 1, TOGETHER) for batch in columns
    ]
    found: list[list[Outcome]] = [[] for _ in range(len(every) + 1)]
    for done, moved in enumerate(side_by_side(partial(_one_batch, model), given)):
        first = done // len(columns) * TOGETHER
        for number, one in enumerate(moved):
            if number or not first:  # and counts once
                found[first + number if number else 0].append(one)
        progress.step(done + 1, len(given))
    return [_together(parts) for parts in found]


def _one_batch(model: Model, given: tuple[Sequence[Edit], list[torch.Tensor]]) -> list[Outcome]:
    edits, batch = given
    reference, *outputs = run(model, edits, batch)
    samples = len(batch[0]) if model.inputs[0].batched else 1
    return [Outcome(movement(o, reference, samples), tied_percent(np.atleast_1d(o[0].numpy()))) for o in outputs]


def _together(parts: Sequence[Outcome]) -> Outcome:
    known = [(part.tied, len(part.losses)) for part in parts if part.tied is not None]
    tied = sum(percent * count for percent, count in known) / sum(count for _, count in known) if known else None
    return Outcome(np.concatenate([part.losses for part in parts]), tied)
