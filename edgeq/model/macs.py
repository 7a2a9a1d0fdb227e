"""Multiply-accumulates of one sample, counted from shapes: of convolutions, products, recurrent layers, attention.

Counted over everything that was traced and divided by the samples in it: the axis of the samples need not be the first
one inside of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from edgeq.model.graph import Free, Node, Program, Value
from edgeq.model.ops import shape_of
from edgeq.model.values import tensor_of, traced_size


def macs(node: Node, samples: int = 1) -> int:
    """Multiply-accumulates of an operator for one sample.

    Args:
        samples: how many the graph was traced with (see `samples_traced`).
    """
    count = _COUNTS.get(node.target.rpartition(".")[0])
    return -(-count(node) // samples) if count else 0


def samples_traced(program: Program) -> int:
    """How many samples the graph was traced with: the size of the inputs' first axis where that is free, else one."""
    nodes = {node.name: node for node in program.nodes}
    values = [tensor_of(nodes[name]) for name in program.inputs]
    first = {value.shape[0] for value in values if value is not None and value.shape}
    size = next(iter(first)) if len(first) == 1 else 1
    return traced_size(size) if isinstance(size, Free) else 1


def _convolution(node: Node) -> int:
    return math.prod(shape_of(node)) * math.prod(_shape(node, 1)[1:])


def _transposed(node: Node) -> int:
    return math.prod(_shape(node, 0)) * math.prod(_shape(node, 1)[1:])


def _either(node: Node) -> int:
    return _transposed(node) if node.args[6] else _convolution(node)


def _linear(node: Node) -> int:
    return math.prod(shape_of(node)) * _shape(node, 1)[-1]


def _product(of: int) -> Callable[[Node], int]:
    return lambda node: math.prod(shape_of(node)) * _shape(node, of)[-1]


def _bilinear(node: Node) -> int:
    return math.prod(shape_of(node)) * math.prod(_shape(node, 2)[1:])


def _attention(node: Node) -> int:
    query, key, value = (_shape(node, i) for i in range(3))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(node: Node) -> int:
    """Each step and direction has a matrix for the input and one for the state; biases are no products."""
    steps = math.prod(_shape(node, 0)[:-1])
    return steps * sum(math.prod(shape) for shape in _matrices(node))


def _matrices(node: Node) -> list[tuple[int, ...]]:
    given = [
        one for argument in node.args[2:] for one in (argument if isinstance(argument, list | tuple) else [argument])
    ]
    shapes = [shape_of(one) for one in given if isinstance(one, Node) and one.value is not None]
    return [shape for shape in shapes if len(shape) == 2]


def _einsum(node: Node) -> int:
    """As many as there are combinations of all axes, where two tensors meet; more of them are not told apart."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    inputs = equation.partition("->")[0].split(",")
    if len(inputs) != 2 or "." in equation:
        return 0
    sizes: dict[str, int] = {}
    for axes, operand in zip(inputs, operands, strict=True):
        sizes |= zip(axes, shape_of(operand), strict=True)
    return math.prod(sizes.values())


def _shape(node: Node, index: int) -> tuple[int, ...]:
    value = node.args[index]
    if not isinstance(value, Node) or not isinstance(value.value, Value):
        raise TypeError(f"{node.name}: argument {index} is no tensor")
    return shape_of(value)


_COUNTS: dict[str, Callable[[Node], int]] = {
    **{f"aten.conv{rank}d": _convolution for rank in (1, 2, 3)},
    **{f"aten.conv_transpose{rank}d": _transposed for rank in (1, 2, 3)},
    "aten.convolution": _either,
    "aten.linear": _linear,
    **{f"aten.{name}": _product(0) for name in ("matmul", "mm", "bmm", "mv", "dot", "vdot")},
    **{f"aten.{name}": _product(1) for name in ("addmm", "baddbmm", "addmv", "addbmm")},
    "aten.bilinear": _bilinear,
    "aten.einsum": _einsum,
    **{
        f"aten.{name}": _attention
        for name in (
            "scaled_dot_product_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_attention_math_for_mps",
        )
    },
    **{f"aten.{name}{kind}": _recurrent for name in ("gru", "lstm", "rnn_tanh", "rnn_relu") for kind in ("", "_cell")},
}
