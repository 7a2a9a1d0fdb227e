"""Reads back what a `.tflite` file stores, from its bytes and tensor names alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.export.stored import Stored, StoredRange, StoredTensor, StoredWeight
from edgeq.export.tflite_forms import INTEGER_FORMS
from edgeq.export.tflite_graph import Graph
from edgeq.export.tflite_match import MOVERS
from edgeq.export.tflite_transposed import gathered, spacing
from edgeq.export.tflite_weights import data_slot
from edgeq.model.groups import Group
from edgeq.model.model import Model

_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})
_FROM_STORED = {"CONV_2D": (0, 3, 1, 2), "TRANSPOSE_CONV": (3, 0, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2)}
"""Order of the axes that leads from the stored weight to PyTorch's."""


def read_tflite(model: Model, path: Path, held: frozenset[str], reasons: Mapping[str, str]) -> Stored:
    """Everything quantized in a file that `edgeq.export.tflite` wrote.

    Args:
        held: graph nodes whose values the float file holds.
        reasons: by group name, why it was to run as it does: said beside what runs in float.
    """
    graph = Graph(path.read_bytes())
    made_by = {int(i): op for op in graph.operators for i in op.outputs}
    made = {graph.name(int(i)): (op, int(i)) for op in graph.operators for i in op.outputs}
    outputs = dict(zip(model.output_nodes, model.output_names, strict=True))
    weights: dict[str, StoredWeight] = {}
    integer: set[str] = set()
    for group in model.groups:
        maker = made.get(f"{group.name}/inner") or made.get(group.name) or made.get(outputs.get(group.output, ""))
        if maker is None:
            continue
        operator, output = maker
        kind = graph.kind(operator)
        data = int(operator.inputs[data_slot(kind)])
        dynamic = kind in _WEIGHTED and graph.dtype(int(operator.inputs[1])).startswith("int")
        if dynamic or (_integer(graph, data) and _integer(graph, output)):
            integer.add(group.name)
        if kind in _WEIGHTED and group.weight is not None:
            found = _weight(model, group, graph, operator, kind, made_by)
            if found is not None:
                weights[group.name] = found
    floats = [
        (graph.kind(op), name := graph.name(int(op.outputs[0])), reasons.get(_base(name), ""))
        for op in graph.operators
        if graph.kind(op) not in _CONVERSIONS and any(graph.is_float(int(i)) for i in op.outputs)
    ]
    return Stored(weights, _tensors(model, graph), held, integer, floats)


def _tensors(model: Model, graph: Graph) -> dict[str, frozenset[StoredTensor | StoredRange]]:
    forms: dict[str, set[StoredTensor]] = {}
    for index in range(len(graph.tensors)):
        if graph.constant(index) is not None:
            continue  # a weight may carry the name of its layer
        quantization = _quantization(graph, index)
        forms.setdefault(_base(graph.name(index)), set()).update([quantization] if quantization else ())
    for name in list(forms):  # what the converter moves, such as a padding in front of a layer, is the same values
        stem, _, kind = re.sub(r"#\d+$", "", name).partition("/")
        if kind.upper() in MOVERS:
            forms.setdefault(stem, set()).update(forms[name])
    outputs = dict(zip(model.output_nodes, model.output_names, strict=True))
    computes = {graph.name(int(i)): graph.kind(op) for op in graph.operators for i in op.outputs}
    wanted = dict(zip(model.input_nodes, (spec.name for spec in model.inputs), strict=True))
    for group in model.groups:
        separate = f"{group.name}/{group.activation_op}"
        alone = separate in forms or computes.get(outputs.get(group.output, ""), "") not in _writes(group)
        if group.activation is None or not alone:
            wanted[group.output] = group.name
        else:
            wanted[group.root], wanted[group.activation] = group.name, separate
    names = {group.name for group in model.groups}
    for name in [n for n in forms if n not in names]:  # a name that was taken got a number
        forms.setdefault(re.sub(r"#\d+$", "", name), set()).update(forms[name])
    return {
        node: frozenset(stored)
        for node, name in wanted.items()
        if (stored := forms.get(name) or forms.get(outputs.get(node, "")))
    }


def _writes(group: Group) -> frozenset[str]:
    """What may write a group's value where its activation is part of its kernel; nothing where it is no output."""
    return INTEGER_FORMS.get(group.op, frozenset()) | _CONVERSIONS | MOVERS | {""}


def _base(name: str) -> str:
    """A tensor's name without what says in which form it is."""
    return re.sub(r"(/inner|/(int8|int16|float32)(#\d+)?)+$", "", name)


def _integer(graph: Graph, index: int) -> bool:
    return graph.dtype(index) in ("int8", "int16")


def _quantization(graph: Graph, index: int) -> StoredTensor | None:
    q = graph.quantization(index)
    if q is None or not _integer(graph, index):
        return None
    return StoredTensor(graph.dtype(index), float(q[0][0]), int(q[1][0]))


def _weight(
    model: Model, group: Group, graph: Graph, operator: Any, kind: str, made_by: Mapping[int, Any]
) -> StoredWeight | None:
    index = int(operator.inputs[1])
    if index in made_by and graph.kind(made_by[index]) == "DEQUANTIZE":  # its weights alone are integers
        index = int(made_by[index].inputs[0])
    q, integers = graph.quantization(index), graph.constant(index)
    if q is None or integers is None:
        return None
    shape = model.state[group.weight or ""].shape
    if kind in _FROM_STORED:
        integers = integers.transpose(_FROM_STORED[kind])
        integers = gathered(integers, shape, spacing(model.nodes[group.root]))
    slot = 3 if kind == "TRANSPOSE_CONV" else 2
    bias = graph.constant(int(operator.inputs[slot])) if slot < len(operator.inputs) else None
    bias_dtype = "" if bias is None else str(bias.dtype)
    return StoredWeight(integers.reshape(shape), graph.dtype(index), q[0], q[1].astype(np.int32), bias, bias_dtype)
