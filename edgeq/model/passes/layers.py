"""Layers with a constant weight: each has a weight and a bias of its own."""

from __future__ import annotations

import torch
from torch.fx import Node

from edgeq.model.passes.editor import Editor

aten = torch.ops.aten

TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, *TRANSPOSED, aten.linear.default)
"""A weight is their second argument, a bias, where they have one, their third."""


def groups_of(convolution: Node) -> int:
    return int(convolution.args[6]) if len(convolution.args) > 6 else 1  # type: ignore[arg-type]


def bias_of(weight: str) -> str:
    """What the bias beside a weight is called. A tensor that is no `weight` of a module cannot have one below it."""
    owner, _, last = weight.rpartition(".")
    return f"{owner}.bias" if last == "weight" and owner else f"{weight}_bias"


def own_constants(editor: Editor) -> None:
    """Layers that share a weight or a bias get one each: what is folded into them differs, and so do the scales
    of their inputs, on which their integers depend. Of layers alone the first keeps what they shared."""
    for constant in [n for n in editor.graph.nodes if editor.value(n) is not None]:
        layers = [user for user in constant.users if user.target in LAYERS]
        kept = 1 if len(layers) == len(constant.users) else 0
        for layer in layers[kept:]:
            value = editor.value(constant)
            assert value is not None
            own = editor.store(editor.unused(editor.targets[constant.name]), value, layer)
            layer.args = (layer.args[0], *(own if a is constant else a for a in layer.args[1:]))


def give_biases(editor: Editor) -> None:
    """Every weighted operator has a bias: the correction of quantization errors needs a place to go."""
    for node in list(editor.graph.nodes):
        weight = editor.value(node.args[1]) if node.target in LAYERS else None
        if weight is None or (len(node.args) > 2 and node.args[2] is not None):
            continue
        channels = weight.shape[1] * groups_of(node) if node.target in TRANSPOSED else weight.shape[0]
        name = bias_of(editor.targets[node.args[1].name])
        name = name if name not in editor.state else f"{node.name}.bias"
        args = list(node.args) + [None] * max(0, 3 - len(node.args))
        args[2] = editor.store(name, torch.zeros(channels), node)
        node.args = tuple(args)
