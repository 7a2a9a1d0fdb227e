"""How many bytes each layer takes in the artefact with each choice: counted for what it stores, and fitted to the files
of a few builds for what a format adds around that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeq.lowering.assign import FLOAT, writes_integers
from edgeq.lowering.boundaries import Crossing, Edge, crossings
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.numerics import Scheme
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

    def of(self, edges: Sequence[Edge], choices: Mapping[str, str]) -> float:
        """Bytes that a plan is expected to take."""
        return (
            self.fixed
            + sum(self.layers[name][choice] for name, choice in choices.items())
            + self.conversion * len(_quantized(edges, choices))
        )


def fit_sizes(
    model: Model,
    runtime: Runtime,
    choices: Mapping[str, Sequence[str]],
    edges: Sequence[Edge],
    built: Sequence[tuple[Mapping[str, str], int]],
) -> Sizes:
    """The sizes that explain the builds best.

    Args:
        choices: by group name, what it may choose from.
        built: for each build its choices and the bytes of its files.
    """
    from scipy.optimize import nnls

    groups = {g.name: g for g in model.groups}
    stored = {
        name: {
            choice: stored_bytes(
                model, groups[name], None if choice == FLOAT else runtime.kernel(groups[name].op, choice)
            )
            for choice in options
        }
        for name, options in choices.items()
    }
    left_behind = {g.name for g in model.groups if writes_integers(model, runtime, g)}
    # how much of such weights a format stores twice is found out from the builds
    shared = {name: 4.0 * (groups[name].parameters - _channels(model, groups[name])) for name in _shared(model)}
    for name in shared.keys() & stored.keys():
        stored[name][FLOAT] -= shared[name]

    def added(name: str, choice: str) -> list[float]:
        """How many scales, integer tensors, integer weights and widenings of fewer bits a layer adds; and, where its
        weights alone are integers, how many scales, weights, groupings and subtractions of zero points; how many
        weights of 2 bits, which a format may only have without a sign; how many bytes of float that it shares; and how
        many integer weights of a convolution channel by channel, which a format may have to reshape."""
        kernel = None if choice == FLOAT else runtime.kernel(groups[name].op, choice)
        if kernel is None:
            return [0.0] * 9 + [shared.get(name, 0.0), 0.0]
        scheme = kernel.weight_scheme
        scales = 0 if scheme is None else _scales(model, groups[name], scheme)
        apart = float(scales > 0 and groups[name].op == "depthwise_conv2d")
        two = float(scheme is not None and scheme.stored_bits == 2)
        if kernel.weight_only:
            return [0.0] * 4 + [
                float(scales),
                float(scales > 0),
                float(scheme is not None and scheme.group is not None),
                float(scheme is not None and scheme.symmetry == "asymmetric"),
                two,
                0.0,
                apart,
            ]
        narrow = scheme is not None and scheme.stored_bits < 8
        weights = [float(scales), float(name in left_behind), float(scales > 0), float(narrow)]
        return [*weights, *[0.0] * 4, two, 0.0, apart]

    rows, rest = [], []
    for picked, size in built:
        layers = np.sum([added(name, choice) for name, choice in picked.items()], axis=0)
        # a tensor that is made integers is one more integer tensor
        layers[1] += len(_quantized(edges, picked))
        rows.append([1.0, *layers])
        rest.append(size - sum(stored[name][choice] for name, choice in picked.items()))
    fixed, *prices = map(float, nnls(np.array(rows), np.array(rest))[0])
    costs = {
        name: {choice: size + float(np.dot(prices, added(name, choice))) for choice, size in options.items()}
        for name, options in stored.items()
    }
    return Sizes(costs, prices[1], fixed)


def _quantized(edges: Sequence[Edge], choices: Mapping[str, str]) -> list[Crossing]:
    return [crossing for crossing in crossings(edges, choices) if crossing.form is not None]


def _shared(model: Model) -> list[str]:
    """The groups whose weights stand for something else as well that is never made integers, such as an embedding."""
    state, weights = model.state, {g.weight for g in model.groups}
    others = [value for name, value in state.items() if name not in weights]
    return [
        g.name for g in model.groups if g.weight and any(np.array_equal(other, state[g.weight]) for other in others)
    ]


def _channels(model: Model, group: Group) -> int:
    """Output channels of a layer with weights."""
    return model.state[group.bias].size if group.weight and group.bias else 0


def _scales(model: Model, group: Group, scheme: Scheme) -> int:
    """Scales of a layer's weights: one for each output channel, or for each group of weights."""
    channels = _channels(model, group)
    return channels if scheme.group is None else (group.parameters - channels) // scheme.group


def stored_bytes(model: Model, group: Group, kernel: Kernel | None) -> float:
    """Bytes of a layer's weights, their zero points where they have any, and bias, without their scales."""
    scheme = kernel.weight_scheme if kernel is not None else None
    if scheme is None or group.weight is None:
        return 4.0 * group.parameters
    channels = _channels(model, group)
    bias = channels * (8 if kernel is not None and kernel.bias == "int64" else 4)
    points = _scales(model, group, scheme) if scheme.symmetry == "asymmetric" else 0
    return (group.parameters - channels + points) * scheme.stored_bits / 8 + bias
