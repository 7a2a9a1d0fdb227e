"""What is computed from constants alone is computed once: weights under a norm, scaled or turned ones, masks.

Left as they are: random numbers; what only a size and a number say (zeros, a range); and what would be far larger than
that which it is made of, such as an expanded mask, unless a layer has it for its weight.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from edgeq.model.passes.editor import Editor
from edgeq.model.passes.layers import LAYERS

SMALL = 1 << 20
"""Bytes that a constant may have whatever it is made of."""

GROWTH = 4
"""How many times larger than its sources a constant may be: a few scaled copies of a weight side by side."""

LARGEST = 1 << 31
"""Bytes of the largest weight that is computed."""

_NAMESPACES = ("aten", "prims")


def fold_constants(editor: Editor) -> None:
    """Replaces what is computed from constants by constants, where something else reads it."""
    known = computable(editor)
    values: dict[Node, Any] = {}
    read = [node for node in known if any(user not in known for user in node.users)]
    folded = [
        n for n in read if n.op == "call_function" and n.all_input_nodes and isinstance(n.meta["val"], torch.Tensor)
    ]
    # all of them before the first is stored: the name of a source may go to what is made of it
    tensors = {node: _evaluate(editor, node, values).detach().contiguous() for node in folded}
    stays = _in_front_of(set(read).difference(folded))
    gone = {editor.targets[n.name] for n in known if editor.value(n) is not None and n not in stays}
    taken = set(editor.state) - gone
    for node, value in tensors.items():
        layer = next((u for u in node.users if u not in known and u.target in LAYERS and node in u.args[1:3]), None)
        if layer is None:
            new = editor.store(f"computed_{node.name}", value, node, constant=True)
        else:
            name = _name(editor, known[node], layer, "weight" if node is layer.args[1] else "bias")
            new = editor.store(editor.unused(name) if name in taken else name, value, node)
            taken.add(editor.targets[new.name])
        node.replace_all_uses_with(new)
    editor.graph.eliminate_dead_code()


def _in_front_of(nodes: set[Node]) -> set[Node]:
    """These nodes and all that they are made of."""
    found, pending = set(nodes), list(nodes)
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                pending.append(source)
    return found


def computable(editor: Editor) -> dict[Node, frozenset[Node]]:
    """The nodes whose value is known without inputs, each with the constants that it is made of."""
    known: dict[Node, frozenset[Node]] = {}
    for node in editor.graph.nodes:
        if editor.value(node) is not None:
            known[node] = frozenset({node})
        elif _only_computes(node) and all(source in known for source in node.all_input_nodes):
            made_of = frozenset().union(*(known[source] for source in node.all_input_nodes))
            weighs = any(user.target in LAYERS and node is user.args[1] for user in node.users)
            most = max(SMALL, GROWTH * sum(_bytes(source) for source in made_of))
            if _bytes(node) <= (LARGEST if weighs else most):
                known[node] = made_of
    return known


def _only_computes(node: Node) -> bool:
    if node.target is operator.getitem:
        return isinstance(node.args[1], int)
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload) or target.namespace not in _NAMESPACES:
        return False
    random = torch.Tag.nondeterministic_seeded in target.tags
    return not random and not target._schema.is_mutable and node.meta.get("val") is not None


def _bytes(node: Node) -> int:
    tensors = [one for one in pytree.tree_leaves(node.meta["val"]) if isinstance(one, torch.Tensor)]
    return sum(int(tensor.numel()) * tensor.element_size() for tensor in tensors)


def _evaluate(editor: Editor, node: Node, values: dict[Node, Any]) -> Any:
    """The value of a node, once those in front of it are computed; `values` keeps them all."""
    pending = [node]
    with torch.no_grad():
        while pending:
            current = pending[-1]
            held = editor.value(current)
            missing = [one for one in current.all_input_nodes if one not in values]
            if held is not None:
                values[current] = held
            elif missing:
                pending += missing
                continue
            elif current not in values:
                args, kwargs = map_arg((current.args, dict(current.kwargs)), lambda n: values[n])
                values[current] = current.target(*args, **kwargs)  # type: ignore[operator]
            pending.pop()
    return values[node]


def _name(editor: Editor, made_of: frozenset[Node], layer: Node, part: str) -> str:
    """What a computed weight goes by: its one source, or the module of the layer that has it."""
    if len(made_of) == 1:
        (source,) = made_of
        return str(editor.targets[source.name])
    path, _ = next(reversed(layer.meta.get("nn_module_stack", {}).values()), ("", None))
    return f"{path or layer.name}.{part}"
