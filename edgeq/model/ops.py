"""What an ATen operator is to a target: its operator class, and where its weight has its channels."""

from __future__ import annotations

from collections.abc import Callable

from edgeq.model.graph import Node, Value
from edgeq.model.values import tensor_of, traced_size

_CLASSES: dict[str, str] = {
    "aten.linear.default": "linear",
    "aten.conv3d.default": "conv3d",
    "aten.matmul.default": "matmul",
    "aten.mm.default": "matmul",
    "aten.bmm.default": "matmul",
    "aten.add.Tensor": "add",
    "aten.sub.Tensor": "sub",
    "aten.mul.Tensor": "mul",
    "aten.relu.default": "relu",
    "aten.relu6.default": "relu6",
    "aten.hardswish.default": "hardswish",
    "aten.hardsigmoid.default": "hardsigmoid",
    "aten.sigmoid.default": "sigmoid",
    "aten.tanh.default": "tanh",
    "aten.silu.default": "silu",
    "aten.gelu.default": "gelu",
    "aten.leaky_relu.default": "leaky_relu",
    "aten.prelu.default": "prelu",
    "aten.softmax.int": "softmax",
    "aten._softmax.default": "softmax",
    "aten.layer_norm.default": "layer_norm",
    "aten.native_layer_norm.default": "layer_norm",
    "aten.max_pool2d.default": "max_pool2d",
    "aten.avg_pool2d.default": "avg_pool2d",
    "aten.cat.default": "concat",
    "aten.pad.default": "pad",
    "aten.constant_pad_nd.default": "pad",
    "aten.view.default": "reshape",
    "aten._unsafe_view.default": "reshape",
    "aten.reshape.default": "reshape",
    "aten.flatten.using_ints": "reshape",
    "aten.unflatten.int": "reshape",
    "aten.squeeze.default": "reshape",
    "aten.squeeze.dim": "reshape",
    "aten.squeeze.dims": "reshape",
    "aten.unsqueeze.default": "reshape",
    "aten.permute.default": "transpose",
    "aten.transpose.int": "transpose",
    "aten.t.default": "transpose",
    "aten.slice.Tensor": "slice",
    "aten.select.int": "slice",
    "aten.split.Tensor": "slice",
    "aten.split_with_sizes.default": "slice",
    "aten.chunk.default": "slice",
    "aten.unbind.int": "slice",
    "operator.getitem": "slice",
    "aten.upsample_nearest2d.vec": "resize_nearest",
    "aten.upsample_nearest2d.default": "resize_nearest",
    "aten.upsample_bilinear2d.vec": "resize_bilinear",
    "aten.upsample_bilinear2d.default": "resize_bilinear",
    "aten.embedding.default": "embedding",
}

WEIGHTED = frozenset({"conv1d", "conv2d", "conv3d", "depthwise_conv2d", "conv_transpose2d", "linear"})
"""Classes with a constant weight and multiply-accumulates."""

MOVEMENT = frozenset({"reshape", "transpose", "slice", "pad", "concat", "resize_nearest", "max_pool2d"})
"""Classes whose output values are values of their inputs (or zero)."""

ACTIVATIONS = frozenset(
    {"relu", "relu6", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "silu", "gelu", "leaky_relu", "prelu"}
)


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node's (first) output; a dynamic dimension counts with the size it was traced with."""
    value = node.value[0] if isinstance(node.value, tuple) else node.value
    if not isinstance(value, Value):
        raise TypeError(f"{node.name} gives no tensor")
    return tuple(map(traced_size, value.shape))


def is_float(node: object) -> bool:
    """Whether a graph node is a single floating-point tensor."""
    if not isinstance(node, Node):
        return False
    value = tensor_of(node)
    return value is not None and value.dtype == "float32"


def conv_groups(node: Node) -> int:
    """Groups of a convolution, transposed or not."""
    groups: int = int(_arg(node, 6, 1))  # type: ignore[call-overload]
    return groups


def by_axis(node: Node, position: int, default: int, axes: int) -> tuple[int, ...]:
    """An argument of a convolution for each of its axes in space: it may be one number for all of them."""
    given = _arg(node, position, default)
    values = tuple(int(v) for v in (given if isinstance(given, list | tuple) else (given,)))
    return values * axes if len(values) == 1 else values


def _conv_class(node: Node) -> str | None:
    weight, groups = shape_of(_tensor_arg(node, 1)), conv_groups(node)
    if len(weight) == 3:
        return "conv1d"
    if len(weight) != 4:
        return None
    return "depthwise_conv2d" if groups > 1 and weight[1] == 1 else "conv2d"


def _hardtanh_class(node: Node) -> str:
    low, high = _arg(node, 1, -1.0), _arg(node, 2, 1.0)
    return "relu6" if (low, high) == (0, 6) else "hardtanh"


def _clamp_class(node: Node) -> str | None:
    low, high = _arg(node, 1, None), _arg(node, 2, None)
    if low == 0 and high is None:
        return "relu"
    return "relu6" if (low, high) == (0, 6) else None


def upper_bound(node: Node) -> float | None:
    """What an activation gives at most, whatever it reads; None where there is no end."""
    if "relu6" in node.target:
        return 6.0
    if "hardtanh" in node.target:
        return _number(_arg(node, 2, 1.0))
    return _number(_arg(node, 2, None)) if "clamp." in node.target else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _mean_class(node: Node) -> str | None:
    dims = node.args[1]
    rank = len(shape_of(_tensor_arg(node, 0)))
    return "mean" if isinstance(dims, list | tuple) and sorted(int(d) % rank for d in dims) == [2, 3] else None


def _adaptive_class(node: Node) -> str:
    return "mean" if tuple(node.args[1]) == (1, 1) else "avg_pool2d"


_SPECIAL: dict[str, Callable[[Node], str | None]] = {
    "aten.conv1d.default": _conv_class,
    "aten.conv2d.default": _conv_class,
    "aten.conv2d.padding": _conv_class,
    "aten.conv_transpose2d.input": lambda node: "conv_transpose2d",
    "aten.hardtanh.default": _hardtanh_class,
    "aten.clamp.default": _clamp_class,
    "aten.mean.dim": _mean_class,
    "aten.adaptive_avg_pool2d.default": _adaptive_class,
}


def op_class(node: Node) -> str | None:
    """Operator class of a `call_function` node in the registry's vocabulary, None where it has no class."""
    special = _SPECIAL.get(node.target)
    return special(node) if special else _CLASSES.get(node.target)


def output_channels_axis(op: str) -> int:
    """Axis of the output channels in a PyTorch weight of this operator class."""
    return 1 if op == "conv_transpose2d" else 0


def channel_axis_of_output(op: str) -> int:
    """Axis of the channels in the output of a weighted operator."""
    return -1 if op == "linear" else 1


def _arg(node: Node, index: int, default: object) -> object:
    return node.args[index] if len(node.args) > index else default


def _tensor_arg(node: Node, index: int) -> Node:
    value = node.args[index]
    if not isinstance(value, Node):
        raise TypeError(f"{node.name}: argument {index} is no tensor")
    return value
