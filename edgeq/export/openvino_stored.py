"""Reads back what an OpenVINO IR stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.export.onnx_anew import names_anew
from edgeq.export.openvino import DYNAMIC
from edgeq.export.stored import Stored, StoredRange, StoredTensor, StoredWeight
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED
from edgeq.numerics.packing import BITS, unpack
from edgeq.runtimes.openvino import import_openvino

_FEW_BITS = {"i4": "int4", "u4": "uint4", "u2": "uint2"}
"""The types that numpy has no word for. 2-bit integers with a sign are u2 with 2 added, which is subtracted again."""
_COMPUTES = {"Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData", "GroupConvolutionBackpropData"}


def read_openvino(model: Model, path: Path, values: Mapping[str, str]) -> Stored:
    """Everything quantized in the file.

    Args:
        values: name of the ONNX value for each graph node: what quantizes it is named after it.
    """
    read = import_openvino().Core().read_model(path)
    dynamic = int(read.get_rt_info(["runtime_options", DYNAMIC]).astype(str))
    named = {op.get_friendly_name(): op for op in read.get_ops()}
    computed = [op for op in read.get_ops() if op.get_type_name() != "Result"]
    writer = {name: op for op in computed for port in op.outputs() for name in port.get_names()}
    tensors: dict[str, frozenset[StoredTensor | StoredRange]] = {}
    for node, value in values.items():
        # behind the last operator, the name that the user knows is that of the rounded value
        form = _range(writer.get(f"{value}_real")) or _range(writer.get(value)) or _pair(named, value)
        by_readers = (_range(writer.get(f"{name}_real")) for name in names_anew(node))
        forms = frozenset(one for one in (form, *by_readers) if one is not None)
        if forms:
            tensors[node] = forms
    weights: dict[str, StoredWeight] = {}
    integer: set[str] = set()
    for group in model.groups:
        stored = named.get(f"{group.weight}_quantized") if group.op in WEIGHTED else None
        if stored is None:
            continue
        (integers, dtype), levels = _integers(stored), _levels(stored)
        weight = model.state[group.weight or ""]
        computing = _computing(stored)
        if computing is None:
            continue
        scale = _constant(named, f"{group.weight}_quantized_scale")
        zero = _constant(named, f"{group.weight}_quantized_zero_point")
        assert scale is not None
        if computing.get_type_name() == "MatMul" and not computing.get_attributes()["transpose_b"]:
            # the outputs are the last axis, also of groups, the other way round than PyTorch
            integers, scale = (values.reshape(-1, len(weight)).T for values in (integers, scale))
            zero = zero if zero is None else zero.reshape(-1, len(weight)).T
        bias = _constant(named, f"{group.bias}_corrected")
        if zero is None:
            zero = np.zeros_like(integers, shape=scale.shape)
        bias_dtype = "" if bias is None else str(bias.dtype)
        weights[group.name] = StoredWeight(
            integers.reshape(weight.shape), dtype, scale, zero, bias, bias_dtype, levels=levels
        )
        row, weights_sharing = weight[0].size, len(weight) * weight[0].size // scale.size
        rounded = (
            dynamic and weights_sharing >= dynamic and row >= dynamic and len(weight) > 1 and _compressed(computing)
        )
        if rounded or _reads_integers(computing):
            integer.add(group.name)
    floats = [
        (op.get_type_name(), op.get_friendly_name(), "")
        for op in read.get_ops()
        if op.get_type_name() in _COMPUTES and not _reads_integers(op)
    ]
    return Stored(weights, tensors, frozenset(values), integer, floats)


def _integers(op: Any) -> tuple[np.ndarray, str]:
    """The values of a weight and their type in the file: a constant, or one of few bits that is widened to int8."""
    while op.get_type_name() in ("Convert", "Subtract"):
        op = op.input(0).get_source_output().get_node()
    held = op.get_element_type().get_type_name()
    if held not in _FEW_BITS:
        return np.asarray(op.data), str(op.data.dtype)
    dtype, added = _FEW_BITS[held], 0
    if dtype == "uint2" and _levels(op) is None:
        dtype, added = "int2", -2
    shape = tuple(op.shape)
    # OpenVINO gives the bytes themselves, in one row
    data, signed = np.asarray(op.data).view(np.uint8), held.startswith("i")
    values = unpack(data, math.prod(shape), BITS[dtype], signed=signed)
    return (values.astype(np.int8) + np.int8(added) if added else values).reshape(shape), dtype


def _levels(op: Any) -> np.ndarray | None:
    """The levels, float32, that the integers of a constant are places among; None where they are none."""
    converted = [port.get_node() for port in op.output(0).get_target_inputs()]
    readers = [port.get_node() for one in converted for port in one.output(0).get_target_inputs()]
    gather = next((reader for reader in readers if reader.get_type_name() == "Gather"), None)
    return None if gather is None else np.asarray(gather.input(0).get_source_output().get_node().data)


def _range(op: Any) -> StoredRange | None:
    """Of a FakeQuantize that rounds to the grid that it came from; or, before an integer output, to its integers."""
    kind = None
    if op is not None and op.get_type_name() == "Convert":
        kind = op.get_output_element_type(0).to_dtype()
        op = op.input(0).get_source_output().get_node()
    if op is None or op.get_type_name() != "FakeQuantize":
        return None
    low, high, to_low, to_high = (
        float(np.asarray(op.input(i).get_source_output().get_node().data).item()) for i in range(1, 5)
    )
    levels = int(op.get_attributes()["levels"])
    wanted = (low, high) if kind is None else (np.iinfo(kind).min, np.iinfo(kind).max)
    return StoredRange(levels, low, high) if (to_low, to_high) == wanted else None


def _pair(named: Mapping[str, Any], value: str) -> StoredTensor | None:
    """Of the operators on one side of the model's integer end: OpenVINO keeps the names of the Q/DQ constants."""
    scale, zero = named.get(f"{value}_scale"), named.get(f"{value}_zero_point")
    if scale is None or zero is None:
        return None
    point = np.asarray(zero.data)
    return StoredTensor(str(point.dtype), float(np.asarray(scale.data).item()), int(point.item()))


def _computing(weight: Any) -> Any:
    """The operator that computes with a constant; None if none does."""
    level = [weight]
    for _ in range(8):
        level = [port.get_node() for op in level for port in op.output(0).get_target_inputs()]
        for op in level:
            if op.get_type_name() in _COMPUTES:
                return op
    return None


def _constant(named: Mapping[str, Any], name: str) -> np.ndarray | None:
    op = named.get(name)
    return None if op is None else _integers(op)[0].reshape(-1)


def _compressed(op: Any) -> bool:
    """Whether an operator is a product with integers that are made float on their way, and only there."""
    if op.get_type_name() != "MatMul":
        return False
    op = op.input(1).get_source_output().get_node()
    while op.get_type_name() in ("Reshape", "Transpose", "Multiply", "Subtract"):
        kind, op = op.get_type_name(), op.input(0).get_source_output().get_node()
        if kind == "Reshape" and op.get_type_name() == "Convert":
            return False  # made float when the file is compiled
    return bool(op.get_type_name() == "Convert")


def _reads_integers(op: Any) -> bool:
    """Whether both inputs come, through element-wise steps, from 8-bit values."""
    return all(_integer_source(port.get_source_output().get_node(), 6) for port in list(op.inputs())[:2])


def _integer_source(op: Any, depth: int) -> bool:
    if op.get_output_element_type(0).get_type_name() in ("i8", "u8"):
        return True
    if depth == 0 or op.get_type_name() not in (
        "Convert",
        "Subtract",
        "Multiply",
        "Reshape",
        "Transpose",
        "FakeQuantize",
    ):
        return False
    if op.get_type_name() == "FakeQuantize":
        return bool(op.get_attributes()["levels"] <= 256)
    if op.get_type_name() == "Reshape" and op.input(0).get_source_output().get_node().get_type_name() == "Convert":
        return False  # of a constant that is made float when the file is compiled: its integers are only stored
    return _integer_source(op.input(0).get_source_output().get_node(), depth - 1)
