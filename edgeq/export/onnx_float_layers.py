"""Keeps float layers in float where a runtime would quantize them by itself.

ONNX Runtime rounds the weights of a float convolution or Gemm between two quantized tensors to 8 bits of its own, with
one scale for the whole weight (`WeightBiasQuantization` among its graph transformers). It does so only where the input
is dequantized with a single scale: one scale for each channel, all of them equal, gives the same numbers and leaves the
layer alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.export.onnx_constant import COMPUTED_ONCE, constant

_LAYERS = {"Conv", "ConvTranspose", "Gemm"}
_PASSED = {"Relu", "Clip"}


def keep_float_layers(graph: ir.Graph) -> None:
    """Gives every float layer between quantized tensors a dequantization by channel of its own."""
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in _LAYERS else None
        source = node.inputs[0].producer() if weight is not None and node.inputs[0] is not None else None
        if (
            weight is None
            or not _is_float_constant(weight)
            or source is None
            or source.op_type != "DequantizeLinear"
            or not _is_quantized_behind(node)
        ):
            continue
        integers, scale, zero_point = source.inputs
        assert integers is not None and scale is not None and zero_point is not None
        shape = integers.shape
        channels = shape[1] if shape is not None else None
        if not isinstance(channels, int) or scale.const_value is None or zero_point.const_value is None:
            raise AssertionError("a quantized tensor without its channels")
        by_channel = [
            constant(graph, f"{value.name}_by_channel", np.repeat(value.const_value.numpy().reshape(-1), channels))
            for value in (scale, zero_point)
            if value.const_value is not None
        ]
        dequantize = ir.Node(
            "",
            "DequantizeLinear",
            [integers, *by_channel],
            attributes=[ir.AttrInt64("axis", 1)],
            name=f"{node.name}_dequantize",
        )
        real = dequantize.outputs[0]
        real.name, real.dtype, real.shape = f"{node.name}_input", ir.DataType.FLOAT, integers.shape
        graph.insert_before(node, dequantize)
        node.replace_input_with(0, real)
        if not source.outputs[0].uses():
            graph.remove(source, safe=True)


def _is_float_constant(weight: ir.Value) -> bool:
    """Whether a runtime sees a float constant: one in the file, or one computed from integers when it loads that."""
    made_by = weight.producer()
    if made_by is None:
        return weight.is_initializer()
    return made_by.op_type in COMPUTED_ONCE and all(v is not None and _is_float_constant(v) for v in made_by.inputs)


def _is_quantized_behind(node: ir.Node) -> bool:
    """Whether the value goes to a quantization alone, through activations that can be part of it."""
    while True:
        readers = list(node.outputs[0].uses())
        if len(readers) != 1:
            return False
        node = readers[0][0]
        if node.op_type == "QuantizeLinear":
            return True
        if node.op_type not in _PASSED:
            return False
