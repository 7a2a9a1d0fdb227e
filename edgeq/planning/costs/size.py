"""How many bytes each layer takes in the artefact with each choice: counted for what it stores, and fitted to the files
of a few builds for what a format adds around that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeq.lowering.assign import FLOAT, writes_integers
from edgeq.lowering.boundaries import crossings
from edgeq.lowering.space import Space
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.numerics import Scheme
from edgeq.numerics.levels import count_of
from edgeq.registry.schema import Kernel, Runtime


@dataclass(frozen=True)
class Sizes:
    """Bytes in the files of an artefact.

    Attributes:
        layers: by group name and choice.
        conversion: of a tensor that is made integers, or integers of another type; what is dequantized was an integer
            tensor anyway.
        fixed: whatever the plan.
    """

    layers: dict[str, dict[str, float]]
    conversion: float
    fixed: float


_ADDED = (
    "scales", "tensors", "weights", "widened weights", "weights by channel", "2-bit weights", "shared",
    "scales alone", "weights alone", "groups alone", "zero points alone", "levels alone", "dynamic",
)  # fmt: skip
"""What a format adds something for: scales, tensors of integers, integer weights and those of fewer bits, or of a
convolution channel by channel, which a format may have to reshape; weights of 2 bits, which it may only have without a
sign; bytes of float weights that stand for something else as well, which it may store twice; and, where weights alone
are integers, their scales, the weights, those in groups, those with zero points, those with levels and what rounds the
input beside."""


def fit_sizes(space: Space, built: Sequence[tuple[Mapping[str, str], int]]) -> Sizes:
    """The sizes that explain the builds best.

    Args:
        built: for each build its choices and the bytes of its files.
    """
    from scipy.optimize import nnls

    model, runtime, shared = space.model, space.runtime, _shared(space.model)
    stored: dict[tuple[str, str], float] = {}
    added: dict[tuple[str, str], NDArray[np.float64]] = {}
    for group in model.groups:
        for choice in space.options[group.name]:
            kernel = None if choice == FLOAT else runtime.kernel(group.op, choice)
            twice = shared.get(group.name, 0.0) if kernel is None else 0.0
            stored[group.name, choice] = stored_bytes(model, group, kernel) - twice
            found = {"shared": twice} if kernel is None else _added(model, runtime, group, kernel)
            added[group.name, choice] = np.array([found.get(what, 0.0) for what in _ADDED])
    rows, rest = [], []
    for picked, size in built:
        counts = np.sum([added[pair] for pair in picked.items()], axis=0)
        counts[_ADDED.index("tensors")] += sum(one.form is not None for one in crossings(space.edges, picked))
        rows.append([1.0, *counts])
        rest.append(size - sum(stored[pair] for pair in picked.items()))
    fixed, *prices = map(float, nnls(np.array(rows), np.array(rest))[0])
    costs: dict[str, dict[str, float]] = {}
    for (name, choice), own in stored.items():
        costs.setdefault(name, {})[choice] = own + float(np.dot(prices, added[name, choice]))
    return Sizes(costs, prices[_ADDED.index("tensors")], fixed)


def _added(model: Model, runtime: Runtime, group: Group, kernel: Kernel) -> dict[str, float]:
    """How much a layer in this kernel has of what a format adds something for."""
    scheme, alone = kernel.weight_scheme, " alone" if kernel.float_ends else ""
    found = {} if alone else {"tensors": float(writes_integers(model, runtime, group))}
    if scheme is not None and (scales := _scales(model, group, scheme)):
        found |= {f"scales{alone}": float(scales), f"weights{alone}": 1.0}
        found["2-bit weights"] = float(scheme.dtype == "int2")
        found["weights by channel"] = float(group.op == "depthwise_conv2d")
        if alone:
            found["groups alone"] = float(scheme.group is not None)
            found["zero points alone"] = float(scheme.symmetry == "asymmetric")
            found["levels alone"] = float(scheme.levels is not None)
            found["dynamic"] = float(kernel.dynamic is not None)
        else:
            found["widened weights"] = float(scheme.stored_bits < 8)
    return found


def _shared(model: Model) -> dict[str, float]:
    """By group whose weights stand for something else as well that is never made integers, such as an embedding, their
    bytes as float."""
    state, weights = model.state, {g.weight for g in model.groups}
    others = [value for name, value in state.items() if name not in weights]
    return {
        g.name: 4.0 * (g.parameters - _channels(model, g))
        for g in model.groups
        if g.weight and any(np.array_equal(other, state[g.weight]) for other in others)
    }


def _channels(model: Model, group: Group) -> int:
    """Output channels of a layer with weights."""
    return model.state[group.bias].size if group.weight and group.bias else 0


def _scales(model: Model, group: Group, scheme: Scheme) -> int:
    """Scales of a layer's weights: one for each output channel, or for each group of weights."""
    channels = _channels(model, group)
    return channels if scheme.group is None else (group.parameters - channels) // scheme.group


def stored_bytes(model: Model, group: Group, kernel: Kernel | None) -> float:
    """Bytes of a layer's weights, their zero points or levels where they have any, and bias, without their scales."""
    scheme = kernel.weight_scheme if kernel is not None else None
    if scheme is None or group.weight is None:
        return 4.0 * group.parameters
    channels = _channels(model, group)
    bias = channels * (8 if kernel is not None and kernel.bias == "int64" else 4)
    points = _scales(model, group, scheme) if scheme.symmetry == "asymmetric" else 0
    levels = 0 if scheme.levels is None else 4 * count_of(scheme)
    return (group.parameters - channels + points) * scheme.stored_bits / 8 + levels + bias
