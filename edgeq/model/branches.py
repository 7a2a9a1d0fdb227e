"""A program in which small layers stand beside linear layers, and what they give is added.

Loading gives every layer a bias, so that those of a branch are told by having none. They stay in float in every
runtime, and so does the sum behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgeq.model.graph import Array, Node, Program, Value, constant, node_name, replaced, with_constants
from edgeq.model.ops import op_class


@dataclass(frozen=True)
class Branch:
    """What is added to what a linear layer gives.

    Attributes:
        weights: of linear layers one behind the other, float32 [outputs, inputs], by name.
        columns: channels of the layer's input that the first of them reads, int64; all of them if None.
    """

    weights: Mapping[str, Array]
    columns: Array | None = None


def in_branch(node: Node) -> bool:
    """Whether it is a layer of a branch."""
    linear = node.op == "call_function" and op_class(node) == "linear"
    return linear and node.args[1].op == "placeholder" and (len(node.args) < 3 or node.args[2] is None)


def closes_branch(node: Node) -> bool:
    """Whether it adds what a branch gives."""
    return node.target == "aten.add.Tensor" and any(isinstance(side, Node) and in_branch(side) for side in node.args)


def with_branches(program: Program, state: Mapping[str, Array], branches: Mapping[str, Branch]) -> Program:
    """The program with other tensors in its state, and branches. The sums have the names that the layers had.

    Args:
        program: one whose way of being called is known (`Program.calling`).
        state: what takes the place of parameters, by name.
        branches: by the graph node of a linear layer.
    """
    made: dict[Node, Node] = {}
    nodes: list[Node] = []
    fresh: dict[Node, str] = {}
    held: dict[str, Array] = {}
    selected: dict[str, Node] = {}

    def held_in(name: str, array: Array) -> Node:
        node = constant(name, array)
        fresh[node], held[name] = name, array
        return node

    def select(source: Node, columns: Array) -> Node:
        name = f"{source.name}_selected"
        if name not in selected:
            shape = (*_shape(source)[:-1], len(columns))
            arguments = (source, -1, held_in(f"{name}_columns", columns))
            selected[name] = Node(name, "call_function", "aten.index_select.default", arguments, value=_floats(shape))
            nodes.append(selected[name])
        return selected[name]

    for node in program.nodes:
        copy = replace(node, args=_now(node.args, made), kwargs=_now(node.kwargs, made), users=[])
        made[node] = copy
        branch = branches.get(node.name)
        if branch is None:
            nodes.append(copy)
            continue
        copy.name = rest_of(node.name)
        nodes.append(copy)
        value = copy.args[0] if branch.columns is None else select(copy.args[0], branch.columns)
        for name, weight in branch.weights.items():
            arguments, shape = (value, held_in(f"{name}.weight", weight)), (*_shape(value)[:-1], len(weight))
            value = replace(copy, name=node_name(name), args=arguments, value=_floats(shape), users=[])
            nodes.append(value)
        made[node] = replace(copy, name=node.name, target="aten.add.Tensor", args=(copy, value), users=[])
        nodes.append(made[node])
    return with_constants(program, nodes, {**state, **held}, fresh)


def rest_of(layer: str) -> str:
    """What the graph node of a layer is called behind which a branch is added."""
    return f"{layer}_rest"


def _now(argument: Any, made: Mapping[Node, Node]) -> Any:
    return replaced(argument, lambda leaf: made[leaf] if isinstance(leaf, Node) else leaf)


def _shape(node: Node) -> tuple[Any, ...]:
    assert isinstance(node.value, Value)
    return node.value.shape


def _floats(shape: tuple[Any, ...]) -> Value:
    return Value("float32", shape)
