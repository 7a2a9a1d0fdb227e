"""conv -> batch norm becomes conv: w * g / sqrt(v + e) and (b - m) * g / sqrt(v + e) + beta."""

from __future__ import annotations

import copy
import operator

import torch
from torch.fx import Node

from edgeq.model.passes.editor import Editor, value_of
from edgeq.model.passes.layers import LAYERS, TRANSPOSED, bias_of, groups_of

aten = torch.ops.aten

_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def fold_batch_norms(editor: Editor) -> None:
    """Folds each into the layer in front of it.

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
    weight = editor.value(source.args[1]) if source.target in LAYERS else None
    if weight is None or len(source.users) != 1 or value_of(source).dim() != weight.dim():
        _spell_out(editor, norm, result, factor.float(), shift.float())
        return
    name = editor.targets[source.args[1].name]  # type: ignore[union-attr]
    if source.target in TRANSPOSED:
        # [inputs, outputs of a group, ...]: each group of inputs has outputs of its own
        groups = groups_of(source)
        by_channel = factor.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)
    else:
        by_channel = factor
    old_bias = editor.value(source.args[2]) if len(source.args) > 2 else None
    shape = [*by_channel.shape, *[1] * (weight.dim() - by_channel.dim())]
    folded = (weight.double() * by_channel.reshape(shape)).float()
    bias = ((old_bias.double() * factor if old_bias is not None else 0) + shift).float()
    args = list(source.args) + [None] * max(0, 3 - len(source.args))
    args[1] = editor.store(name, folded, source)
    args[2] = editor.store(bias_of(name), bias, source)
    source.args = tuple(args)
    result.replace_all_uses_with(source)
    for user in list(norm.users):
        editor.graph.erase_node(user)
    editor.graph.erase_node(norm)


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
