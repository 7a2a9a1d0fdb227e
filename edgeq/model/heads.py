"""What a graph tells of its outputs: along which axis the channels of the last layer lie, if they arrive whole."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from edgeq.model.graph import Node, Program
from edgeq.model.ops import WEIGHTED, channel_axis_of_output, op_class, shape_of
from edgeq.model.values import tensor_of

_LAYERS = {"aten.addmm.default": -1, "aten.mm.default": -1, "aten.matmul.default": -1, "aten.convolution.default": 1}
_SOFTMAX = ("aten.softmax.int", "aten._softmax.default", "aten.log_softmax.int", "aten._log_softmax.default")
_KEPT = frozenset(
    f"aten.{name}"
    for name in ("clone.default", "contiguous.default", "alias.default", "detach.default", "_to_copy.default",
                 "to.dtype", "dropout.default")
)  # fmt: skip
_BY_A_CONSTANT = frozenset(
    f"aten.{name}.{kind}" for name in ("add", "sub", "mul", "div") for kind in ("Tensor", "Scalar")
)
_OVER_POSITIONS = frozenset({"relu", "avg_pool2d", "max_pool2d", "resize_nearest", "resize_bilinear"})


class Head(NamedTuple):
    """One output of a model.

    Attributes:
        name: the user's.
        axis: of the channels that the last layer gives, counted from the end; None where they do not arrive as they
            are: reshaped, put together, squashed, or scaled to a unit.
    """

    name: str
    axis: int | None


def heads_of(program: Program, names: tuple[str, ...]) -> tuple[Head, ...]:
    """One for each output, in order."""
    nodes = {node.name: node for node in program.nodes}
    return tuple(Head(name, _axis(nodes[node])) for name, node in zip(names, program.outputs, strict=True))


def _axis(node: Node) -> int | None:
    """The axis in a node's value, counted from the end."""
    if node.op != "call_function" or tensor_of(node) is None:
        return None
    rank = len(shape_of(node))
    own = _of_layer(node)
    if own is not None:
        return own % rank - rank if rank > 1 else None
    source = next((a for a in node.args if isinstance(a, Node)), None)
    if source is None or tensor_of(source) is None or (before := _axis(source)) is None:
        return None
    after = _moved(node, source, before + len(shape_of(source)))
    return None if after is None else after - rank


def _of_layer(node: Node) -> int | None:
    """The axis of the channels where the node is a layer, or a softmax over them."""
    op = op_class(node)
    if op in WEIGHTED:
        return channel_axis_of_output(op)
    if node.target in _SOFTMAX:
        return int(node.args[1])
    return _LAYERS.get(node.target)


def _moved(node: Node, source: Node, axis: int) -> int | None:
    """Where an axis of what a node reads is in what it gives; None where it is not whole there."""
    given, found, op = shape_of(source), shape_of(node), op_class(node)
    rank = len(given)
    if node.target == "aten.permute.default":
        return [int(d) % rank for d in node.args[1]].index(axis)
    if op == "transpose":
        a, b = (int(d) % rank for d in (node.args[1:3] if node.target == "aten.transpose.int" else (0, 1)))
        return {a: b, b: a}.get(axis, axis)
    if op == "reshape":
        behind = math.prod(given[axis + 1 :])
        places = [i for i, s in enumerate(found) if s == given[axis] and math.prod(found[i + 1 :]) == behind]
        return places[0] if places else None
    if node.target in ("aten.select.int", "aten.slice.Tensor"):
        cut = int(node.args[1] if len(node.args) > 1 else 0) % rank
        return None if cut == axis else axis - (node.target == "aten.select.int" and cut < axis)
    if node.target == "aten.mean.dim":
        return _left(axis, [int(d) % rank for d in node.args[1] or range(rank)], keep=rank == len(found))
    same = node.target in _KEPT or op in _OVER_POSITIONS or node.target == "aten.adaptive_avg_pool2d.default"
    same = same or (node.target in _BY_A_CONSTANT and not any(map(_computed, node.args[1:])))
    return axis if same and rank == len(found) and found[axis] == given[axis] else None


def _left(axis: int, gone: list[int], *, keep: bool) -> int | None:
    return None if axis in gone else axis if keep else axis - sum(d < axis for d in gone)


def _computed(argument: Any) -> bool:
    return isinstance(argument, Node) and argument.op != "placeholder"
