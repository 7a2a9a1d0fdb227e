"""Constants of an ONNX graph, each name once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

COMPUTED_ONCE = frozenset({"Cast", "Mul", "Reshape", "Sub"})
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
