"""A program with other weights, and with values that some readers get multiplied by a factor for each channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeq.model.graph import Array, Node, Program, Value, linked, replaced


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
    products: dict[tuple[str, str], Node] = {}
    fresh = [(value, _factor(value, one)) for value, one in scaled.items()]
    nodes = [factor for _, factor in fresh]
    factors = dict(fresh)

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
    given = [["PARAMETER", factors[value].name, product_of(value), None, True, False] for value in scaled]
    return replace(
        program,
        nodes=linked(nodes),
        lifted={**{factors[value].name: product_of(value) for value in scaled}, **program.lifted},
        state={**program.state, **state, **held},
        calling={**program.calling, "inputs": [*given, *program.calling["inputs"]]},
    )


def product_of(value: str) -> str:
    """What the product of a value and its factors is called, and their state."""
    return f"{value}_smoothed"


def _factor(value: str, one: Scaled) -> Node:
    name = f"p_{product_of(value)}"
    return Node(name, "placeholder", name, value=Value("float32", one.factor.shape))
