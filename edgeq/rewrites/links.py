"""Values through which alone layers are linked, channel by channel: what the layer that computes one does to a channel,
those that read it can undo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeq.model.graph import Array, Node
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import channel_axis_of_output, conv_groups, op_class, shape_of
from edgeq.rewrites.rewrite import Channels

_LAYERS = frozenset({"conv1d", "conv2d", "conv3d", "depthwise_conv2d", "linear"})
_EVERYWHERE = frozenset({"relu", "leaky_relu"})
_IN_SPACE = frozenset({"max_pool2d", "avg_pool2d", "mean", "pad", "resize_nearest", "resize_bilinear"})


@dataclass(frozen=True)
class Link:
    """A layer, and those that alone read what it computes, perhaps activated, pooled or padded on the way.

    What lies between commutes with a positive factor for each channel: f(x s) = f(x) s. ReLU6 does not.

    Attributes:
        value: the graph node of the writer's root operator.
        axis: of its channels.
        between: operator classes that the value goes through.
    """

    value: str
    axis: int
    writer: Group
    readers: tuple[Group, ...]
    between: frozenset[str]


def find_links(model: Model) -> tuple[Link, ...]:
    """In the order in which the writers run."""
    layers = {group.root: group for group in model.groups if _is_own(model, group)}
    found = []
    for group in layers.values():
        node = model.nodes[group.root]
        shape = shape_of(node)
        axis = channel_axis_of_output(group.op) % len(shape)
        if group.op != "linear" and len(shape) != model.state[group.weight or ""].ndim:
            continue  # one sample without the axis of the batch
        between: set[str] = set()
        readers = _readers(node, layers, axis, shape[axis], between)
        if readers:
            found.append(Link(node.name, axis, group, tuple(readers), frozenset(between)))
    return tuple(found)


def by_channel_written(weight: Array) -> Array:
    """[channels, weights that compute it], a view of the writer's weight."""
    return weight.reshape(len(weight), -1)


def by_channel_read(model: Model, reader: Group, weight: Array) -> Array:
    """[channels, weights that it is multiplied by], of a reader's weight."""
    grouped = _grouped(model, reader, weight).swapaxes(1, 2)
    apart: Array = grouped.reshape(grouped.shape[0] * grouped.shape[1], -1)
    return apart


def largest_read(model: Model, link: Link, weights: Mapping[str, Array]) -> Array:
    """The largest weight that each channel is multiplied by, [channels].

    Args:
        weights: absolute values by the name of a layer.
    """
    largest = [by_channel_read(model, reader, weights[reader.name]).max(axis=1) for reader in link.readers]
    found: Array = np.max(largest, axis=0)
    return found


def reach_of(link: Link, channels: Channels) -> Array:
    """How far each channel reaches behind its activation, in parts of the one that reaches farthest, float64."""
    reach = (np.maximum(channels.high, 0) if "relu" in link.between else channels.largest).astype(np.float64)
    parts: Array = reach / max(float(reach.max()), 1e-30)
    return parts


def times_channels_read(model: Model, reader: Group, weight: Array, factor: Array) -> Array:
    """A reader's weight with what each channel is multiplied by times a factor, [channels]."""
    grouped = _grouped(model, reader, weight)
    times: Array = (grouped * factor.reshape(len(grouped), 1, -1, 1)).reshape(weight.shape)
    return times


def added_to_channels_read(model: Model, reader: Group, weight: Array, added: Array) -> Array:
    """What a reader's outputs gain, [outputs], where each channel is `added`, [channels], larger everywhere."""
    grouped = _grouped(model, reader, weight).sum(axis=3)
    gained: Array = (grouped @ added.reshape(len(grouped), -1, 1)).reshape(-1)
    return gained


def _grouped(model: Model, reader: Group, weight: Array) -> Array:
    """[groups, outputs, inputs, positions of the kernel], of a weight as PyTorch has it."""
    groups = 1 if reader.op == "linear" else conv_groups(model.nodes[reader.root])
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _readers(
    node: Node, layers: Mapping[str, Group], axis: int, channels: int, between: set[str]
) -> list[Group] | None:
    """The layers that read a value, if nothing else does."""
    found: list[Group] = []
    for user in node.users:
        reader = layers.get(user.name)
        if reader is not None:
            if not _fits(reader, node, axis):
                return None
            found.append(reader)
            continue
        op = op_class(user) if user.op == "call_function" else None
        if op is None or not _commutes(op, user, node, axis, channels):
            return None
        between.add(op)
        deeper = _readers(user, layers, 1 if op == "reshape" else axis, channels, between)
        if deeper is None:
            return None
        found += deeper
    return found or None


def _fits(reader: Group, node: Node, axis: int) -> bool:
    """Whether what a layer sums over are the channels along an axis of its input."""
    return axis == channel_axis_of_output(reader.op) % len(shape_of(node))


def _commutes(op: str, user: Node, node: Node, axis: int, channels: int) -> bool:
    """Whether an operator gives s times as much in each channel that it is given s times as much in."""
    if op in _EVERYWHERE:
        return True
    if axis != 1:
        return False
    if op == "reshape":  # of what has one position left
        return shape_of(user)[1:] == (channels,) and all(size == 1 for size in shape_of(node)[2:])
    if op == "pad":
        in_space = len(user.args[1]) <= 2 * (len(shape_of(node)) - 2)
        return in_space and not any(isinstance(a, int | float) and a for a in user.args[2:])
    return op == "prelu" or (op in _IN_SPACE and len(shape_of(node)) == 4)


def scaled(model: Model, by: Mapping[str, Array]) -> Model:
    """The model with channels of links divided, and what reads them multiplied. It computes what it did, to rounding.

    Args:
        by: by graph node of a link's value, positive, float64 [channels].
    """
    state: dict[str, Array] = {}

    def held(name: str | None) -> Array:
        return state.get(name or "", model.state[name or ""].astype(np.float64))

    for link in find_links(model):
        if link.value in by:
            factor, writer = by[link.value], link.writer
            state[writer.weight or ""] = (by_channel_written(held(writer.weight)) / factor[:, None]).reshape(
                held(writer.weight).shape
            )
            state[writer.bias or ""] = held(writer.bias) / factor
            for reader in link.readers:
                state[reader.weight or ""] = times_channels_read(model, reader, held(reader.weight), factor)
    return model.with_state({name: array.astype(np.float32) for name, array in state.items()})


def _is_own(model: Model, group: Group) -> bool:
    """Whether a layer has constants that nothing else reads."""
    if group.op not in _LAYERS or group.weight is None or group.bias is None or len(group.inputs) != 1:
        return False
    names = [model.program.lifted[c.name] for c in model.nodes[group.root].args[1:3]]
    shared = [name for name in model.program.lifted.values() if name in names]
    alone = all(len(constant.users) == 1 for constant in model.nodes[group.root].args[1:3])
    return alone and len(shared) == 2 and all(model.state[name].dtype == np.float32 for name in names)
