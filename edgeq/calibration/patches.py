"""What a layer's weights meet on average: the mean output, per unit of each weight."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.model.graph import Node, Program
from edgeq.model.operators import operator_of
from edgeq.model.ops import channel_axis_of_output, conv_groups, op_class, output_channels_axis, shape_of


def mean_patch(program: Program, node: Node, mean_input: torch.Tensor) -> NDArray[np.float32]:
    """By how much the mean of an output channel grows with each weight, padding included.

    A convolution or linear is linear in its input and in its weights, so that the mean input tells it exactly: it is
    the gradient of the mean output. Channels of one group see the same inputs; it is kept once for all of them.

    Args:
        node: the convolution or linear in the graph.
        mean_input: float32, shape of one sample's input with a leading 1.

    Returns:
        float32 [groups, ...]: behind the groups of the convolution the axes of its weight, with 1 output channel.
    """
    op, function = op_class(node) or "", operator_of(program, node.target)
    weight = torch.zeros(shape_of(node.args[1]), requires_grad=True)
    with torch.enable_grad():
        output = function(mean_input, weight, None, *node.args[3:])
        axis = channel_axis_of_output(op) % output.dim()
        others = [d for d in range(output.dim()) if d != axis]
        # the mean of nothing would be NaN; no weight has a part in it
        moved = (output.mean(dim=others) if output.numel() else output).sum()
    (found,) = torch.autograd.grad(moved, weight)
    split = found.reshape(1 if op == "linear" else conv_groups(node), -1, *found.shape[1:])
    patch: NDArray[np.float32] = split.narrow(1 + output_channels_axis(op), 0, 1).contiguous().numpy()
    return patch
