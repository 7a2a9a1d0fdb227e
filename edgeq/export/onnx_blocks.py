"""Weights of a linear layer that share scales by blocks, under one DequantizeLinear that the runtime itself reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.errors import UnsupportedError
from edgeq.export.onnx_constant import TYPES, constant
from edgeq.numerics.weights import QuantizedWeight


def dequantize_blocks(
    graph: ir.Graph, before: ir.Node, name: str, weight: QuantizedWeight, *, turned: bool
) -> ir.Value:
    """What a reader of the weight sees: float, [outputs, inputs].

    Two integers of 4 bits share a byte, along the last dimension: outputs that come last are even in number.

    Args:
        turned: the reader wants [inputs, outputs].

    Raises:
        UnsupportedError: the weight has other dimensions.
    """
    if weight.integers.ndim != 2:
        raise UnsupportedError(
            "blocks are for weights of two dimensions",
            where=str(before.name),
            remedy="choose another kernel for this layer",
        )
    outputs = len(weight.integers)
    scheme = weight.q.scheme

    def stored(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values.T if turned else values)

    integers = stored(weight.integers).astype(TYPES[scheme.dtype].numpy())
    inputs = [
        constant(graph, name, integers),
        constant(graph, f"{name}_scale", stored(weight.q.scale.reshape(outputs, -1))),
    ]
    if scheme.symmetry == "asymmetric":
        zero = stored(weight.q.zero_point.reshape(outputs, -1)).astype(TYPES[scheme.dtype].numpy())
        inputs.append(constant(graph, f"{name}_zero_point", zero))
    sizes = [ir.AttrInt64("axis", 0 if turned else 1), ir.AttrInt64("block_size", scheme.group or 0)]
    node = ir.Node("", "DequantizeLinear", inputs, attributes=sizes, name=f"{name}_dequantize")
    real = node.outputs[0]
    real.name, real.dtype, real.shape = f"{name}_real", ir.DataType.FLOAT, ir.Shape(integers.shape)
    graph.insert_before(before, [node])
    return real
