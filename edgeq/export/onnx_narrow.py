"""Activations of fewer than 8 bits: stored as integers of 8, and cut off at their own ends.

ONNX Runtime 1.31 makes one convolution on integers of a QuantizeLinear in 4 bits and what reads it, and then refuses
its own graph. With a Clip in between it leaves both as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.export.onnx_constant import constant

ENDS = {
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
}
"""The least and the largest integer of each type."""


def store_in_bytes(graph: ir.Graph) -> None:
    """Gives every QuantizeLinear of fewer bits a zero point of 8, and a Clip behind it."""
    for node in [one for one in graph if one.op_type == "QuantizeLinear"]:
        zero, integers = node.inputs[2], node.outputs[0]
        if zero is None or zero.dtype not in ENDS or zero.const_value is None:
            continue
        low, high = ENDS[zero.dtype]
        kind = np.dtype(np.int8 if low < 0 else np.uint8)
        wide = constant(graph, f"{zero.name}_in_bytes", np.asarray(zero.const_value.numpy().astype(kind)))
        ends = [constant(graph, f"{kind}_{end}", np.array(end, kind)) for end in (low, high)]
        readers = [(use.node, use.idx) for use in integers.uses()]
        clip = ir.Node("", "Clip", [integers, *ends], name=f"{node.name}_ends")
        clipped = clip.outputs[0]
        clipped.name, clipped.shape = f"{integers.name}_ends", integers.shape
        clipped.dtype = integers.dtype = ir.DataType.from_numpy(kind)
        graph.insert_after(node, clip)
        node.replace_input_with(2, wide)
        for reader, index in readers:
            reader.replace_input_with(index, clipped)
            if reader.op_type == "DequantizeLinear" and len(reader.inputs) > 2:
                reader.replace_input_with(2, wide)
