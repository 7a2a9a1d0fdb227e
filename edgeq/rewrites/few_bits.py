"""The ways in which runtimes store the weights of linear layers in few bits: where a rewrite of these has to help."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeq.lowering.assign import FLOAT
from edgeq.methods.gptq import FEW_BITS
from edgeq.methods.method import Wanted
from edgeq.methods.nearest import quantize_weight
from edgeq.model.model import Model
from edgeq.registry.schema import Kernel, Runtime

if TYPE_CHECKING:
    from edgeq.rewrites.judged import Way


def few_bits(runtimes: Sequence[Runtime]) -> list[tuple[Runtime, Kernel]]:
    """The kernels of as many bits as count as few, one for each kind of weights."""
    found: dict[str, tuple[Runtime, Kernel]] = {}
    for runtime in runtimes:
        for kernel in runtime.kernels:
            scheme = kernel.weight_scheme
            if "linear" in kernel.ops and scheme is not None and scheme.width == FEW_BITS:
                found.setdefault(f"{scheme}", (runtime, kernel))
    return list(found.values())


def with_few_bits(model: Model, runtimes: Sequence[Runtime], layers: Collection[str]) -> list[Way]:
    """The runtimes with their preferred kernels, and each way of few bits for these layers, all others in float."""
    ways: list[Way] = [(runtime, None) for runtime in runtimes]
    for runtime, kernel in few_bits(runtimes):
        ways.append((runtime, {g.name: kernel.name if g.name in layers else FLOAT for g in model.groups}))
    return ways


def fitting(model: Model, runtimes: Sequence[Runtime], weights: Sequence[str]) -> list[Kernel]:
    """The kernels of few bits in which a row of each of these weights, state names, is a whole number of groups."""
    rows = [model.state[name].shape[1] for name in weights]
    kernels = [kernel for _, kernel in few_bits(runtimes)]
    return [k for k in kernels if k.weight_group is None or not any(row % k.weight_group for row in rows)]


def rounded(weight: NDArray[np.float32], kernel: Kernel) -> NDArray[np.float32]:
    """A linear layer's weight, [outputs, inputs], as a kernel has it, rounded to nearest."""
    scheme = kernel.weight_scheme
    assert scheme is not None
    return quantize_weight(Wanted("", weight, np.zeros(len(weight), np.float32), scheme, 0, None)).real
