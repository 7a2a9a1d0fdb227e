"""What if: a model with something changed in it, many such changes side by side, in simulation.

Every change computes only what lies behind it; what is before it is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.model.execute import constants
from edgeq.model.graph import Node
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.numerics import QParams, Scheme, per_tensor
from edgeq.numerics.fake import fake_quantize
from edgeq.quantization.dynamic import Rounding
from edgeq.quantization.simulate import movement


@dataclass(frozen=True)
class Edit:
    """What is otherwise than in the float model, or than in a plan.

    Attributes:
        tensors: by graph node, what is done to its values.
        constants: by graph node, what takes its place.
        reads: by graph nodes of a reader and of what it reads, what is done to the values on their way.
    """

    tensors: Mapping[str, Rounding] = field(default_factory=dict)
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    reads: Mapping[tuple[str, str], Rounding] = field(default_factory=dict)

    def and_also(self, other: Edit) -> Edit:
        return Edit(
            {**self.tensors, **other.tensors}, {**self.constants, **other.constants}, {**self.reads, **other.reads}
        )


def rounded(q: QParams) -> Rounding:
    """As integers of this scale, one for the tensor, hold them."""
    return _rounded(q.scheme, float(q.scale), int(q.zero_point))


@cache
def _rounded(scheme: Scheme, scale: float, zero_point: int) -> Rounding:
    return partial(fake_quantize, q=per_tensor(scheme, scale, zero_point))


def weight_and_bias(model: Model, group: Group) -> tuple[str, str]:
    """Graph nodes of what a layer with weights computes with."""
    _, weight, bias = model.nodes[group.root].all_input_nodes[:3]
    return weight.name, bias.name


def run(model: Model, edits: Sequence[Edit], batch: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The outputs of the float model, then those of each edit of it.

    Args:
        batch: one tensor per input, [N, ...].
    """
    everyone = [Edit(), *edits]

    def hook(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        done: dict[tuple[int, int], torch.Tensor] = {}
        result = []
        for value, edit in zip(values, everyone, strict=True):
            way = edit.tensors.get(node.name)
            key = (id(value), id(way))
            if key not in done:
                done[key] = value if way is None else way(value)
            result.append(done[key])
        return result

    held = constants(model.program)
    nodes = dict.fromkeys(node for edit in edits for node in edit.constants)
    pairs = dict.fromkeys(pair for edit in edits for pair in edit.reads)
    replaced = {node: [edit.constants.get(node, held[node]) for edit in everyone] for node in nodes}
    reads = {pair: [edit.reads.get(pair) for edit in everyone] for pair in pairs}
    return model.run([batch] * len(everyone), hook, replaced, reads)


def losses(model: Model, edits: Sequence[Edit], batch: Sequence[torch.Tensor]) -> list[NDArray[np.float64]]:
    """By edit, what `movement` says of each sample."""
    reference, *outputs = run(model, edits, batch)
    samples = len(batch[0]) if model.inputs[0].batched else 1
    return [movement(found, reference, samples) for found in outputs]
