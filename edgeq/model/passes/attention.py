"""Attention without an axis for heads gets one, of length 1: converters take four axes and no fewer."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from edgeq.model.passes.editor import Editor, value_of

aten = torch.ops.aten

_ATTENTION = aten.scaled_dot_product_attention.default


def give_heads(editor: Editor) -> None:
    """[samples, tokens, channels] becomes [samples, 1, tokens, channels] and [tokens, channels] has two axes of 1 in
    front; behind the attention they are gone again."""
    for node in list(editor.graph.nodes):
        if node.target is _ATTENTION and all(value_of(one).dim() in (2, 3) for one in node.args[:3]):
            _give(editor, node)


def _give(editor: Editor, node: Node) -> None:
    axes = (0, 1) if all(value_of(one).dim() == 2 for one in node.args[:3]) else (1,)

    def raised(one: Any) -> Any:
        # a mask of two axes, or tokens that all samples read, are the same for all samples and heads
        if not isinstance(one, Node) or value_of(one).dim() != 4 - len(axes):
            return one
        for axis in axes:
            one = editor.insert(node, aten.unsqueeze.default, (one, axis))
        return one

    meta = node.meta
    node.args = tuple(map(raised, node.args[:4])) + node.args[4:]
    node.kwargs = {name: raised(value) for name, value in node.kwargs.items()}
    with editor.graph.inserting_after(node):
        back = editor.graph.call_function(aten.squeeze.dims, (node, list(axes)))
    back.meta = dict(meta)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    value = value_of(back)
    for axis in axes:
        value = value.unsqueeze(axis)
    node.meta = {**meta, "val": value}
