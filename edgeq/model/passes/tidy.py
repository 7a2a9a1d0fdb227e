"""Takes away what inference does not need: assertions, copies, casts to the type that a value has, what is written
over."""

from __future__ import annotations

import torch
from torch.fx import Node

from edgeq.model.passes.editor import Editor, value_of

aten = torch.ops.aten

_IDENTITIES = (aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
               aten.lift_fresh_copy.default, aten.dropout.default)  # fmt: skip
_ASSERTIONS = ("_assert_tensor_metadata", "sym_constrain_range", "_assert_scalar", "_assert_async")


def tidy(editor: Editor) -> None:
    """Removes assertions and identities; views become reshapes, and a copy over another value is what is copied."""
    graph = editor.graph
    for node in list(graph.nodes):
        if any(name in str(node.target) for name in _ASSERTIONS):
            graph.erase_node(node)
        elif node.target in _IDENTITIES or _casts_to_itself(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.copy.default:
            node.replace_all_uses_with(_copied(editor, node))
            graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            # without the copies, a view's source need not be contiguous any more
            node.target = aten.reshape.default


def _copied(editor: Editor, node: Node) -> Node:
    """What an assignment leaves of the value that it writes over: its shape and its type."""
    over, found = node.args[:2]
    assert isinstance(over, Node) and isinstance(found, Node)
    shape, dtype = value_of(over).shape, value_of(over).dtype
    if value_of(found).dtype != dtype:
        found = editor.insert(node, aten.to.dtype, (found, dtype))
    # as text: free sizes that are compared as numbers would be fixed
    if list(map(str, value_of(found).shape)) != list(map(str, shape)):
        sizes = [
            size if isinstance(size, int) else editor.insert(node, aten.sym_size.int, (over, axis))
            for axis, size in enumerate(shape)
        ]
        found = editor.insert(node, aten.expand.default, (found, sizes))
    return found


def _casts_to_itself(node: Node) -> bool:
    if node.target not in (aten.to.dtype, aten._to_copy.default, aten.type_as.default):
        return False
    source = node.args[0]
    same = isinstance(source, Node) and source.meta["val"].dtype == node.meta["val"].dtype
    return same and source.meta["val"].device == node.meta["val"].device  # type: ignore[union-attr]
