"""A rounded decoder as an ONNX file: products by MatMulNBits, words by GatherBlockQuantized, each matrix stored once.

Operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md. All values lie in a file beside
the graph, so that no size is too large, and are written one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeq.language.decoder import Decoder, Weight, read_tensor
from edgeq.language.rounding import Rounded
from edgeq.numerics.weights import QuantizedWeight

_INT8 = 4
"""The accuracy level at which a product rounds its input to 8 bits, a scale for each block."""

_DOMAIN = "com.microsoft"
_PAGE, _LARGE = 4096, 1 << 20
"""Large values begin at a page, so that they can be mapped; small ones would be half air."""


def write_onnx(decoder: Decoder, rounded: Rounded, folder: Path) -> Path:
    """Writes `model.onnx` and `model.onnx.data` into a folder.

    Returns:
        The path of `model.onnx`.
    """
    path = folder / "model.onnx"
    weights = {one.name: one for one in decoder.weights if one.name in rounded.weights}
    graph = decoder.proto.graph
    model = onnx.ModelProto()
    model.CopyFrom(decoder.proto)
    del model.graph.initializer[:], model.graph.node[:]
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    for node in graph.node:
        model.graph.node.extend(_rounded(node, weights, rounded, turned))
    read = {name for node in model.graph.node for name in node.input}
    with _data(path.with_name(f"{path.name}.data")) as add:
        for name in decoder.initializers:
            if name in weights:
                for tensor, array in _stored(weights[name], rounded.weights[name]).items():
                    if tensor in read:
                        model.graph.initializer.append(add(tensor, array))
            elif name in read:
                array = rounded.floats[name] if name in rounded.floats else decoder.array(name)
                model.graph.initializer.append(add(name, array))
    if any(weight.embedding and weight.linear for weight in weights.values()):
        model.graph.initializer.append(helper.make_tensor(_ROWS, TensorProto.INT64, [2], [0, -1]))
    for value in (*model.graph.input, *model.graph.output):
        _closed(value, decoder)
    path.write_bytes(model.SerializeToString())
    return path


def _closed(value: onnx.ValueInfoProto, decoder: Decoder) -> None:
    """Says how many numbers a cache has for each head, where the graph leaves it open: nobody has to guess then."""
    shape = value.type.tensor_type.shape.dim
    if len(shape) == 4 and not shape[3].dim_value:
        shape[3].dim_value = decoder.head_size


_ROWS = "rows_as_they_are"


def _rounded(
    node: onnx.NodeProto, weights: dict[str, Weight], rounded: Rounded, turned: dict[str, str]
) -> list[onnx.NodeProto]:
    """A node, or what stands for it."""
    if node.op_type == "Transpose" and node.input[0] in weights:
        return []
    if node.op_type == "MatMul" and node.input[1] in weights:
        weight = weights[node.input[1]]
        w = rounded.weights[weight.name]
        attributes = {"K": weight.columns, "N": weight.rows, "bits": w.q.scheme.width, "block_size": w.q.scheme.group}
        if weight.name in rounded.dynamic:
            attributes["accuracy_level"] = _INT8
        inputs = [node.input[0], *_names(weight, w)]
        return [helper.make_node("MatMulNBits", inputs, node.output, node.name, domain=_DOMAIN, **attributes)]
    table = turned.get(node.input[0], node.input[0]) if node.op_type == "Gather" else ""
    if table not in weights:
        return [node]
    weight = weights[table]
    w = rounded.weights[table]
    data, *others = _names(weight, w)
    attributes = {"bits": w.q.scheme.width, "block_size": w.q.scheme.group, "gather_axis": 0, "quantize_axis": 1}
    rows = f"{data}.rows"
    before = [helper.make_node("Reshape", [data, _ROWS], [rows], f"{node.name}/rows")] if weight.linear else []
    inputs = [rows if weight.linear else data, node.input[1], *others]
    return [
        *before,
        helper.make_node("GatherBlockQuantized", inputs, node.output, node.name, domain=_DOMAIN, **attributes),
    ]


def _names(weight: Weight, w: QuantizedWeight) -> list[str]:
    zero = [] if w.q.scheme.symmetry == "symmetric" else [f"{weight.name}.zero_points"]
    return [f"{weight.name}.integers", f"{weight.name}.scales", *zero]


def _stored(weight: Weight, w: QuantizedWeight) -> dict[str, NDArray[Any]]:
    """Integers without a sign, as many in a byte as go in, the first in its lowest bits."""
    scheme = w.q.scheme
    bits, groups = scheme.width, w.integers.shape[1] // (scheme.group or 1)
    above = 1 << (bits - 1) if scheme.signed else 0
    blocks = packed(w.integers.astype(np.int16) + above, bits)
    integers = blocks.reshape(weight.rows, groups, -1) if weight.linear else blocks
    zero = packed(w.q.zero_point.reshape(weight.rows, groups) + above, bits)
    return {
        f"{weight.name}.integers": integers,
        f"{weight.name}.scales": w.q.scale.reshape(weight.rows, groups),
        f"{weight.name}.zero_points": zero,
    }


def packed(integers: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """uint8 [rows, ceil(columns * bits / 8)], of integers from 0 on, [rows, columns]."""
    each = 8 // bits
    rows, columns = integers.shape
    filled = np.zeros((rows, -(-columns // each), each), np.uint8)
    filled.reshape(rows, -1)[:, :columns] = integers
    found: NDArray[np.uint8] = np.bitwise_or.reduce(filled << np.arange(0, 8, bits, dtype=np.uint8), axis=2)
    return found


def unpacked(data: NDArray[np.uint8], columns: int, bits: int) -> NDArray[np.uint8]:
    """The way back: uint8 [rows, columns]."""
    parts = (data[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(parts.reshape(len(data), -1)[:, :columns])


@contextmanager
def _data(path: Path) -> Iterator[Any]:
    """A file that values are added to; each is told as a tensor that lies there."""
    with path.open("wb") as file:

        def add(name: str, array: NDArray[Any]) -> onnx.TensorProto:
            file.write(b"\0" * (-file.tell() % (_PAGE if array.nbytes >= _LARGE else 64)))
            tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
            tensor.dims.extend(array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", path.name), ("offset", file.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            np.ascontiguousarray(array).tofile(file)
            return tensor

        yield add


class Stored(NamedTuple):
    """A matrix as a file has it.

    Attributes:
        integers: [rows, columns], without a sign.
        scale: float32 [rows, groups].
        zero_point: likewise, without a sign.
        bits: of each integer.
    """

    integers: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    bits: int


def read_back(path: Path) -> dict[str, Stored]:
    """By initializer of the float file, what a file written here holds, read from it alone."""
    model = onnx.load(path, load_external_data=False)
    tensors = {one.name: one for one in model.graph.initializer}
    reshaped = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Reshape"}
    found: dict[str, Stored] = {}
    for node in model.graph.node:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        told = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        data, rest = (
            (node.input[1], node.input[2:]) if node.op_type == "MatMulNBits" else (node.input[0], node.input[2:])
        )
        data = reshaped.get(data, data)
        bits = told["bits"]
        raw = read_tensor(path, tensors[data])
        scale = read_tensor(path, tensors[rest[0]])
        columns = scale.shape[1] * told["block_size"]
        integers = unpacked(raw.reshape(len(raw), -1), columns, bits)
        if len(rest) > 1 and rest[1]:
            zero = unpacked(read_tensor(path, tensors[rest[1]]), scale.shape[1], bits)
        else:
            zero = np.full(scale.shape, 1 << (bits - 1), np.uint8)
        found[data.removesuffix(".integers")] = Stored(integers, scale, zero, bits)
    return found
