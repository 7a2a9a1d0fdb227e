"""Products of integers between floats: an input that is rounded in every call, times stored integers.

ONNX Runtime makes one operator of these, which rounds and multiplies, or two where several layers read the same input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeq.export.onnx_constant import constant
from edgeq.numerics.weights import QuantizedWeight


def multiply_integers(graph: ir.Graph, node: ir.Node, stem: str, weight: QuantizedWeight, integers: ir.Value) -> None:
    """Makes a Gemm, or a MatMul with an addition behind it, a product of integers. What it gives keeps its name.

    Args:
        node: named after its layer.
        stem: of the names of constants.
        integers: int8 [inputs, outputs].
    """
    layer, given = str(node.name), node.inputs[0]
    assert given is not None

    def step(op: str, inputs: Sequence[ir.Value], end: str, outputs: int = 1) -> list[ir.Value]:
        new = ir.Node("", op, inputs, num_outputs=outputs, name=layer + end)
        for number, value in enumerate(new.outputs):
            value.name = f"{stem}{end or '/product'}{number or ''}"
        graph.insert_before(node, new)
        return list(new.outputs)

    rounded, scale, zero = step("DynamicQuantizeLinear", [given], "/rounded", 3)
    (product,) = step("MatMulInteger", [rounded, integers, zero], "")
    (real,) = step("Cast", [product], "/float")
    cast = real.producer()
    assert cast is not None
    cast.attributes.add(ir.AttrInt64("to", int(ir.DataType.FLOAT)))
    by_channel = constant(graph, f"{stem}_scale", np.ascontiguousarray(weight.q.scale))
    (scales,) = step("Mul", [scale, by_channel], "/scales")
    if node.op_type == "Gemm":
        (scaled,), bias = step("Mul", [real, scales], "/scaled"), node.inputs[2]
        assert bias is not None
        _become(node, "Add", f"{layer}/bias", [scaled, bias])
    else:
        _become(node, "Mul", f"{layer}/scaled", [real, scales])


def _become(node: ir.Node, op: str, name: str, inputs: Sequence[ir.Value]) -> None:
    node.op_type, node.name = op, name
    node.attributes.clear()
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
