"""conv -> batch norm becomes conv: w * g / sqrt(v + e) and (b - m) * g / sqrt(v + e) + beta."""

from __future__ import annotations

import copy
import math
import operator

import torch
from torch.fx import Node

from edgeq.model.passes.editor import Editor, value_of
from edgeq.model.passes.layers import LAYERS, TRANSPOSED, bias_of, groups_of

aten = torch.ops.aten

_BATCH_NORM = aten._native_batch_norm_legit_no_training.default
_MOVED = (aten.permute.default, aten.transpose.int, aten.view.default, aten._unsafe_view.default,
          aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims)  # fmt: skip


def fold_batch_norms(editor: Editor) -> None:
    """Folds each into the layer in front of it, also where that is only reshaped or turned in between.

    A batch norm that follows nothing foldable, or whose channels are not the layer's (a linear layer on three
    dimensions has its channels last), becomes a multiplication and an addition.
    """
    for node in list(editor.graph.nodes):
        if node.target is _BATCH_NORM:
            _fold(editor, node)


def _fold(editor: Editor, norm: Node) -> None:
    source, gamma, beta, mean, variance, _, epsilon = norm.args
    m, v = editor.value(mean), editor.value(variance)
    if m is None or v is None or not isinstance(source, Node):
        return
    g, b = editor.value(gamma), editor.value(beta)
    factor = (torch.ones_like(v) if g is None else g.detach().double()) / torch.sqrt(v.double() + float(epsilon))  # type: ignore[arg-type]
    shift = (torch.zeros_like(m) if b is None else b.detach().double()) - m.double() * factor
    result = next((u for u in norm.users if u.target is operator.getitem and u.args[1] == 0), None)
    if result is None:
        return
    layer = _layer_with_its_channels(source)
    weight = editor.value(layer.args[1]) if layer is not None else None
    if layer is None or weight is None:
        _spell_out(editor, norm, result, factor.float(), shift.float())
        return
    name = editor.targets[layer.args[1].name]  # type: ignore[union-attr]
    if layer.target in TRANSPOSED:
        # [inputs, outputs of a group, ...]: each group of inputs has outputs of its own
        groups = groups_of(layer)
        by_channel = factor.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)
    else:
        by_channel = factor
    old_bias = editor.value(layer.args[2]) if len(layer.args) > 2 else None
    shape = [*by_channel.shape, *[1] * (weight.dim() - by_channel.dim())]
    folded = (weight.double() * by_channel.reshape(shape)).float()
    bias = ((old_bias.double() * factor if old_bias is not None else 0) + shift).float()
    args = list(layer.args) + [None] * max(0, 3 - len(layer.args))
    args[1] = editor.store(name, folded, layer)
    args[2] = editor.store(bias_of(name), bias, layer)
    layer.args = tuple(args)
    result.replace_all_uses_with(source)
    for user in list(norm.users):
        editor.graph.erase_node(user)
    editor.graph.erase_node(norm)


def _layer_with_its_channels(node: Node) -> Node | None:
    """The layer whose output channels are axis 1 of a value that nothing else reads; None where there is none."""
    axis = 1
    while len(node.users) == 1 and node.target not in LAYERS:
        before = node.args[0] if node.target in _MOVED else None  # sizes may be nodes as well
        found = _axis_before(node, before, axis) if isinstance(before, Node) else None
        if not isinstance(before, Node) or found is None:
            return None
        node, axis = before, found
    if len(node.users) != 1 or node.target not in LAYERS:
        return None
    channels = value_of(node).dim() - 1 if node.target is aten.linear.default else 1
    # a convolution without a batch has its channels first
    whole = node.target is aten.linear.default or value_of(node).dim() == value_of(node.args[1]).dim()
    return node if axis == channels and whole else None


def _axis_before(node: Node, before: Node, axis: int) -> int | None:
    """Which axis of its input a value that is only moved has as its axis; None where none is whole."""
    given, made = value_of(before).shape, value_of(node).shape
    if node.target is aten.permute.default:
        return int(node.args[1][axis]) % len(given)  # type: ignore[index, arg-type]
    if node.target is aten.transpose.int:
        first, second = (int(a) % len(given) for a in node.args[1:3])  # type: ignore[arg-type]
        return {first: second, second: first}.get(axis, axis)
    behind = [d for d in made[axis:] if isinstance(d, int)]
    for candidate in range(len(given)):
        held = [d for d in given[candidate:] if isinstance(d, int)]
        same = len(held) == len(given) - candidate and len(behind) == len(made) - axis
        if same and given[candidate] == made[axis] and math.prod(held) == math.prod(behind):
            return candidate
    return None


def _spell_out(editor: Editor, norm: Node, result: Node, factor: torch.Tensor, shift: torch.Tensor) -> None:
    source = norm.args[0]
    assert isinstance(source, Node)
    shape = [1, -1] + [1] * (value_of(source).dim() - 2)
    scale = editor.store(f"{norm.name}.scale", factor.reshape(shape), source)
    offset = editor.store(f"{norm.name}.offset", shift.reshape(shape), source)
    with editor.graph.inserting_before(norm):
        product = editor.graph.call_function(aten.mul.Tensor, (source, scale))
        total = editor.graph.call_function(aten.add.Tensor, (product, offset))
    for new in (product, total):
        new.meta = copy.copy(result.meta)
    result.replace_all_uses_with(total)
