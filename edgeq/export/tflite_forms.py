"""Which TFLite operators compute on integers, and what is particular of them."""

from __future__ import annotations

INTEGER_FORMS: dict[str, frozenset[str]] = {
    "conv1d": frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"}),
    "conv2d": frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"}),
    "depthwise_conv2d": frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"}),
    "conv3d": frozenset({"CONV_3D"}),
    "conv_transpose2d": frozenset({"TRANSPOSE_CONV"}),
    "linear": frozenset({"FULLY_CONNECTED"}),
    "matmul": frozenset({"BATCH_MATMUL"}),
    "add": frozenset({"ADD"}),
    "sub": frozenset({"SUB"}),
    "mul": frozenset({"MUL"}),
    "relu": frozenset({"RELU"}),
    "relu6": frozenset({"RELU6"}),
    "hardswish": frozenset({"HARD_SWISH"}),
    "gelu": frozenset({"GELU"}),
    "sigmoid": frozenset({"LOGISTIC"}),
    "tanh": frozenset({"TANH"}),
    "softmax": frozenset({"SOFTMAX"}),
    "leaky_relu": frozenset({"LEAKY_RELU"}),
    "mean": frozenset({"MEAN", "AVERAGE_POOL_2D"}),
    "avg_pool2d": frozenset({"AVERAGE_POOL_2D"}),
    "resize_bilinear": frozenset({"RESIZE_BILINEAR"}),
}
"""The one TFLite operator that each operator class becomes; what the converter splits into several stays in float."""

KEEPS_SCALE = frozenset({"AVERAGE_POOL_2D", "RESIZE_BILINEAR"})
"""Kernels that compute new values, and write them with the scale that they read."""

TAKES_CONSTANTS = frozenset({"ADD", "SUB", "MUL", "BATCH_MATMUL"})
"""Kernels whose operands may be constants: of integers like the others."""

JOINS = frozenset({"CONCATENATION", "PACK"})
