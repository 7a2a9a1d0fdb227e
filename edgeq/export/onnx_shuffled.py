"""Transposed convolutions on integers, for a runtime that has no kernel for them but one for convolutions: their
values are shuffled into place as integers, behind the quantization (see `edgeq.model.shuffled`)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.export.onnx_constant import constant
from edgeq.model.model import Model
from edgeq.model.shuffled import Shuffle, scattered, shuffle_of
from edgeq.quantization.quantized import Quantized

_PASSED = {"Relu", "Clip", "QuantizeLinear"}


def shuffle_transposed(model: Model, quantized: Quantized, graph: ir.Graph) -> None:
    """Makes a convolution of each transposed one whose input, weight and output are quantized."""
    nodes = {node.name: node for node in graph}
    for group in model.groups:
        if group.op != "conv_transpose2d" or group.name not in quantized.assignment.kernels:
            continue
        shuffle = shuffle_of(model.nodes[group.root])
        assert shuffle is not None  # the plan gives none of these an integer kernel
        node = nodes[group.name]
        _turn(node, shuffle)
        _shuffle_behind(graph, node, shuffle)


def _turn(node: ir.Node, shuffle: Shuffle) -> None:
    """The operator, with its constants in the order of the phases."""
    weight, bias = (value.producer() for value in node.inputs[1:] if value is not None)
    assert weight is not None and bias is not None
    held = weight.inputs[0]
    assert held is not None
    cast = held.producer()  # integers of few bits are widened
    stored = held if cast is None else cast.inputs[0]
    assert stored is not None and stored.const_value is not None
    _hold(stored, scattered(stored.const_value.numpy(), shuffle))
    held.shape = weight.outputs[0].shape = stored.shape
    if "axis" in weight.attributes:
        weight.attributes["axis"] = ir.AttrInt64("axis", 0)
    for value in (*weight.inputs[1:], *bias.inputs):
        assert value is not None and value.const_value is not None
        if value.const_value.shape:
            _hold(value, np.tile(value.const_value.numpy(), shuffle.stride**2))
    bias.outputs[0].shape = bias.inputs[0].shape if bias.inputs[0] is not None else None
    node.op_type = "Conv"
    node.attributes.clear()
    node.attributes["pads"] = ir.AttrInt64s("pads", shuffle.pads)


def _hold(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def _shuffle_behind(graph: ir.Graph, node: ir.Node, shuffle: Shuffle) -> None:
    """Moves the integers behind the next quantization; what computes before it has the phases as channels."""
    while node.op_type != "QuantizeLinear":
        node.outputs[0].shape = None
        ((node, _),) = node.outputs[0].uses()
        assert node.op_type in _PASSED
    integers = node.outputs[0]
    readers, shape, name = list(integers.uses()), integers.shape, str(integers.name)
    integers.shape = None
    moved = [ir.Node("", "DepthToSpace", [integers], [ir.AttrInt64("blocksize", shuffle.stride)])]
    if any(shuffle.cut):
        axes = [axis for axis, cut in enumerate(shuffle.cut) if cut]
        ends = {"begin": [0] * len(axes), "end": [-shuffle.cut[a] for a in axes], "axes": [2 + a for a in axes]}
        given = [constant(graph, f"{name}_{what}", np.array(values, np.int64)) for what, values in ends.items()]
        moved.append(ir.Node("", "Slice", [moved[0].outputs[0], *given]))
    for step in moved:
        step.name = f"{name}_{step.op_type}"
        step.outputs[0].name, step.outputs[0].type = step.name, integers.type
    last = moved[-1].outputs[0]
    last.shape = shape
    graph.insert_after(node, moved)
    for reader, index in readers:
        reader.replace_input_with(index, last)
    if integers.is_graph_output():
        integers.name, last.name = f"{name}_phases", name
        graph.outputs[list(graph.outputs).index(integers)] = last
