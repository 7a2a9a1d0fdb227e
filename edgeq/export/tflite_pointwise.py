"""Pointwise convolutions with 4-bit weights become products: XNNPACK runs those, and leaves such convolutions to the
builtin kernels, which take several times as long."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeq.export.tflite_graph import Graph


def pointwise_as_product(graph: Graph, operator: Any) -> None:
    """Turns a 1 x 1 CONV_2D with an int4 weight into the FULLY_CONNECTED over channels that computes the same.

    Others stay as they are: those with a stride or with groups, which are no products of the whole input, and those
    with an odd number of input channels, for which XNNPACK has no kernel either way.
    """
    if graph.kind(operator) != "CONV_2D":
        return
    data, weight = (int(i) for i in operator.inputs[:2])
    options, (outputs, height, width, inputs) = operator.builtinOptions, graph.shape(weight)
    strides = (options.strideH, options.strideW)
    if graph.dtype(weight) != "int4" or (height, width, *strides) != (1, 1, 1, 1):
        return
    if inputs % 2 or inputs != graph.shape(data)[3]:
        return
    product = schema.FullyConnectedOptionsT()
    product.keepNumDims = True
    product.fusedActivationFunction = options.fusedActivationFunction
    graph.tensors[weight].shape = np.array([outputs, inputs], dtype=np.int32)
    vars(operator).update(vars(graph.operator("FULLY_CONNECTED", operator.inputs, operator.outputs, product)))
