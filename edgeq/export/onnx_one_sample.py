"""Files that take one sample in each call: no size is left open."""

from __future__ import annotations

import onnx_ir as ir


def take_one_sample(model: ir.Model) -> None:
    """Sets the sizes that a caller may choose to one. What lies between inputs and outputs has its sizes worked out by
    who reads the file."""
    graph = model.graph
    free = {str(size) for value in graph.inputs for size in value.shape or () if isinstance(size, ir.SymbolicDim)}
    for node in graph:
        for value in node.outputs:
            if value not in graph.outputs and any(isinstance(size, ir.SymbolicDim) for size in value.shape or ()):
                value.shape = None
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([1 if str(size) in free else size for size in value.shape])
