"""Small rewrites of a converted graph that leave its answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeq.export.tflite_graph import Graph

ACTIVATIONS: dict[int, str] = {
    schema.ActivationFunctionType.RELU: "RELU",
    schema.ActivationFunctionType.RELU_N1_TO_1: "RELU_N1_TO_1",
    schema.ActivationFunctionType.RELU6: "RELU6",
    schema.ActivationFunctionType.TANH: "TANH",
}
"""Activations inside of an operator, as the operator that computes the same."""

_KEEP = frozenset({"RELU", "RELU6"})
_FUSES = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL", "ADD", "SUB", "MUL"}
)


def average_without_transpose(graph: Graph) -> None:
    """A mean over pixels reads the convolution's own layout, where the converter transposed in front of it.

    Runtimes have fast kernels for a mean over the middle axes alone.
    """
    makers = {int(i): op for op in graph.operators for i in op.outputs}
    for operator in graph.operators:
        before = makers.get(int(operator.inputs[0])) if len(operator.inputs) else None
        if graph.kind(operator) != "MEAN" or operator.builtinOptions.keepDims:
            continue
        if before is None or graph.kind(before) != "TRANSPOSE":
            continue
        order, axes = graph.constant(int(before.inputs[1])), graph.constant(int(operator.inputs[1]))
        if order is None or axes is None:
            continue
        moved = sorted(int(order[int(a)]) for a in axes.ravel())
        left = [int(d) for i, d in enumerate(order) if i not in {int(a) % len(order) for a in axes.ravel()}]
        if left == sorted(left):
            values = np.array(moved, dtype=np.int32)
            operator.inputs = np.array(
                [int(before.inputs[0]), graph.tensor("axes", "int32", values.shape, values)], dtype=np.int32
            )
    drop_dead(graph)


def cancel_transposes(graph: Graph) -> None:
    """A transposition of a transposition that gives the first one's input is that input."""
    made_by = {int(i): op for op in graph.operators for i in op.outputs}
    stands_for: dict[int, int] = {}
    for operator in graph.operators:
        operator.inputs = np.array([stands_for.get(int(i), int(i)) for i in operator.inputs], dtype=np.int32)
        before = made_by.get(int(operator.inputs[0])) if len(operator.inputs) else None
        if graph.kind(operator) != "TRANSPOSE" or before is None or graph.kind(before) != "TRANSPOSE":
            continue
        first, second = (graph.constant(int(op.inputs[1])) for op in (before, operator))
        if first is not None and second is not None and list(first[second]) == list(range(len(first))):
            stands_for[int(operator.outputs[0])] = int(before.inputs[0])
    outputs = [stands_for.get(i, i) for i in graph.outputs]
    graph.set_ends(graph.inputs, outputs, ([graph.name(i) for i in graph.inputs], [graph.name(i) for i in outputs]))
    drop_dead(graph)


def drop_dead(graph: Graph) -> None:
    """Takes away operators that no output needs."""
    needed, kept = set(graph.outputs), []
    for operator in reversed(graph.operators):
        if any(int(i) in needed for i in operator.outputs):
            kept.append(operator)
            needed.update(int(i) for i in operator.inputs)
    graph.set_operators(kept[::-1])


def keep_int64_ends(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Gives the file's ends the 64-bit integers that the model has, where the converter took 32 bits for them.

    Args:
        inputs, outputs: the element types of the model's, such as `int64`.
    """
    new_inputs, new_outputs = graph.inputs, graph.outputs
    first: list[Any] = []
    last: list[Any] = []
    for position, (index, wanted) in enumerate(zip(graph.inputs, inputs, strict=True)):
        if (graph.dtype(index), wanted) == ("int32", "int64"):
            new_inputs[position] = _wider(graph, index)
            first.append(_cast(graph, new_inputs[position], index))
    for position, (index, wanted) in enumerate(zip(graph.outputs, outputs, strict=True)):
        if (graph.dtype(index), wanted) == ("int32", "int64"):
            new_outputs[position] = _wider(graph, index)
            last.append(_cast(graph, index, new_outputs[position]))
    if first or last:
        graph.set_operators([*first, *graph.operators, *last])
        names = ([graph.name(i) for i in new_inputs], [graph.name(i) for i in new_outputs])
        graph.set_ends(new_inputs, new_outputs, names)


def _wider(graph: Graph, index: int) -> int:
    return graph.tensor(f"{graph.name(index)}/int64", "int64", graph.shape(index))


def _cast(graph: Graph, source: int, result: int) -> Any:
    options = schema.CastOptionsT()
    options.inDataType, options.outDataType = (graph.tensors[i].type for i in (source, result))
    return graph.operator("CAST", [source], [result], options)


def product_of_values(graph: Graph) -> None:
    """A product of two computed matrices, which the converter calls FULLY_CONNECTED, becomes BATCH_MATMUL.

    Integer kernels of FULLY_CONNECTED expect constant weights, symmetric around zero.
    """
    for operator in graph.operators:
        reads = [int(i) for i in operator.inputs]
        if graph.kind(operator) != "FULLY_CONNECTED" or not graph.is_float(reads[1]) or (reads[2:] or [-1]) != [-1]:
            continue
        if operator.builtinOptions.fusedActivationFunction or not operator.builtinOptions.keepNumDims:
            continue
        options = schema.BatchMatMulOptionsT()
        options.adjY = True
        vars(operator).update(vars(graph.operator("BATCH_MATMUL", reads[:2], operator.outputs, options)))


def separate_activations(graph: Graph) -> None:
    """Takes activations out of operators whose integer kernels are planned without one.

    A convolution, linear or arithmetic operator keeps its ReLU or ReLU6; a pooling with a ReLU becomes two operators.
    """
    operators: list[Any] = []
    for operator in graph.operators:
        operators.append(operator)
        options = operator.builtinOptions
        name = ACTIVATIONS.get(getattr(options, "fusedActivationFunction", 0))
        if name is None or (name in _KEEP and graph.kind(operator) in _FUSES):
            continue
        options.fusedActivationFunction = schema.ActivationFunctionType.NONE
        output = int(operator.outputs[0])
        between = graph.tensor(f"before {graph.name(output)}", "float32", graph.shape(output))
        operator.outputs = np.array([between], dtype=np.int32)
        operators.append(graph.operator(name, [between], [output]))
    graph.set_operators(operators)
