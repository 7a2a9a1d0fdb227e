"""Takes away what inference does not need: assertions, copies, casts to the type that a value has."""

from __future__ import annotations

import torch
from torch.fx import Node

from edgeq.model.passes.editor import Editor

aten = torch.ops.aten

_IDENTITIES = (aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
               aten.lift_fresh_copy.default, aten.dropout.default)  # fmt: skip
_ASSERTIONS = ("_assert_tensor_metadata", "sym_constrain_range", "_assert_scalar", "_assert_async")


def tidy(editor: Editor) -> None:
    """Removes assertions and identities; views become reshapes."""
    graph = editor.graph
    for node in list(graph.nodes):
        if any(name in str(node.target) for name in _ASSERTIONS):
            graph.erase_node(node)
        elif node.target in _IDENTITIES or _casts_to_itself(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            # without the copies, a view's source need not be contiguous any more
            node.target = aten.reshape.default


def _casts_to_itself(node: Node) -> bool:
    if node.target not in (aten.to.dtype, aten._to_copy.default, aten.type_as.default):
        return False
    source = node.args[0]
    same = isinstance(source, Node) and source.meta["val"].dtype == node.meta["val"].dtype
    return same and source.meta["val"].device == node.meta["val"].device  # type: ignore[union-attr]
