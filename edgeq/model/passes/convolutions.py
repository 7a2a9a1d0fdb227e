"""Every convolution becomes the one that it is, 1-d to 3-d, transposed or not, with its padding in numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from edgeq.model.passes.editor import Editor, value_of

aten = torch.ops.aten

_PLAIN = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
_TRANSPOSED = {3: aten.conv_transpose1d.default, 4: aten.conv_transpose2d.input, 5: aten.conv_transpose3d.input}
_IN_WORDS = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)


def name_convolutions(editor: Editor) -> None:
    """Replaces the general convolution, and padding in words."""
    for node in list(editor.graph.nodes):
        if node.target is aten.convolution.default:
            _name(node)
        elif node.target in _IN_WORDS:
            _count_padding(editor, node)


def _name(node: Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
    rank = value_of(weight).dim()
    if transposed and rank in _TRANSPOSED:
        node.target = _TRANSPOSED[rank]
        node.args = (x, weight, bias, stride, padding, output_padding, groups, dilation)
    elif not transposed and rank in _PLAIN:
        node.target = _PLAIN[rank]
        node.args = (x, weight, bias, stride, padding, dilation, groups)


def _count_padding(editor: Editor, node: Node) -> None:
    """`same` adds dilation * (kernel - 1) zeros along each axis, of an odd number one more behind than in front; then
    they are a pad of their own, since a convolution pads both ends alike."""
    given: list[Any] = [*node.args, *(None, [1], "valid", [1], 1)[len(node.args) - 2 :]]
    given = [node.kwargs.get(name, value) for name, value in zip(_ARGUMENTS, given, strict=True)]
    x, weight, bias, stride, padding, dilation, groups = given
    kernel = value_of(weight).shape[2:]
    stride, dilation = (list(one) * len(kernel) if len(one) == 1 else list(one) for one in (stride, dilation))
    added = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    if any(count % 2 for count in added):
        ends = [end for count in reversed(added) for end in (count // 2, count - count // 2)]
        x = editor.insert(node, aten.constant_pad_nd.default, (x, ends, 0.0))
        added = [0] * len(added)
    node.target = _PLAIN[2 + len(kernel)]
    node.args = (x, weight, bias, stride, [count // 2 for count in added], dilation, groups)
    node.kwargs = {}


_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
