"""What TensorRT takes as type, zero point, scale, axis and block of a QuantizeLinear or DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgeq.runtimes.onnx_graph import OnnxGraph, attribute, given, quantized_type

if TYPE_CHECKING:
    from onnx import NodeProto

Breaks = Iterator[tuple[str, str]]

TYPES = ("int8", "float8e4m3fn", "int4", "float4e2m1")
BLOCKED = ("int4", "float8e4m3fn", "float4e2m1")
INT4_BLOCKS = (64, 128)
OPSETS = {"float8e4m3fn": 19, "int4": 21, "float4e2m1": 23}
NEWEST_OPSET = 25
_SCALES = ("float", "float16", "bfloat16")


def conversions(graph: OnnxGraph) -> list[NodeProto]:
    """Every QuantizeLinear and DequantizeLinear whose rules are known here: not those of 4-bit floats, whose scales are
    themselves quantized."""
    found = graph.of("QuantizeLinear", "DequantizeLinear")
    return [node for node in found if quantized_type(graph, node) != "float4e2m1"]


def weight_of(graph: OnnxGraph, node: NodeProto) -> list[int] | None:
    """The shape of the constant that a QuantizeLinear or DequantizeLinear is rooted in; None for activations."""
    value = node.input[0]
    made_by = graph.producer.get(value)
    if node.op_type == "DequantizeLinear" and made_by is not None and made_by.op_type == "QuantizeLinear":
        value = made_by.input[0]
    held = graph.constant(value)
    return None if held is None else list(held.dims)


def wrong_types(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        kind = quantized_type(graph, node)
        if kind is not None and kind not in TYPES and not reads_bias(graph, node):
            yield node.name, f"it is {kind}"


def zero_points(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        if not given(node, 2):
            continue
        zero, scale = graph.array(node.input[2]), graph.array(node.input[1])
        if zero is None:
            yield node.name, "its zero point is computed"
        elif zero.any():
            yield node.name, f"its zero point is {zero.reshape(-1)[np.flatnonzero(zero)[0]]:g}"
        elif scale is not None and zero.size != scale.size:
            yield node.name, f"it has {zero.size} zero points and {scale.size} scales"


def scales(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        scale, kind = graph.array(node.input[1]), graph.type_of(node.input[1])
        if scale is None:
            yield node.name, f"its scale {node.input[1]} is computed"
        elif kind not in _SCALES:
            yield node.name, f"its scale is {kind}"
        elif not scale.size or not (np.isfinite(scale) & (scale > 0)).all():
            yield node.name, f"its scale is {scale.min() if scale.size else 'empty'}"


def activations_by_channel(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        scale = graph.array(node.input[1])
        if scale is not None and scale.size > 1 and weight_of(graph, node) is None:
            yield node.name, f"it has {scale.size} scales, and what it reads is computed"


def channel_axes(graph: OnnxGraph) -> Breaks:
    """Scales by channel of weights: along which axis, and how many."""
    for node in conversions(graph):
        scale, shape = graph.array(node.input[1]), weight_of(graph, node)
        if scale is None or shape is None or scale.ndim != 1 or scale.size < 2:
            continue
        axis = attribute(node, "axis", 1) % max(1, len(shape))
        if shape[axis] != scale.size:
            yield node.name, f"it has {scale.size} scales along axis {axis}, where the weight has {shape[axis]}"
            continue
        for reader, index, there in _uses(graph, node.output[0], axis, len(shape)):
            wanted = _outputs(reader, index, len(shape))
            if wanted is not None and there not in wanted:
                ways = " or ".join(map(str, wanted))
                yield node.name, f"axis {there} of the weight of {reader.op_type} {reader.name}, instead of {ways}"


def transposed_convolutions(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        scale = graph.array(node.input[1])
        if scale is not None and scale.size > 1:
            for reader, index in graph.readers.get(node.output[0], ()):
                if reader.op_type == "ConvTranspose" and index == 1:
                    yield reader.name, f"its weight has {scale.size} scales"


def _uses(graph: OnnxGraph, value: str, axis: int, rank: int) -> Iterator[tuple[NodeProto, int, int]]:
    """Who reads a value, as which input, and where an axis of it is then, behind transpositions and quantizations."""
    for node, index in graph.readers.get(value, ()):
        if node.op_type == "Transpose":
            order = next((list(held.ints) for held in node.attribute if held.name == "perm"), [*range(rank)][::-1])
            yield from _uses(graph, node.output[0], order.index(axis), rank)
        elif node.op_type != "DequantizeLinear":
            yield node, index, axis


def _outputs(node: NodeProto, index: int, rank: int) -> tuple[int, ...] | None:
    """Along which axes the outputs of an operator's weight may lie; None where it is no weight."""
    if index == 1 and node.op_type == "Conv":
        return (0,)
    if index == 1 and node.op_type == "ConvTranspose":
        return (0, 1)
    if index == 1 and node.op_type == "Gemm":
        return (0,) if attribute(node, "transB") else (1,)
    if node.op_type == "MatMul" and index < 2 and rank > 1:
        return (rank - 1,) if index else (rank - 2,)
    return None


def blocks(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        scale, shape, kind = graph.array(node.input[1]), weight_of(graph, node), quantized_type(graph, node)
        size = attribute(node, "block_size")
        if scale is None or shape is None or (scale.ndim < 2 and not size):
            continue
        if scale.ndim != len(shape):
            yield node.name, f"its scale has {scale.ndim} dimensions, its weight {len(shape)}"
            continue
        apart = [d for d, (length, count) in enumerate(zip(shape, scale.shape, strict=True)) if length != count]
        if kind not in BLOCKED:
            yield node.name, f"it is {kind}"
        elif len(apart) != 1 or apart[0] < len(shape) - 2:
            yield node.name, f"the weight is {shape}, its scale {list(scale.shape)}"
        elif shape[apart[0]] % scale.shape[apart[0]] or size not in (0, shape[apart[0]] // scale.shape[apart[0]]):
            count, length = scale.shape[apart[0]], shape[apart[0]]
            yield node.name, f"{length} weights are no {count} blocks of {size or f'{length / count:g}'}"
        elif kind == "int4" and shape[apart[0]] // scale.shape[apart[0]] not in INT4_BLOCKS:
            yield node.name, f"its blocks have {shape[apart[0]] // scale.shape[apart[0]]} weights"


def odd_rows(graph: OnnxGraph) -> Breaks:
    for node in conversions(graph):
        shape = weight_of(graph, node)
        if shape and quantized_type(graph, node) == "int4" and shape[-1] % 2:
            yield node.name, f"the last dimension of {shape} is odd"


def opsets(graph: OnnxGraph) -> Breaks:
    if graph.opset > NEWEST_OPSET:
        yield "", f"the file has opset {graph.opset}, newer than {NEWEST_OPSET}"
    for node in conversions(graph):
        scale = graph.array(node.input[1])
        many = scale is not None and scale.size > 1
        blocked = scale is not None and scale.ndim > 1
        kind = quantized_type(graph, node) or ""
        needed = max(OPSETS.get(kind, 10), 21 if blocked else 13 if many else 10)
        if graph.opset < needed:
            yield node.name, f"{kind}{' by blocks' if blocked else ' by channel' if many else ''} needs opset {needed}"


def reads_bias(graph: OnnxGraph, node: NodeProto) -> bool:
    """Whether a value that is dequantized is a bias, for which there is a rule of its own."""
    readers = graph.readers.get(node.output[0], ()) if node.op_type == "DequantizeLinear" else ()
    return any(index == 2 and reader.op_type in ("Conv", "ConvTranspose", "Gemm") for reader, index in readers)
