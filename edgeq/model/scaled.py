"""A program with other weights, and with values that some readers get multiplied by a factor for each channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeq.model.graph import Array, Node, Program, constant, replaced, with_constants


@dataclass(frozen=True)
class Scaled:
    """A value that is multiplied on the way to some of its readers.

    Attributes:
        readers: graph nodes of the operators that read the product.
        factor: float32 [channels], along the last axis.
    """

    readers: Sequence[str]
    factor: Array


def with_products(program: Program, state: Mapping[str, Array], scaled: Mapping[str, Scaled]) -> Program:
    """The program with other tensors in its state, and products in front of operators.

    Args:
        program: one whose way of being called is known (`Program.calling`).
        state: what takes the place of parameters, by name.
        scaled: by the graph node of a value.
    """
    made: dict[Node, Node] = {}
    nodes: list[Node] = []
    products: dict[tuple[str, str], Node] = {}
    factors = {value: constant(product_of(value), one.factor) for value, one in scaled.items()}

    def read_by(reader: Node) -> Callable[[Any], Any]:
        return lambda leaf: products.get((reader.name, leaf.name), made[leaf]) if isinstance(leaf, Node) else leaf

    for node in program.nodes:
        now = read_by(node)
        copy = replace(node, args=replaced(node.args, now), kwargs=replaced(node.kwargs, now), users=[])
        made[node] = copy
        nodes.append(copy)
        if node.name in scaled:
            target, arguments = "aten.mul.Tensor", (copy, factors[node.name])
            product = Node(product_of(node.name), "call_function", target, arguments, value=node.value)
            nodes.append(product)
            products |= {(reader, node.name): product for reader in scaled[node.name].readers}
    held = {product_of(value): one.factor for value, one in scaled.items()}
    fresh = {factor: product_of(value) for value, factor in factors.items()}
    return with_constants(program, nodes, {**state, **held}, fresh)


def product_of(value: str) -> str:
    """What the product of a value and its factors is called, and their state."""
    return f"{value}_smoothed"
