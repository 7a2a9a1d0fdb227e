"""Constants of an ONNX graph, each name once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

TYPES = {
    "int2": ir.DataType.INT2,
    "uint2": ir.DataType.UINT2,
    "int4": ir.DataType.INT4,
    "uint4": ir.DataType.UINT4,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int16": ir.DataType.INT16,
    "uint16": ir.DataType.UINT16,
    "int32": ir.DataType.INT32,
}

COMPUTED_ONCE = frozenset({"Cast", "Gather", "Mul", "Reshape", "Sub"})
"""Operators between stored integers and the float weight that they stand for: runtimes compute them when they load a
file."""


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The constant of this name; made from the array if the graph has none."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value
