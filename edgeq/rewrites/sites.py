"""Values that linear layers read, whose channels can be divided by factors while the layers' weights are multiplied by
them: what SmoothQuant and AWQ change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeq.model.graph import Array, Node
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import op_class, shape_of
from edgeq.model.scaled import Scaled, with_products

_NORMS = {"aten.layer_norm.default": (2, 3), "aten.rms_norm.default": (2,)}
_CURVES = frozenset({"gelu", "silu", "sigmoid", "tanh", "hardswish"})

Kind = Literal["norm", "activation"]
"""What computes the value: a normalisation, or an activation with or without a gate."""


@dataclass(frozen=True)
class Site:
    """A value that linear layers read, and that can be made easier to round.

    Attributes:
        value: its graph node.
        layers: names of the linear layers that read it.
        divided: state names, with the axis of the channels, of what the division can be done to; empty where it takes a
            product of its own.
    """

    value: str
    kind: Kind
    layers: tuple[str, ...]
    divided: tuple[tuple[str, int], ...]


def find_sites(model: Model) -> tuple[Site, ...]:
    """In the order in which they are computed, the values of normalisations and activations that linear layers read. A
    convolutional network has none."""
    read: dict[str, list[Group]] = {}
    for group in model.groups:
        if group.op == "linear" and group.weight is not None and group.bias is not None and len(group.inputs) == 1:
            read.setdefault(group.inputs[0], []).append(group)
    found = (_site(model, model.nodes[value], layers) for value, layers in read.items())
    return tuple(site for site in found if site is not None)


def divided(model: Model, sites: Sequence[Site], by: Mapping[str, Array]) -> Model:
    """The model with some sites' values divided. It computes what it did, to rounding.

    Args:
        by: by graph node of a site's value, float32 [channels].
    """
    state: dict[str, Array] = {}
    products: dict[str, Scaled] = {}
    roots = {group.name: group.root for group in model.groups}

    def multiply(name: str, factor: Array, axis: int) -> None:
        held = state.get(name, model.state[name])
        shape = [-1 if d == axis else 1 for d in range(held.ndim)]
        state[name] = (held * factor.reshape(shape)).astype(np.float32)

    for site in sites:
        if site.value not in by:
            continue
        divisor = by[site.value]
        inverse = (1 / divisor.astype(np.float64)).astype(np.float32)
        for weight in weights_of(model, site):
            multiply(weight, divisor, 1)
        for name, axis in site.divided:
            multiply(name, inverse, axis)
        if not site.divided:
            products[site.value] = Scaled([roots[layer] for layer in site.layers], inverse)
    return model.with_program(with_products(model.program, state, products))


def weights_of(model: Model, site: Site) -> list[str]:
    """State names of the weights of its layers."""
    return [g.weight for g in model.groups if g.name in site.layers and g.weight is not None]


def _site(model: Model, made_by: Node, layers: list[Group]) -> Site | None:
    kind = _kind(made_by)
    if kind is None:
        return None
    channels = shape_of(made_by)[-1]
    if any(shape_of(model.nodes[g.root].args[1])[1] != channels for g in layers):
        return None
    alone = {user.name for user in made_by.users} == {g.root for g in layers}
    divided = _divided(model, made_by, channels) if alone else ()
    return Site(made_by.name, kind, tuple(g.name for g in layers), divided)


def _kind(node: Node) -> Kind | None:
    """What computes a value, told by its operator: a product with constants is the gain of a normalisation, one of two
    values has a gate."""
    if node.op != "call_function":
        return None
    if node.target in _NORMS:
        return "norm"
    if op_class(node) in _CURVES:
        return "activation"
    sides = node.args[:2]
    if op_class(node) != "mul" or not all(isinstance(side, Node) for side in sides):
        return None
    if any(side.op == "placeholder" for side in sides):
        return "norm" if any(_is_normalising(side) for side in sides) else None
    return "activation" if any(op_class(s) in _CURVES for s in sides if s.op == "call_function") else None


def _is_normalising(node: Node) -> bool:
    """Whether a value is divided by its own size: x * rsqrt(mean(x^2) + e), or spelt with a division."""
    ends = {"aten.rsqrt.default", "aten.reciprocal.default", "aten.sqrt.default", "aten.linalg_vector_norm.default"}
    scaled = node.op == "call_function" and node.target in ("aten.mul.Tensor", "aten.div.Tensor")
    return scaled and any(isinstance(side, Node) and side.target in ends for side in node.args[:2])


def _divided(model: Model, node: Node, channels: int) -> tuple[tuple[str, int], ...]:
    """What to divide for a value to be divided, if nothing else hangs on it; empty if there is no such thing."""
    if node.target in _NORMS:
        constants = [node.args[i] for i in _NORMS[node.target] if len(node.args) > i and node.args[i] is not None]
        return _owned(model, constants, channels)
    if op_class(node) != "mul":
        return ()
    gains = [side for side in node.args[:2] if isinstance(side, Node) and side.op == "placeholder"]
    if gains:
        return _owned(model, gains, channels)
    for side in node.args[:2]:
        if isinstance(side, Node) and op_class(side) == "linear" and side.users == [node]:
            return _owned(model, side.args[1:3], channels, axis=0)
    return ()


def _owned(model: Model, constants: Sequence[object], channels: int, axis: int = -1) -> tuple[tuple[str, int], ...]:
    """State names of constants that one operator alone reads, with the axis of their channels; empty if one is not."""
    found = []
    for constant in constants:
        name = model.program.lifted.get(constant.name) if isinstance(constant, Node) else None
        held = model.state.get(name or "")
        if name is None or held is None or not isinstance(constant, Node) or len(constant.users) != 1:
            return ()
        place = axis % held.ndim if held.ndim else 0
        shared = [node for node, other in model.program.lifted.items() if other == name]
        if not held.ndim or held.shape[place] != channels or len(shared) != 1:
            return ()
        found.append((name, place))
    return tuple(found)
