"""A product of matrices of which the second is constant is a linear layer, however it is spelled."""

from __future__ import annotations

import torch
from torch.fx import Node

from edgeq.model.passes.constants import computable
from edgeq.model.passes.editor import Editor, value_of

aten = torch.ops.aten

_PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default)


def name_linears(editor: Editor) -> None:
    """Replaces products with constant matrices by linear layers."""
    known = computable(editor)
    for node in list(editor.graph.nodes):
        if node.target in _PRODUCTS and not node.kwargs:
            x, matrix = node.args
            bias = None
        elif node.target is aten.addmm.default and not node.kwargs:
            bias, x, matrix = node.args
        else:
            continue
        if not isinstance(x, Node) or not isinstance(matrix, Node) or x in known or matrix not in known:
            continue
        if not _is_weight(value_of(x), value_of(matrix)):
            continue
        weight = _turned(editor, node, matrix)
        known |= {weight: known[matrix]}
        fits = bias is None or (bias in known and value_of(bias).shape == value_of(weight).shape[:1])
        if fits:
            node.target, node.args = aten.linear.default, (x, weight, bias)
        else:
            product = editor.insert(node, aten.linear.default, (x, weight, None))
            node.target, node.args = aten.add.Tensor, (product, bias)


def _is_weight(x: torch.Tensor, matrix: torch.Tensor) -> bool:
    """Whether one matrix is meant for all rows, and not another one for each sample or head."""
    one = matrix.dim() >= 2 and all(isinstance(size, int) and size == 1 for size in matrix.shape[:-2])
    return one and x.dim() >= max(2, matrix.dim()) and x.dtype == matrix.dtype == torch.float32


def _turned(editor: Editor, before: Node, matrix: Node) -> Node:
    """The matrix [inputs, outputs] as a weight [outputs, inputs]; what was turned for the product is turned back."""
    if value_of(matrix).dim() == 2 and _turns(matrix):
        source: Node = matrix.args[0]  # type: ignore[assignment]
        return source
    if value_of(matrix).dim() > 2:
        matrix = editor.insert(before, aten.reshape.default, (matrix, list(value_of(matrix).shape[-2:])))
    return editor.insert(before, aten.permute.default, (matrix, [1, 0]))


def _turns(node: Node) -> bool:
    """Whether it exchanges the two axes of a matrix."""
    if node.target is aten.permute.default:
        return [axis % 2 for axis in node.args[1]] == [1, 0]  # type: ignore[union-attr, operator]
    if node.target is aten.transpose.int:
        return {axis % 2 for axis in node.args[1:]} == {0, 1}  # type: ignore[operator]
    return node.target is aten.t.default
