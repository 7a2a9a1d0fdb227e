"""Reads back what an ExecuTorch file stores in the graphs that XNNPACK runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UnsupportedError
from edgeq.export.executorch_program import handles
from edgeq.export.stored import Stored, StoredTensor, StoredWeight
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.numerics.weights import quantize_bias
from edgeq.on_device import pte
from edgeq.quantization.quantized import Quantized

_WEIGHTED = frozenset({"XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d", "XNNFullyConnected"})
_INTEGERS = {"xnn_datatype_qint8": "int8", "xnn_datatype_qcint8": "int8"}
_NUMBERS = {
    **_INTEGERS,
    "xnn_datatype_qint32": "int32",
    "xnn_datatype_qcint32": "int32",
    "xnn_datatype_fp32": "float32",
}
_PYTORCHS_AXES = {
    "XNNConv2d": (0, 3, 1, 2),
    "XNNDepthwiseConv2d": (3, 0, 1, 2),
    "XNNConvTranspose2d": (3, 0, 1, 2),
    "XNNFullyConnected": (0, 1),
}
"""How the axes of a stored weight come to lie as PyTorch has them."""


def read_executorch(model: Model, path: Path) -> Stored:
    """Everything quantized in the file."""
    file = pte.read(path.read_bytes())
    weights: dict[str, StoredWeight] = {}
    tensors: dict[str, set[StoredTensor]] = {}
    held: set[str] = set()
    integer: set[str] = set()
    floats: list[tuple[str, str, str]] = []
    groups = {member: group for group in model.groups for member in group.members}
    for graph, node, name in _operators(model, file):
        values, kind = graph["values"], node["xnode_union_type"]
        group = groups.get(name)
        if group is not None and name == group.root and node["output_min_max"] is not None:
            name = group.output  # its activation is a limit of it
        ends = [values[end] for end in pte.outputs_of(node)]
        if kind == "XNNConvert":
            ends += [values[end] for end in pte.inputs_of(node)]
        held.add(name)
        tensors.setdefault(name, set()).update(_grid(v) for v in ends if v["how"] == "PerTensorQuant")
        if kind not in _WEIGHTED or group is None:
            continue
        weight = values[node["xnode_union"]["filter_id"]]
        if weight["datatype"] in _INTEGERS:
            weights[group.name] = _weight(model, file, graph, node, group)
        if all(values[end]["datatype"] in _INTEGERS for end in (pte.inputs_of(node)[0], *pte.outputs_of(node))):
            integer.add(group.name)
        else:
            floats.append((kind, group.name, ""))
    for call in file.plan["chains"][0]["instructions"]:
        if call["instr_args_type"] == "KernelCall":
            operator = file.plan["operators"][call["instr_args"]["op_index"]]
            floats.append((operator["name"], "", "XNNPACK does not take it"))
    kept = {name: frozenset(forms) for name, forms in tensors.items() if forms}
    return Stored(weights, kept, frozenset(held), integer, floats)


def with_exact_biases(model: Model, quantized: Quantized, data: bytes) -> bytes:
    """A file with the planned integers in place of biases that float32, which they were handed over in, cannot say.

    Raises:
        UnsupportedError: two layers whose biases differ have one constant there.
    """
    file, changed = pte.read(data), bytearray(data)
    groups = {group.root: group for group in model.groups if group.name in quantized.weights}
    planned: dict[int, bytes] = {}
    for graph, node, name in _operators(model, file):
        group = groups.get(name)
        if group is None or node["xnode_union_type"] not in _WEIGHTED:
            continue
        bias = quantized.biases[group.name]
        integers = quantize_bias(bias, quantized.input_scale(group), quantized.weights[group.name].q)
        start, size = _place(file, graph, graph["values"][node["xnode_union"]["bias_id"]]["constant_buffer_idx"])
        wanted = integers.astype("<i4").tobytes()
        if size != len(wanted) or planned.setdefault(start, wanted) != wanted:
            raise UnsupportedError(
                "its bias cannot be told from that of another layer in the file",
                where=f"layer {group.name}",
                remedy="leave the layer in float, by a plan, or choose another format",
            )
        changed[start : start + size] = wanted
    return bytes(changed)


def _operators(model: Model, file: pte.File) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Every operator that XNNPACK runs, with its graph, and the graph node of the model that it comes from."""
    names = {handle: name for name, handle in handles(model).items()}
    for graph in file.graphs.values():
        for node in graph["xnodes"]:
            if name := names.get(node["debug_handle"], ""):
                yield graph, node, name


def _grid(value: Mapping[str, Any]) -> StoredTensor:
    params = value["quant_params"]
    return StoredTensor(_INTEGERS.get(value["datatype"], value["datatype"]), params["scale"], params["zero_point"])


def _weight(
    model: Model, file: pte.File, graph: Mapping[str, Any], node: Mapping[str, Any], group: Group
) -> StoredWeight:
    values, given = graph["values"], node["xnode_union"]
    weight, bias = values[given["filter_id"]], values.get(given["bias_id"])
    integers = _numbers(file, graph, weight).reshape(weight["dims"]).transpose(_PYTORCHS_AXES[node["xnode_union_type"]])
    scale = _scale(file, graph, weight)
    stored = None if bias is None else _numbers(file, graph, bias)
    return StoredWeight(
        integers=integers.reshape(model.state[group.weight or ""].shape),
        dtype=_INTEGERS[weight["datatype"]],
        scale=scale,
        zero_point=np.zeros(scale.shape, np.int32),
        bias=stored,
        bias_dtype="" if stored is None else stored.dtype.name,
        bias_scale=None if bias is None or not bias["how"] else _scale(file, graph, bias),
    )


def _scale(file: pte.File, graph: Mapping[str, Any], value: Mapping[str, Any]) -> NDArray[np.float32]:
    params = value["quant_params"]
    if value["how"] == "PerTensorQuant":
        return np.array([params["scale"]], np.float32)
    if params["scale"]:
        return np.array(params["scale"], np.float32)
    start, size = _place(file, graph, params["scale_buffer_idx"])
    return np.frombuffer(file.data[start : start + size], "<f4")


def _numbers(file: pte.File, graph: Mapping[str, Any], value: Mapping[str, Any]) -> NDArray[Any]:
    start, size = _place(file, graph, value["constant_buffer_idx"])
    return np.frombuffer(file.data[start : start + size], _NUMBERS[value["datatype"]])


def _place(file: pte.File, graph: Mapping[str, Any], index: int) -> tuple[int, int]:
    """Where a constant of a graph lies in the file: start and size."""
    constant = graph["constant_data"][index]
    return file.places[constant["named_key"]][0], constant["size"]
