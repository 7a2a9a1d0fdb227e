"""What is computed twice from the same is computed once. Exporters merge equal operators, and a layer that a file has
no operator for has no place for its integers."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils import _pytree as pytree

from edgeq.model.passes.editor import Editor


def merge_repeated(editor: Editor) -> None:
    """Operators that only compute, with the same arguments, become the first of them. Constants are the same where
    their values are: exporters go by these."""
    known: dict[Hashable, list[Node]] = {}
    for node in list(editor.graph.nodes):
        if not _only_computes(node):
            continue
        alike = known.setdefault((node.target, _key(editor, _arguments(node))), [])
        first = next((one for one in alike if _same_constants(editor, one, node)), None)
        if first is None:
            alike.append(node)
        else:
            node.replace_all_uses_with(first)
            editor.graph.erase_node(node)


def _only_computes(node: Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return target is operator.getitem
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable


def _arguments(node: Node) -> list[Any]:
    """All of them in order, also those that are left away, and those that are given by name."""
    if not isinstance(node.target, OpOverload):
        return list(node.args)
    wanted = node.target._schema.arguments
    given = dict(zip((one.name for one in wanted), node.args, strict=False)) | node.kwargs
    return [given.get(one.name, one.default_value) for one in wanted]


def _key(editor: Editor, argument: Any) -> Hashable:
    """Equal for what gives equal results, but for the values of constants. Of numbers also the type counts."""
    value = editor.value(argument)
    if value is not None:
        return value.dtype, value.shape
    if isinstance(argument, tuple | list):
        return tuple(_key(editor, one) for one in argument)
    return argument if isinstance(argument, Node) else (type(argument), repr(argument))


def _same_constants(editor: Editor, first: Node, second: Node) -> bool:
    pairs = zip(_constants(editor, first), _constants(editor, second), strict=True)
    return all(one is other or torch.equal(one, other) for one, other in pairs)


def _constants(editor: Editor, node: Node) -> list[torch.Tensor]:
    values = map(editor.value, pytree.tree_leaves(_arguments(node)))
    return [value for value in values if value is not None]
