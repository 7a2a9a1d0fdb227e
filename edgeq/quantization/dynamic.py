"""What layers round of what they read, in every call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch

from edgeq.model.graph import Free
from edgeq.model.model import Model
from edgeq.model.values import tensor_of
from edgeq.numerics.dynamic import round_dynamically
from edgeq.numerics.scheme import Scheme
from edgeq.quantization.quantized import Quantized
from edgeq.registry.schema import Kernel

Rounding = Callable[[torch.Tensor], torch.Tensor]
"""What is done to a tensor's values on their way; one and the same object where it is the same."""


def dynamic_reads(model: Model, quantized: Quantized) -> dict[tuple[str, str], Rounding]:
    """By graph nodes of a reader and of what it reads, what is done to the values on their way.

    Integers that a layer in front leaves behind are multiplied as they are where the file does not say that they are
    rounded anew, but the runtime does so by itself; OpenVINO has no product of them with fewer bits.
    """
    return {
        (group.root, node): rounding(model, kernel, node)
        for group in model.groups
        if (kernel := quantized.assignment.dynamic.get(group.name))
        for node in group.inputs
        if not (node in quantized.rounded and isinstance(kernel.dynamic, int) and kernel.weights == "int8")
    }


def rounding(model: Model, kernel: Kernel, node: str) -> Rounding:
    """What a dynamic kernel does to a value of a graph node.

    Args:
        node: whose values are float32, [samples, ...].
    """
    value = tensor_of(model.nodes[node])
    assert value is not None
    first = value.shape[0]
    entries = first.factor if isinstance(first, Free) else first
    return _rounding(kernel.activation_scheme, kernel.dynamic or "tensor", entries)


@cache
def _rounding(scheme: Scheme, shared: str | int, entries: int) -> Rounding:
    return partial(_rounded, scheme, shared, entries)


def _rounded(scheme: Scheme, shared: str | int, entries: int, x: torch.Tensor) -> torch.Tensor:
    """
    Args:
        entries: of the first axis, for one sample: artefacts are given one sample in a call, whose scale knows nothing
            of the others.
    """
    sample = x[0].numel() * entries if len(x) % entries == 0 else x.numel()
    length = sample if shared == "tensor" else x.shape[-1] if shared == "row" else int(shared)
    return round_dynamically(x, scheme, length)
