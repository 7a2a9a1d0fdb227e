"""The quantized ONNX model: QuantizeLinear and DequantizeLinear around what runs on integers (QDQ)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import UnsupportedError
from edgeq.export.onnx_anew import read_anew, round_again
from edgeq.export.onnx_blocks import dequantize_blocks
from edgeq.export.onnx_constant import TYPES, constant
from edgeq.export.onnx_dynamic import multiply_integers
from edgeq.export.onnx_float import FloatOnnx
from edgeq.export.onnx_float_layers import keep_float_layers
from edgeq.export.onnx_narrow import store_in_bytes
from edgeq.export.onnx_one_sample import take_one_sample
from edgeq.export.onnx_shuffled import shuffle_transposed
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import output_channels_axis
from edgeq.numerics import QParams
from edgeq.numerics.weights import QuantizedWeight, bias_scale, quantize_bias
from edgeq.quantization.quantized import Quantized

OPSET_OF_INT2, IR_OF_INT2 = 25, 13
"""The first with integers of 2 bits. Files without any stay at the older version, which more runtimes read: what edgeq
writes means the same in both."""

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def quantize_onnx(model: Model, quantized: Quantized, source: FloatOnnx) -> ir.Model:
    """Inserts the quantized weights, biases and Q/DQ pairs into a copy of the float model.

    Weights are stored as integers under one DequantizeLinear, those of 2 or 4 bits with a Cast to int8 in between;
    biases as int32 where the kernel wants them. Weights of layers that compute in float are integers under a Cast to
    float, or the places of levels that are gathered, and a product with their scales; where the runtime reads blocks,
    under one DequantizeLinear too. A layer whose input is rounded in
    every call is a product of integers.

    Raises:
        UnsupportedError: the exporter moved a weight or tensor to where it cannot be found; names the layer.
    """
    result: ir.Model = ir.from_proto(ir.to_proto(source.model))
    graph = result.graph
    values: dict[str, ir.Value] = {str(v.name): v for v in graph.inputs}
    values.update({str(v.name): v for node in graph for v in node.outputs})
    for group in model.groups:
        if group.name in quantized.biases:
            _store_weights(model, group, quantized, graph, values, source)
        elif group.op == "matmul" and group.root in source.values:
            product = weighted(values[source.values[group.root]])
            if product is not None:
                product.name = group.name
    outputs = {id(v) for v in graph.outputs}
    anew = read_anew(model, quantized, values, source)
    reals: dict[str, ir.Value] = {}
    for graph_node, tensor in quantized.rounded.items():
        name = source.values.get(graph_node)
        if name is None:
            continue
        integer_io = quantized.runtime.io == "integer"
        is_output = id(values[name]) in outputs
        reals[graph_node] = _round_trip(graph, values[name], tensor.q, is_output=is_output, integer_io=integer_io)
    for one in anew:
        own = one.value is values[source.values[one.node]]
        real = reals.get(one.node, one.value) if own else one.value
        round_again(graph, real, one.name, one.q, one.readers)
    store_in_bytes(graph)
    if quantized.runtime.rounds_float_layers:
        keep_float_layers(graph)
    if quantized.runtime.shuffles_transposed:
        shuffle_transposed(model, quantized, graph)
    if quantized.runtime.one_sample:
        take_one_sample(result)
    used = {str(v.name) for node in graph for v in node.inputs if v is not None}
    for name in [n for n in graph.initializers if n not in used]:
        del graph.initializers[name]
    if any(weight.q.scheme.dtype in ("int2", "uint2") for weight in quantized.weights.values()):
        result.opset_imports[""], result.ir_version = OPSET_OF_INT2, IR_OF_INT2
    return result


def _store_weights(
    model: Model,
    group: Group,
    quantized: Quantized,
    graph: ir.Graph,
    values: dict[str, ir.Value],
    source: FloatOnnx,
) -> None:
    name = source.values.get(group.root) or source.values.get(group.output)
    node = weighted(values[name]) if name else None
    if node is None:
        raise UnsupportedError(
            "its operator is not to be found in the exported ONNX model",
            where=f"layer {group.name}",
            remedy="choose another format for this model",
        )
    node.name = group.name  # runtimes report this name back when they say where it ran
    bias_owner, bias_index = _bias_slot(node)
    bias = quantized.biases[group.name]
    weight = quantized.weights.get(group.name)
    if weight is None:
        _replace_input(graph, bias_owner, bias_index, constant(graph, f"{group.bias}", bias))
        return
    axis = output_channels_axis(group.op)
    integers = weight.integers
    dynamic = quantized.assignment.dynamic.get(group.name)
    in_the_file = dynamic is not None and dynamic.dynamic == "tensor"
    # a linear layer on three dimensions becomes a MatMul, which wants its weight the other way round
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
    if not in_the_file and group.name not in quantized.assignment.kernels:
        name = f"{group.weight}_quantized"
        if quantized.runtime.dequantizes_blocks and weight.q.scheme.group is not None:
            real = dequantize_blocks(graph, node, name, weight, turned=turned)
        else:
            fusible = node.op_type in ("MatMul", "Gemm") and _fusible(group, quantized, weight)
            real = _expanded(graph, node, name, weight, axis, turned=turned, fusible=fusible)
        _replace_input(graph, node, 1, real)
        _replace_input(graph, bias_owner, bias_index, constant(graph, f"{group.bias}_corrected", bias))
        return
    if turned or in_the_file:
        integers, axis = np.ascontiguousarray(integers.T), 1 - axis
    name, dtype = f"{group.weight}_quantized", weight.q.scheme.dtype
    if weight.q.scheme.stored_bits == 8:
        stored = constant(graph, name, integers)
    elif quantized.runtime.reads_low_bits:
        stored = constant(graph, name, integers.astype(TYPES[dtype].numpy()))
    else:
        stored, dtype = _widened(graph, node, name, integers, dtype), "int8"
    if in_the_file:
        corrected = constant(graph, f"{group.bias}_corrected", bias)
        _replace_input(graph, bias_owner, bias_index, corrected)
        multiply_integers(graph, node, name, weight, stored)
        return
    per_channel = axis if weight.q.axis is not None else None
    real = _dequantize(graph, node, stored, weight.q.scale, weight.q.zero_point, dtype, per_channel)
    _replace_input(graph, node, 1, real)
    kernel = quantized.assignment.kernels[group.name]
    if kernel.bias == "int32":
        input_scale = quantized.input_scale(group)
        scale = bias_scale(input_scale, weight.q)
        small = constant(graph, f"{group.bias}_quantized", quantize_bias(bias, input_scale, weight.q))
        zero = np.zeros(scale.shape, np.int32)
        real_bias = _dequantize(graph, bias_owner, small, scale, zero, "int32", 0 if scale.ndim else None)
    else:
        real_bias = constant(graph, f"{group.bias}_corrected", bias)
    _replace_input(graph, bias_owner, bias_index, real_bias)


def _fusible(group: Group, quantized: Quantized, weight: QuantizedWeight) -> bool:
    """Whether a runtime may make a product with compressed weights of a linear layer, and still computes as planned:
    it takes a rounded input for integers, and rounds that of all layers where the file says so for some."""
    dynamic, row = quantized.assignment.dynamic, weight.integers[0].size
    sharing = [k.dynamic for k in dynamic.values() if isinstance(k.dynamic, int)]
    rounds = any(min(row, weight.q.scheme.group or row) >= numbers for numbers in sharing)
    return group.name in dynamic or (quantized.rounded.keys().isdisjoint(group.inputs) and not rounds)


def weighted(value: ir.Value) -> ir.Node | None:
    """The operator with the weight behind a layer's value: its producer, or what the addition of its bias reads, or
    what its activation reads."""
    node = value.producer()
    for _ in range(2):
        if node is not None and node.op_type not in _WEIGHTED:
            node = next((p for v in node.inputs if v is not None and (p := v.producer()) is not None), None)
    return node if node is not None and node.op_type in _WEIGHTED else None


def _bias_slot(node: ir.Node) -> tuple[ir.Node, int]:
    """Where a weighted operator's bias is: its third input, or one side of the addition behind a MatMul."""
    if node.op_type != "MatMul":
        return node, 2
    (user, _), *_ = node.outputs[0].uses()
    index = next(i for i, v in enumerate(user.inputs) if v is not node.outputs[0])
    return user, index


def _widened(graph: ir.Graph, before: ir.Node, name: str, integers: np.ndarray, dtype: str) -> ir.Value:
    """A constant of 2-bit or 4-bit integers that its readers see as int8.

    Integer kernels of CPUs read int8 alone. ONNX Runtime and OpenVINO compute the Cast once, when they load the file;
    under a DequantizeLinear that reads them itself, both run the layer in float.
    """
    stored = constant(graph, f"{name}_{dtype}", integers.astype(TYPES[dtype].numpy()))
    attributes = [ir.AttrInt64("to", int(ir.DataType.INT8))]
    node = ir.Node("", "Cast", [stored], attributes=attributes, name=name)
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, ir.DataType.INT8, stored.shape
    graph.insert_before(before, node)
    return node.outputs[0]


def _expanded(
    graph: ir.Graph, before: ir.Node, name: str, weight: QuantizedWeight, axis: int, *, turned: bool, fusible: bool
) -> ir.Value:
    """A constant of integers that its reader sees as float: multiplied by one scale a channel, or a group of a channel,
    and less a zero point before that where the scheme has any. Places of levels are widened to int32 and gathered.

    ONNX Runtime computes all of it once, when it loads the file; a DequantizeLinear in every run. OpenVINO fuses a Mul
    right behind the Cast into a product with compressed weights, which is to be had for float inputs alone: behind a
    rounded one it would run the layer on integers. A Reshape in between keeps it in float. What is gathered it computes
    once.

    Args:
        axis: of the output channels.
        turned: the reader wants [inputs, outputs].
        fusible: the reader is a product, and its input is not rounded.
    """
    integers, scale, zero, scheme = weight.integers, weight.q.scale, weight.q.zero_point, weight.q.scheme
    wanted = integers.T.shape if turned else integers.shape
    channels = integers.shape[axis]
    if scheme.group is not None:
        integers = integers.reshape(channels, -1, scheme.group)
        each = [channels, -1, 1]
        order: tuple[int, ...] = (1, 2, 0)
    else:
        each = [-1 if d == axis else 1 for d in range(integers.ndim)]
        order = (1, 0)
    scale, zero = scale.reshape(each), zero.reshape(each)
    if turned:
        integers, scale, zero = (values.transpose(order) for values in (integers, scale, zero))
    fusible = fusible or weight.levels is not None
    held = np.ascontiguousarray(integers if fusible else integers.reshape(-1))

    def stored(values: np.ndarray, called: str) -> ir.Value:
        return constant(graph, called, np.ascontiguousarray(values).astype(TYPES[scheme.dtype].numpy()))

    def step(op: str, inputs: list[ir.Value], end: str, shape: Sequence[int]) -> ir.Value:
        kind = ir.DataType.INT32 if end == "places" else ir.DataType.FLOAT
        attributes = [ir.AttrInt64("to", int(kind))] if op == "Cast" else []
        node = ir.Node("", op, inputs, attributes=attributes, name=f"{name}_{end}")
        made = node.outputs[0]
        made.name, made.dtype, made.shape = node.name, kind, ir.Shape(shape)
        graph.insert_before(before, node)
        return made

    def shaped(value: ir.Value, end: str, shape: Sequence[int]) -> ir.Value:
        return step("Reshape", [value, constant(graph, f"{name}_{end}_shape", np.array(shape, np.int64))], end, shape)

    if weight.levels is None:
        value = step("Cast", [stored(held, name)], "float", held.shape)
    else:
        places = step("Cast", [stored(held, name)], "places", held.shape)
        value = step("Gather", [constant(graph, f"{name}_levels", weight.levels), places], "level", held.shape)
    value = value if fusible else shaped(value, "shaped", integers.shape)
    if scheme.symmetry == "asymmetric":
        points = stored(zero, f"{name}_zero_point")
        point = step("Cast", [points], "zero_point_float", zero.shape)
        value = step("Sub", [value, point], "shifted", integers.shape)
    factor = constant(graph, f"{name}_scale", np.ascontiguousarray(scale))
    value = step("Mul", [value, factor], "real", integers.shape)
    return value if integers.shape == wanted else shaped(value, "ungrouped", wanted)


def _replace_input(graph: ir.Graph, node: ir.Node, index: int, value: ir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    node.replace_input_with(index, value)
    if old is not None and old.name and not list(old.uses()) and old.name in graph.initializers:
        del graph.initializers[old.name]


def _dequantize(
    graph: ir.Graph,
    before: ir.Node,
    integers: ir.Value,
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int32],
    dtype: str,
    axis: int | None,
) -> ir.Value:
    stem = str(integers.name)
    zero = zero_point.astype(TYPES[dtype].numpy())
    inputs = [integers, constant(graph, f"{stem}_scale", scale), constant(graph, f"{stem}_zero_point", zero)]
    attributes = [ir.AttrInt64("axis", axis)] if axis is not None else []
    node = ir.Node("", "DequantizeLinear", inputs, attributes=attributes, name=f"{stem}_dequantize")
    node.outputs[0].name = f"{stem}_real"
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, integers.shape
    graph.insert_before(before, node)
    return node.outputs[0]


def _round_trip(graph: ir.Graph, value: ir.Value, q: QParams, *, is_output: bool, integer_io: bool) -> ir.Value:
    """Every reader of `value` reads it through a Q/DQ pair from now on, of which the end is returned."""
    name = str(value.name)
    producer = value.producer()
    is_input = producer is None
    scale = constant(graph, f"{name}_scale", q.scale)
    zero = constant(graph, f"{name}_zero_point", q.zero_point.astype(TYPES[q.scheme.dtype].numpy()))
    readers = list(value.uses())
    if is_input and integer_io:
        value.dtype = TYPES[q.scheme.dtype]
        integers, quantize = value, None
    else:
        quantize = ir.Node("", "QuantizeLinear", [value, scale, zero], name=f"{name}_quantize")
        integers = quantize.outputs[0]
        integers.name, integers.dtype, integers.shape = f"{name}_integers", TYPES[q.scheme.dtype], value.shape
    leaves_integers = is_output and integer_io
    if readers or not leaves_integers:
        dequantize = ir.Node("", "DequantizeLinear", [integers, scale, zero], name=f"{name}_dequantize")
        real = dequantize.outputs[0]
        real.name, real.dtype, real.shape = f"{name}_real", ir.DataType.FLOAT, value.shape
    else:
        # nobody would read it, and ONNX Runtime runs what nobody reads
        dequantize, real = None, integers
    new = [n for n in (quantize, dequantize) if n is not None]
    if producer is not None:
        graph.insert_after(producer, new)
    else:
        graph.insert_before(graph[0], new)
    for reader, index in readers:
        reader.replace_input_with(index, real)
    if is_output:
        # the name that the user knows goes to what leaves the graph
        leaving = integers if leaves_integers else real
        position = next(i for i, v in enumerate(graph.outputs) if v is value)
        value.name = f"{name}_before"
        leaving.name = name
        graph.outputs[position] = leaving
    if integer_io:
        # outputs that are a copy of it leave as the same integers
        for reader, _ in readers:
            if reader.op_type == "Identity" and reader.outputs[0].is_graph_output():
                reader.replace_input_with(0, integers)
                reader.outputs[0].dtype = TYPES[q.scheme.dtype]
    return real
