"""Transposed convolutions as TFLite has them: without dilation, and with no more places than input and kernel make.

A dilated kernel is one with zeros between its weights. Padding of the output adds places at its end that only the
kernel's last rows and columns reach: a kernel with zeros behind its weights gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeq.export.tflite_graph import Graph
from edgeq.model.graph import Node
from edgeq.model.ops import by_axis

OPERATORS = frozenset({"aten.conv_transpose1d.default", "aten.conv_transpose2d.input"})

Spacing = tuple[tuple[int, ...], tuple[int, ...]]
"""By axis in space, the steps from one weight to the next, and the zeros behind the last one."""


def spacing(node: Node) -> Spacing | None:
    """The zeros that a kernel needs; None where it needs none, and for other operators."""
    if node.target not in OPERATORS:
        return None
    behind, steps = by_axis(node, 5, 0, _axes(node)), by_axis(node, 7, 1, _axes(node))
    return (steps, behind) if any(behind) or set(steps) != {1} else None


def spread(weight: np.ndarray, spaces: Spacing | None) -> np.ndarray:
    """A kernel with its zeros, [I, O, ...]."""
    if spaces is None:
        return weight
    steps, behind = spaces
    sizes = [step * (size - 1) + 1 + zeros for size, step, zeros in zip(weight.shape[2:], steps, behind, strict=True)]
    found = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    found[_weights(weight.shape[2:], steps)] = weight
    return found


def gathered(weight: np.ndarray, shape: Sequence[int], spaces: Spacing | None) -> np.ndarray:
    """A kernel without its zeros again: of a kernel that holds anything else between its weights, the whole of it.

    Args:
        shape: of the kernel that was spread.
    """
    if spaces is None:
        return weight
    found: np.ndarray = weight[_weights(shape[2:], spaces[0])]
    whole = found.shape == tuple(shape) and np.array_equal(spread(found, spaces), weight)
    return found if whole else weight


def padding(node: Node) -> tuple[int, ...]:
    """By axis in space, the places that are cut off at either end."""
    return by_axis(node, 4, 0, _axes(node))


def cut_apart(node: Node, kernel: Sequence[int]) -> bool:
    """Whether a transposed convolution is to be converted whole, its ends cut off afterwards.

    The converter takes those that cut nothing off, and those whose output is as many times larger as their stride.

    Args:
        kernel: sizes in space, zeros included.
    """
    strides, cut = by_axis(node, 3, 1, _axes(node)), padding(node)
    return any(cut) and any(k - 2 * p != s for k, p, s in zip(kernel, cut, strides, strict=True))


def cut_inside(graph: Graph) -> None:
    """A transposed convolution whose ends are cut off by a slice writes no more than is left.

    Its kernel cuts off as much at either end, or one place more behind, as the shape of its output asks for.
    """
    readers: dict[int, list[Any]] = {index: [None] for index in graph.outputs}
    for operator in graph.operators:
        for index in {int(i) for i in operator.inputs}:
            readers.setdefault(index, []).append(operator)
    gone: set[int] = set()
    for operator in graph.operators:
        if graph.kind(operator) != "TRANSPOSE_CONV" or operator.builtinOptions.padding != schema.Padding.VALID:
            continue
        left, slices = int(operator.outputs[0]), []
        while len(after := readers.get(left, [])) == 1 and after[0] is not None and graph.kind(after[0]) == "SLICE":
            slices.append(after[0])
            left = int(after[0].outputs[0])
        if slices and _kernel_cuts(graph, operator, slices):
            shape = np.array(graph.shape(left), np.int32)
            operator.inputs[0] = graph.tensor("shape", "int32", shape.shape, shape)
            operator.outputs = slices[-1].outputs
            operator.builtinOptions.padding = schema.Padding.SAME
            gone |= {id(one) for one in slices}
    graph.set_operators([operator for operator in graph.operators if id(operator) not in gone])


def _kernel_cuts(graph: Graph, operator: Any, slices: Sequence[Any]) -> bool:
    """Whether slices leave what the kernel writes by itself for an output of that shape."""
    whole, left = graph.shape(int(operator.outputs[0])), graph.shape(int(slices[-1].outputs[0]))
    begins = [graph.constant(int(one.inputs[1])) for one in slices]
    if any(begin is None for begin in begins):
        return False
    begin = np.sum([np.asarray(one) for one in begins], axis=0)
    options, data = operator.builtinOptions, graph.shape(int(operator.inputs[2]))
    fits = all(-(-left[axis] // step) == data[axis] for axis, step in ((1, options.strideH), (2, options.strideW)))
    return fits and all(int(b) == (w - n) // 2 for b, w, n in zip(begin, whole, left, strict=True))


def _axes(node: Node) -> int:
    return 1 if "1d" in node.target else 2


def _weights(sizes: Sequence[int], steps: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), slice(None), *(slice(0, (n - 1) * s + 1, s) for n, s in zip(sizes, steps, strict=True)))
