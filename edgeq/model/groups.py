"""Layers as a device sees them: fusion groups, found once, read by every later stage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeq.model.graph import Node, Program, Value
from edgeq.model.macs import macs, samples_traced
from edgeq.model.ops import ACTIVATIONS, MOVEMENT, WEIGHTED, is_float, op_class
from edgeq.visible import whole

_FUSED_INTO = WEIGHTED | {"add", "sub", "mul"}


@dataclass(frozen=True)
class Group:
    """What runs as one kernel: a root operator and the activation behind it.

    Attributes:
        name: stable and readable: the module path of the weight, or of the module that the operator is in.
        op: operator class of the root; the ATen name where the registry has no class for it.
        root: graph node of the root operator.
        activation: graph node of the activation, and `activation_op` its class.
        inputs: names of the float tensors that flow in (graph nodes), constants left out.
        weight, bias: state names of the root's constants.
        macs: multiply-accumulates for one sample.
        parameters: numbers in weight and bias.
    """

    name: str
    op: str
    root: str
    activation: str | None
    activation_op: str | None
    inputs: tuple[str, ...]
    weight: str | None
    bias: str | None
    macs: int
    parameters: int

    @property
    def output(self) -> str:
        """Graph node whose value leaves the group."""
        return self.activation or self.root

    @property
    def members(self) -> tuple[str, ...]:
        return (self.root, self.activation) if self.activation else (self.root,)


def only_moves(group: Group, root: Node) -> bool:
    """Whether every value that a group writes is a value of its inputs, or zero.

    Args:
        root: the graph node of its root operator.
    """
    filled = group.op == "pad" and any(isinstance(a, int | float) and a for a in root.args[2:])
    return group.op in MOVEMENT and not group.activation and bool(group.inputs) and not filled


def find_trailing(program: Program, groups: Sequence[Group]) -> frozenset[str]:
    """Nodes without multiply-accumulates through which values only pass to the outputs."""
    weighty = {g.root for g in groups if g.op in WEIGHTED or g.op == "matmul"}
    outputs = set(program.outputs)
    found: set[str] = set()
    for node in reversed(program.nodes):
        if node.op != "call_function" or node.name in weighty:
            continue
        users = [u for u in node.users if u.op != "output"]
        if (node.name in outputs or users) and all(u.name in found for u in users):
            found.add(node.name)
    return frozenset(found)


def find_groups(program: Program) -> tuple[Group, ...]:
    """The groups of a normalised program, in the order in which they run.

    An activation joins the convolution, linear or arithmetic operator before it if nothing else reads that
    operator's value. Operators on integers, shapes and other non-tensors belong to no group.
    """
    targets = program.lifted
    sizes = {name: array.size for name, array in program.state.items()}
    samples = samples_traced(program)
    taken: set[str] = set()
    # a layer has the first say in what is called by its name
    used_names: set[str] = set()
    layers = {
        node.name: _unique(whole(weight.removesuffix(".weight")), used_names)
        for node in program.nodes
        if (weight := _weight_of(node, targets))
    }
    groups: list[Group] = []
    for node in program.nodes:
        if node.op != "call_function" or node.name in taken or not _makes_tensor(node):
            continue
        op = op_class(node)
        activation = _activation_of(node) if op in _FUSED_INTO else None
        if activation is not None:
            taken.add(activation.name)
        weight = _weight_of(node, targets)
        third = node.args[2] if op in WEIGHTED and len(node.args) > 2 else None
        bias = targets.get(third.name) if isinstance(third, Node) else None
        groups.append(
            Group(
                name=layers.get(node.name) or _unique(whole(_name(node)), used_names),
                op=op or node.target,
                root=node.name,
                activation=activation.name if activation is not None else None,
                activation_op=op_class(activation) if activation is not None else None,
                inputs=tuple(n.name for n in node.all_input_nodes if n.name not in targets and is_float(n)),
                weight=weight,
                bias=bias,
                macs=macs(node, samples),
                parameters=sizes.get(weight or "", 0) + sizes.get(bias or "", 0),
            )
        )
    return tuple(groups)


def _makes_tensor(node: Node) -> bool:
    values = node.value if isinstance(node.value, tuple) else (node.value,)
    return any(isinstance(value, Value) for value in values)


def _activation_of(node: Node) -> Node | None:
    user = node.users[0] if len(node.users) == 1 else None
    return user if user is not None and op_class(user) in ACTIVATIONS and user.all_input_nodes == [node] else None


def _weight_of(node: Node, targets: Mapping[str, str]) -> str | None:
    """The state name of a layer's constant weight; no two layers have the same one."""
    found = node.args[1] if node.op == "call_function" and op_class(node) in WEIGHTED else None
    return targets.get(found.name) if isinstance(found, Node) else None


def _name(node: Node) -> str:
    """The same however often a program was exported: each time, numbers behind the names of nodes are others."""
    path, own = node.modules[-1][1] if node.modules else "", re.sub(r"_\d+$", "", node.name)
    owner, _, rest = node.target.partition(".")
    short = own if owner == "operator" else op_class(node) or rest.partition(".")[0]
    is_whole_module = bool(path) and path.rsplit(".", 1)[-1] in own
    return path if is_whole_module else f"{path}.{short}" if path else own


def _unique(name: str, used: set[str]) -> str:
    candidate, count = name, 1
    while candidate in used:
        count += 1
        candidate = f"{name}#{count}"
    used.add(candidate)
    return candidate
