"""One piece of a split becomes a slice, one of an unbind a select: every node is then a single tensor."""

from __future__ import annotations

import copy
import operator

import torch
from torch.fx import Graph, Node

from edgeq.model.passes.editor import Editor

aten = torch.ops.aten


def slice_pieces(editor: Editor) -> None:
    """Gives each piece that is read an operator of its own."""
    for node in list(editor.graph.nodes):
        if node.target is operator.getitem:
            _slice(editor.graph, node)


def _slice(graph: Graph, item: Node) -> None:
    source, index = item.args
    if not isinstance(source, Node) or not isinstance(index, int):
        return
    dim = source.args[2] if len(source.args) > 2 else 0
    if source.target in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        sizes = [piece.shape[dim] for piece in source.meta["val"]]
        if not all(isinstance(size, int) for size in sizes):
            return
        start = sum(sizes[:index])
        with graph.inserting_before(item):
            new = graph.call_function(aten.slice.Tensor, (source.args[0], dim, start, start + sizes[index]))
    elif source.target is aten.unbind.int:
        dim = source.args[1] if len(source.args) > 1 else 0
        with graph.inserting_before(item):
            new = graph.call_function(aten.select.int, (source.args[0], dim, index))
    else:
        return
    new.meta = copy.copy(item.meta)
    item.replace_all_uses_with(new)
    graph.erase_node(item)
