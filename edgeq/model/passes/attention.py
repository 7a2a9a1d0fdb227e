"""Attention without an axis for heads gets one, of length 1: converters take no other."""

from __future__ import annotations

import torch
from torch.fx import Node

from edgeq.model.passes.editor import Editor, value_of

aten = torch.ops.aten

_ATTENTION = aten.scaled_dot_product_attention.default


def give_heads(editor: Editor) -> None:
    """[samples, tokens, channels] becomes [samples, 1, tokens, channels], and is [samples, tokens, channels] behind."""
    for node in list(editor.graph.nodes):
        if node.target is _ATTENTION and all(value_of(one).dim() == 3 for one in node.args[:3]):
            _give(editor, node)


def _give(editor: Editor, node: Node) -> None:
    given = [
        # a mask of two axes is one for all samples and heads
        editor.insert(node, aten.unsqueeze.default, (one, 1))
        if isinstance(one, Node) and value_of(one).dim() == 3
        else one
        for one in node.args[:4]
    ]
    kwargs = dict(node.kwargs)
    mask = kwargs.get("attn_mask")
    if isinstance(mask, Node) and value_of(mask).dim() == 3:
        kwargs["attn_mask"] = editor.insert(node, aten.unsqueeze.default, (mask, 1))
    with editor.graph.inserting_after(node):
        back = editor.graph.call_function(aten.squeeze.dim, (node, 1))
    back.meta = dict(node.meta)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    node.args, node.kwargs = (*given, *node.args[4:]), kwargs
    node.meta = {**node.meta, "val": value_of(node).unsqueeze(1)}
