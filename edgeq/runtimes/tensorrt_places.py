"""Where TensorRT wants QuantizeLinear and DequantizeLinear to stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeq.runtimes.onnx_graph import OnnxGraph, quantized_type
from edgeq.runtimes.tensorrt_values import Breaks, conversions, reads_bias, weight_of

if TYPE_CHECKING:
    from onnx import NodeProto

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ACTIVATIONS = ("Relu", "Clip")
_UNKNOWN = (
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
)  # fmt: skip
_EIGHT_BITS = ("int8", "float8e4m3fn")


def unknown_operators(graph: OnnxGraph) -> Breaks:
    for node in graph.of(*_UNKNOWN):
        yield node.name, f"it is a {node.op_type}"


def unpaired(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        if node.op_type == "QuantizeLinear":
            for reader, _ in graph.readers.get(node.output[0], ()):
                if reader.op_type != "DequantizeLinear":
                    yield node.name, f"{reader.op_type} {reader.name} reads its integers"
            continue
        made_by = graph.producer.get(node.input[0])
        if made_by is None or made_by.op_type != "QuantizeLinear":
            if made_by is not None and graph.constant(node.input[0]) is None:
                yield node.name, f"it reads integers from {made_by.op_type} {made_by.name}"
            continue
        ours, theirs = graph.array(node.input[1]), graph.array(made_by.input[1])
        if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
            yield node.name, f"its scale is another than that of {made_by.name}"


def biases(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        if reads_bias(graph, node):
            yield node.name, f"it is the bias of {graph.readers[node.output[0]][0][0].name}"


def int4_places(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        if quantized_type(graph, node) != "int4":
            continue
        if weight_of(graph, node) is None:
            yield node.name, "what it reads is computed"
            continue
        scale = graph.array(node.input[1])
        if scale is not None and scale.ndim < 2:
            yield node.name, "it has no blocks"
        for reader in _behind(graph, node.output[0]) if node.op_type == "DequantizeLinear" else ():
            if reader.op_type not in ("MatMul", "Gemm"):
                yield node.name, f"{reader.op_type} {reader.name} reads it"


def _behind(graph: OnnxGraph, value: str) -> list[NodeProto]:
    """Who reads a value, behind transpositions."""
    readers = [node for node, _ in graph.readers.get(value, ())]
    return [r for n in readers for r in (_behind(graph, n.output[0]) if n.op_type == "Transpose" else [n])]


def _rounded(graph: OnnxGraph, value: str) -> str | None:
    """The type that a value was rounded to where it is read; None for float."""
    made_by = graph.producer.get(value)
    while made_by is not None and made_by.op_type == "Transpose":
        made_by = graph.producer.get(made_by.input[0])
    if made_by is None or made_by.op_type != "DequantizeLinear":
        return None
    return quantized_type(graph, made_by)


def half_quantized(graph: OnnxGraph) -> Breaks:
    for node in graph.of(*_WEIGHTED):
        data, weight = (_rounded(graph, value) for value in node.input[:2])
        if weight in _EIGHT_BITS and data is None:
            yield node.name, f"its weight is {weight}, its input is not quantized"


def mixed_types(graph: OnnxGraph) -> Breaks:
    for node in graph.of(*_WEIGHTED, "Add"):
        kinds = {kind for value in node.input[:2] if (kind := _rounded(graph, value)) in _EIGHT_BITS}
        if len(kinds) > 1:
            yield node.name, "it reads " + " and ".join(sorted(map(str, kinds)))


def residuals(graph: OnnxGraph) -> Breaks:
    """Additions whose sum is quantized, and that read a quantized value on one side or come from an integer kernel."""
    for node in graph.of("Add"):
        if any(graph.constant(value) is not None for value in node.input) or not _sum_is_quantized(graph, node):
            continue
        floats = [value for value in node.input if _rounded(graph, value) is None]
        weighted = [value for value in floats if _integer_kernel(graph, value)]
        if len(floats) == 1 and not weighted:
            yield node.name, f"{floats[0]} is neither quantized nor what a quantized layer writes in float"
        elif len(floats) == 2 and weighted:
            other = next((value for value in floats if value not in weighted[:1]), floats[1])
            yield node.name, f"{weighted[0]} comes from a quantized layer, and {other} is not quantized"


def _sum_is_quantized(graph: OnnxGraph, node: NodeProto) -> bool:
    while True:
        readers = [reader for reader, _ in graph.readers.get(node.output[0], ())]
        if any(reader.op_type == "QuantizeLinear" for reader in readers):
            return True
        if len(readers) != 1 or readers[0].op_type not in _ACTIVATIONS:
            return False
        node = readers[0]


def _integer_kernel(graph: OnnxGraph, value: str) -> bool:
    """Whether a layer with quantized inputs writes this value, with its bias added."""
    made_by = graph.producer.get(value)
    if made_by is not None and made_by.op_type == "Add":
        inner = [v for v in made_by.input if graph.constant(v) is None]
        made_by = graph.producer.get(inner[0]) if len(inner) == 1 else None
    if made_by is None or made_by.op_type not in _WEIGHTED:
        return False
    return all(_rounded(graph, given) in _EIGHT_BITS for given in made_by.input[:2])
