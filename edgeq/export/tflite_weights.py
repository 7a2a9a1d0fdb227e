"""Weights and biases of one layer in a `.tflite` graph: found, checked against the model, and stored as planned."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeq.errors import UnsupportedError
from edgeq.export.tflite_graph import Graph
from edgeq.export.tflite_transposed import Spacing, spacing, spread
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.numerics.weights import bias_scale, quantize_bias
from edgeq.quantization.quantized import Quantized

WEIGHT_SLOT = 1

CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
"""Axis of the output channels in a stored weight."""

_WEIGHT_TYPES = ("int2", "int4", "int8")

_BIAS_TYPES = {"int8": "int32", "int16": "int64"}
"""By the type of the activations, the type of the bias that the kernels add."""


def bias_slot(kind: str) -> int:
    """Position of the bias among an operator's inputs."""
    return 3 if kind == "TRANSPOSE_CONV" else 2


def data_slot(kind: str) -> int:
    """Position of the data among an operator's inputs."""
    return 2 if kind == "TRANSPOSE_CONV" else 0


def arrange(kind: str, weight: np.ndarray, spaces: Spacing | None = None) -> np.ndarray:
    """A PyTorch weight in TFLite's layout.

    Args:
        weight: [O, I], [O, I, W], [O, I, H, W], or [I, O, H, W] for a transposed convolution.
        spaces: zeros that it is given (see `edgeq.export.tflite_transposed`).

    Returns:
        [O, I] for FULLY_CONNECTED, [1, H, W, O] for DEPTHWISE_CONV_2D, [O, H, W, I] for the others.
    """
    if kind == "FULLY_CONNECTED":
        return np.ascontiguousarray(weight)
    weight = spread(weight, spaces)
    if weight.ndim == 3:
        weight = weight[:, :, None, :]
    order = (0, 2, 3, 1) if kind == "CONV_2D" else (1, 2, 3, 0)
    return np.ascontiguousarray(weight.transpose(order))


def store_weights(
    model: Model, quantized: Quantized, group: Group, graph: Graph, operator: Any, activations: str
) -> None:
    """Replaces an operator's float constants by the planned integers.

    Args:
        activations: integer type of the layer's input and output.

    Raises:
        UnsupportedError: the file's constants are not the model's, or the weight's type has no place here.
    """
    _check(model, group, graph, operator)
    _put_integers(model, quantized, group, graph, operator)
    weight = quantized.weights[group.name]
    input_scale = quantized.input_scale(group)
    bias_type = _BIAS_TYPES[activations]
    bias = quantize_bias(quantized.biases[group.name], input_scale, weight.q).astype(bias_type)
    scales = bias_scale(input_scale, weight.q).reshape(-1)
    index = graph.tensor(group.bias or "", bias_type, bias.shape, bias)
    graph.quantize(index, bias_type, scales, np.zeros(len(scales), dtype=np.int64))
    _put_bias(graph, operator, index)


def store_dynamic_weights(model: Model, quantized: Quantized, group: Group, graph: Graph, operator: Any) -> None:
    """Replaces the float constants of a layer between floats by the planned integers and the corrected bias. Kernels
    that read integer weights beside a float input round that to 8 bits in every call.

    Raises:
        UnsupportedError: the file's constants are not the model's, or the weight's type has no place here.
    """
    _check(model, group, graph, operator)
    bias = quantized.biases[group.name]
    _put_integers(model, quantized, group, graph, operator)
    _put_bias(graph, operator, graph.tensor(group.bias or "", "float32", bias.shape, bias))


def store_weights_alone(
    model: Model, quantized: Quantized, group: Group, graph: Graph, operator: Any, name: str
) -> Any:
    """Replaces the float constants of a layer that computes in float by the planned integers and the corrected bias.

    The DEQUANTIZE in between keeps the activations in float (see `store_dynamic_weights`).

    Args:
        name: of the weight as float.

    Returns:
        The DEQUANTIZE that has to run before the layer.

    Raises:
        UnsupportedError: the file's constants are not the model's, or the weight's type has no place here.
    """
    store_dynamic_weights(model, quantized, group, graph, operator)
    integers = int(operator.inputs[WEIGHT_SLOT])
    real = graph.tensor(name, "float32", graph.shape(integers))
    operator.inputs[WEIGHT_SLOT] = real
    return graph.operator("DEQUANTIZE", [integers], [real], schema.DequantizeOptionsT())


def _put_integers(model: Model, quantized: Quantized, group: Group, graph: Graph, operator: Any) -> None:
    """Gives an operator the planned integers as its weight."""
    kind, weight = graph.kind(operator), quantized.weights[group.name]
    scheme = weight.q.scheme
    if scheme.dtype not in _WEIGHT_TYPES or scheme.group is not None or scheme.symmetry != "symmetric":
        grouped = "" if scheme.group is None else f" in groups of {scheme.group}"
        raise UnsupportedError(
            f"no {scheme.symmetry} {scheme.dtype} weights{grouped} in TFLite",
            where=f"layer {group.name}",
            remedy="take the kernel out of the target file, or choose another format",
        )
    integers = arrange(kind, weight.integers, spacing(model.nodes[group.root]))
    index = graph.tensor(group.weight or "", scheme.dtype, integers.shape, integers)
    scale, zero_point = (values.reshape(-1) for values in (weight.q.scale, weight.q.zero_point))
    graph.quantize(index, scheme.dtype, scale, zero_point, CHANNEL_AXIS[kind])
    operator.inputs[WEIGHT_SLOT] = index


def store_float_bias(model: Model, quantized: Quantized, group: Group, graph: Graph, operator: Any) -> None:
    """Writes a corrected bias into a layer that stays in float.

    A layer that was to run on integers and does not keeps its own bias: its weights are not rounded.
    """
    bias = quantized.biases.get(group.name)
    if bias is None or group.name in quantized.weights:
        return
    if np.array_equal(bias, model.state[group.bias or ""]):
        return
    _check(model, group, graph, operator)
    _put_bias(graph, operator, graph.tensor(group.bias or "", "float32", bias.shape, bias))


def _put_bias(graph: Graph, operator: Any, index: int) -> None:
    slot = bias_slot(graph.kind(operator))
    inputs = [int(i) for i in operator.inputs] + [-1] * (slot + 1 - len(operator.inputs))
    inputs[slot] = index
    operator.inputs = np.array(inputs, dtype=np.int32)


def merged_into(model: Model, group: Group, graph: Graph, operator: Any) -> str | None:
    """What of a layer the converter moved a factor or a shift into: its `weight`, its `bias`, or None."""
    state, kind = model.state, graph.kind(operator)
    stored = graph.constant(int(operator.inputs[WEIGHT_SLOT]))
    wanted = state[group.weight or ""]
    slot = bias_slot(kind)
    held = graph.constant(int(operator.inputs[slot])) if slot < len(operator.inputs) else None
    bias = state[group.bias or ""]
    held = np.zeros_like(bias) if held is None else held
    one_channel = kind != "DEPTHWISE_CONV_2D" or wanted.shape[1] == 1
    if stored is None or not one_channel or not _same(stored, arrange(kind, wanted, spacing(model.nodes[group.root]))):
        return "weight"
    return None if _same(held.reshape(-1), bias) else "bias"


def _check(model: Model, group: Group, graph: Graph, operator: Any) -> None:
    """Our integers would be wrong in a layer that something was moved into."""
    if what := merged_into(model, group, graph, operator):
        raise UnsupportedError(
            f"the TFLite converter merged something into its {what}",
            where=f"layer {group.name}",
            remedy="choose another format for this model",
        )


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    largest = float(np.abs(b).max(initial=0.0))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-5, atol=max(1e-6 * largest, 1e-30)))
