"""Which layers can have a kernel that reads and writes float, and stores their weights as integers."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.model.branches import in_branch
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import conv_groups, output_channels_axis, shape_of
from edgeq.registry.schema import Kernel, Runtime


def float_ends_refusal(model: Model, group: Group, runtime: Runtime, kernel: Kernel) -> str:
    """Why a group's weights cannot be stored between floats as this kernel has them; empty if they can."""
    if in_branch(model.nodes[group.root]):
        return "a rewrite keeps it in float"
    if group.weight is None or group.bias is None:
        return "its weight is computed, not constant"
    if not group.inputs:
        return "it reads no float tensor"
    if group.op == "conv_transpose2d" and conv_groups(model.nodes[group.root]) > 1:
        return "its groups share the scales of their output channels"
    if kernel.weight_group is not None:
        weight = model.state[group.weight]
        axis = output_channels_axis(group.op)
        row = weight.size // weight.shape[axis]
        if axis != 0 or row % kernel.weight_group:
            return f"its {row} weights for an output are no multiple of {kernel.weight_group}"
        if runtime.dequantizes_blocks and len(shape_of(model.nodes[group.inputs[0]])) > 2:
            # behind a DequantizeLinear, that of TensorRT for RTX 1.7 fails
            return "NVIDIA's compiler takes blocks of few bits in products of two dimensions alone"
    return "" if kernel.dynamic is None else _dynamic_refusal(shape_of(model.nodes[group.root].args[1]), kernel)


def _dynamic_refusal(weight: Sequence[int], kernel: Kernel) -> str:
    """Why a runtime would compute a linear layer otherwise than a dynamic kernel of its says; empty if it would not.

    Args:
        weight: the shape, [outputs, inputs].
    """
    outputs, inputs = weight
    if isinstance(kernel.dynamic, int) and inputs < kernel.dynamic:
        return f"it reads {inputs} numbers in a row, fewer than the {kernel.dynamic} that would share a scale"
    if isinstance(kernel.dynamic, int) and outputs == 1:
        return "the runtime keeps a product with one output in float"
    scheme = kernel.weight_scheme
    if scheme is not None and inputs * scheme.stored_bits % 8:  # other kernels may run these, which round otherwise
        return f"its rows of {inputs} {kernel.weights} weights end within a byte"
    return ""
