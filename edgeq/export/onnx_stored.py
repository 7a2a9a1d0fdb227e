"""Reads back what an ONNX file stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from edgeq.export.onnx_anew import names_anew
from edgeq.export.onnx_constant import COMPUTED_ONCE
from edgeq.export.onnx_narrow import ENDS
from edgeq.export.stored import Stored, StoredRange, StoredTensor, StoredWeight
from edgeq.model.graph import Node
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED
from edgeq.model.shuffled import gathered, shape_of_weight, shuffle_of
from edgeq.numerics.packing import BITS

_INVISIBLE = {"QuantizeLinear", "DequantizeLinear", "Identity", "DynamicQuantizeLinear", "MatMulInteger"}
_MOVES_INTEGERS = ("DepthToSpace", "Slice")
"""What stands between a QuantizeLinear and its DequantizeLinear (see `edgeq.export.onnx_shuffled`)."""


_ALONE = "its weights alone are integers"


class _File(NamedTuple):
    """An ONNX graph, and what is asked of it.

    Attributes:
        nodes: in order.
        constants, types: values and names of types of the initializers.
        producer: by name of a value, what computes it.
        readers: by name of a value, what reads it.
    """

    nodes: Sequence[onnx.NodeProto]
    constants: dict[str, np.ndarray]
    types: dict[str, str]
    producer: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]


def _open(path: Path) -> _File:
    graph = onnx.load(path).graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return _File(
        nodes=graph.node,
        constants={i.name: _values(i) for i in graph.initializer},
        types={i.name: onnx.TensorProto.DataType.Name(i.data_type).lower() for i in graph.initializer},
        producer={name: node for node in graph.node for name in node.output},
        readers=readers,
    )


def read_onnx(model: Model, path: Path, values: Mapping[str, str], *, low_bits: bool = False) -> Stored:
    """Everything quantized in the file.

    Args:
        values: name of the ONNX value for each graph node (see `FloatOnnx`).
        low_bits: the runtime's integer kernels read weights of fewer than 8 bits as they are stored.
    """
    file = _open(path)
    by_name = {node.name: node for node in file.nodes}
    weights: dict[str, StoredWeight] = {}
    integer: set[str] = set()
    floats: list[tuple[str, str, str]] = []
    for group in model.groups:
        node = by_name.get(group.name) if group.op in WEIGHTED or group.op == "matmul" else None
        if node is None:
            continue
        if group.op == "matmul":
            if all(_dequantized(name, file.producer) for name in node.input):
                integer.add(group.name)
            continue
        weight, in_float = _read_layer(model, group, node, file, low_bits)
        if weight is not None:
            weights[group.name] = weight
        if in_float is None:
            integer.add(group.name)
        else:
            floats.append((node.op_type, group.name, in_float))
    floats += [
        (n.op_type, n.name, "")
        for n in file.nodes
        if n.op_type not in _INVISIBLE
        and not _on_integers(n, file.producer, file.readers)
        and not _constant(n.output[0], file.constants, file.producer)
    ]
    tensors = _read_tensors(file, values)
    return Stored(weights, tensors, frozenset(values), integer, [f for f in floats if f[1] not in integer])


def _read_tensors(file: _File, values: Mapping[str, str]) -> dict[str, frozenset[StoredTensor | StoredRange]]:
    """By graph node, the integers that its value is stored in."""
    tensors: dict[str, frozenset[StoredTensor | StoredRange]] = {}
    types = {**file.types, **_narrow_types(file)}
    for graph_node, value in values.items():
        forms: set[StoredTensor] = set()
        pairs = [(n.input[1], n.input[2]) for n in _quantizations(value, file.readers, file.producer)]
        anew = [f"{name}_zero_point" for name in names_anew(graph_node)]
        pairs += [(zero.replace("_zero_point", "_scale"), z) for zero in anew for z in (zero, f"{zero}_in_bytes")]
        for scale, zero in pairs:
            if scale in file.constants and zero in file.constants:
                forms |= {
                    StoredTensor(types[zero], *one) for one in _steps(file.constants[scale], file.constants[zero])
                }
        if forms:
            tensors[graph_node] = frozenset(forms)
    return tensors


def _narrow_types(file: _File) -> dict[str, str]:
    """By the zero point of values of fewer than 8 bits, which type that is: they are cut off at its ends."""
    found: dict[str, str] = {}
    for node in file.nodes:
        quantize = file.producer.get(node.input[0]) if node.op_type == "Clip" else None
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            ends = tuple(int(file.constants[name]) for name in node.input[1:3])
            kind = next((k for k, own in ENDS.items() if own == ends), None)
            found[quantize.input[2]] = "" if kind is None else kind.name.lower()
    return found


def _read_layer(
    model: Model, group: Group, node: onnx.NodeProto, file: _File, low_bits: bool
) -> tuple[StoredWeight | None, str | None]:
    """The weight of a layer, if it is stored as integers; and why it computes in float, None if it does not."""
    constants, types, producer = file.constants, file.types, file.producer
    if node.op_type == "MatMulInteger":
        return _dynamic(node, file)
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB"))
    bias, bias_scale = _bias(node, constants, producer, file.readers) if group.bias else (None, None)
    bias_dtype = "" if bias is None else str(bias.dtype)
    dequantize = producer.get(node.input[1])
    blocks = _blocks(dequantize, file, turned)
    if blocks is not None:
        return replace(blocks, bias=bias, bias_dtype=bias_dtype), _ALONE
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        alone = _expanded(node.input[1], constants, types, producer, turned)
        if alone is None:
            return None, ""
        integers = alone.integers.reshape(model.state[group.weight or ""].shape)
        weight = replace(alone, integers=integers, bias=bias, bias_dtype=bias_dtype)
        return weight, _ALONE
    stored = _stored(dequantize.input[0], constants, producer)
    integers, (scale, zero) = constants[stored], (constants[name] for name in dequantize.input[1:])
    integers = integers.T if turned else integers
    weight = StoredWeight(integers, types[stored], scale, zero, bias, bias_dtype, bias_scale)
    if group.op == "conv_transpose2d" and node.op_type == "Conv":
        weight = _unshuffled(model.nodes[group.root], weight)
    if not _dequantized(node.input[0], producer):
        return weight, "its input is not quantized"
    narrow = types.get(dequantize.input[0]) in BITS and not low_bits
    return weight, "its weight is not widened to int8" if narrow else None


def _blocks(made_by: onnx.NodeProto | None, file: _File, turned: bool) -> StoredWeight | None:
    """A weight under a DequantizeLinear by blocks (see `edgeq.export.onnx_blocks`), as [outputs, inputs]; None where
    there is none."""
    if made_by is not None and made_by.op_type == "Transpose":
        made_by, turned = file.producer.get(made_by.input[0]), not turned
    if made_by is None or made_by.op_type != "DequantizeLinear" or not _attribute(made_by, "block_size"):
        return None
    integers, scale, *zero = (file.constants[name].T if turned else file.constants[name] for name in made_by.input)
    point = zero[0] if zero else np.zeros((), np.int32)
    return StoredWeight(integers, file.types[made_by.input[0]], scale, point, None, "")


def _dynamic(node: onnx.NodeProto, file: _File) -> tuple[StoredWeight, str | None]:
    """The same of a product of integers (see `edgeq.export.onnx_dynamic`)."""
    stored = _stored(node.input[1], file.constants, file.producer)
    (cast,) = file.readers[node.output[0]]
    (scaled,) = file.readers[cast.output[0]]
    (added,) = file.readers[scaled.output[0]]
    scale = file.constants[file.producer[scaled.input[1]].input[1]]
    bias = next(file.constants[name] for name in added.input if name in file.constants)
    weight = StoredWeight(
        file.constants[stored].T, file.types[stored], scale, np.zeros((), np.int32), bias, str(bias.dtype)
    )
    rounded = file.producer.get(node.input[0])
    whole = rounded is not None and rounded.op_type == "DynamicQuantizeLinear"
    return weight, None if whole else "its input is not rounded in every call"


def _unshuffled(root: Node, stored: StoredWeight) -> StoredWeight:
    """Of a transposed convolution that is stored as a convolution (see `edgeq.export.onnx_shuffled`): what is there by
    channel is there once for each phase."""
    shuffle, shape = shuffle_of(root), shape_of_weight(root)
    if shuffle is None:
        return stored

    def once(values: np.ndarray) -> np.ndarray:
        first = values[: shape[1]] if values.ndim else values
        return first if values.ndim and np.array_equal(np.tile(first, shuffle.stride**2), values) else values

    return replace(
        stored,
        integers=gathered(stored.integers, shape, shuffle),
        scale=once(stored.scale),
        zero_point=once(stored.zero_point),
        bias=None if stored.bias is None else once(stored.bias),
        bias_scale=None if stored.bias_scale is None else once(stored.bias_scale),
    )


def _steps(scale: np.ndarray, zero: np.ndarray) -> set[tuple[float, int]]:
    """Every scale with its zero point. The dequantization in front of a float layer is by channel, and repeats one."""
    return {(float(s), int(z)) for s, z in zip(scale.reshape(-1), zero.reshape(-1), strict=True)}


def _values(tensor: onnx.TensorProto) -> np.ndarray:
    """A constant's values; those of 2 and 4 bits, for which numpy has no type, as int8 or uint8."""
    values: np.ndarray = numpy_helper.to_array(tensor)
    kind = onnx.TensorProto
    held = {kind.INT2: np.int8, kind.INT4: np.int8, kind.UINT2: np.uint8, kind.UINT4: np.uint8}
    return values.astype(held.get(tensor.data_type, values.dtype))


def _stored(value: str, constants: Mapping[str, np.ndarray], producer: Mapping[str, onnx.NodeProto]) -> str:
    """The constant behind what a DequantizeLinear reads: itself, or one of fewer bits that is widened to int8."""
    made_by = producer.get(value)
    return made_by.input[0] if made_by is not None and _widens(made_by, constants) else value


def _widens(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether an operator only makes a constant int8, which runtimes do once, when they load the file."""
    return node.op_type == "Cast" and node.input[0] in constants and _attribute(node, "to") == onnx.TensorProto.INT8


def _constant(value: str, constants: Mapping[str, np.ndarray], producer: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a value is computed once: from constants that are made float or int8, scaled and shaped."""
    made_by = producer.get(value)
    return (
        made_by is not None
        and made_by.op_type in COMPUTED_ONCE
        and all(name in constants or _constant(name, constants, producer) for name in made_by.input)
    )


def _expanded(
    value: str,
    constants: Mapping[str, np.ndarray],
    types: Mapping[str, str],
    producer: Mapping[str, onnx.NodeProto],
    turned: bool,
) -> StoredWeight | None:
    """Integers that are made float, less their zero points, or the places of levels, and multiplied by their scales, as
    [outputs, ...]; None where a weight is none."""
    product = producer.get(value)
    if product is not None and product.op_type == "Reshape":
        product = producer.get(product.input[0])
    if product is None or product.op_type != "Mul":
        return None
    made_float, scale = producer[product.input[0]], constants[product.input[1]]
    shape, zero, levels = None, np.zeros((), np.int32), None
    if made_float.op_type == "Sub":
        zero = constants[producer[made_float.input[1]].input[0]]
        made_float = producer[made_float.input[0]]
    if made_float.op_type == "Reshape":
        shape, made_float = constants[made_float.input[1]], producer[made_float.input[0]]
    if made_float.op_type == "Gather":
        levels, made_float = constants[made_float.input[0]], producer[made_float.input[1]]
    integers = constants[made_float.input[0]]
    integers = integers if shape is None else integers.reshape(shape)
    if turned:  # the outputs are the last axis
        integers, scale = np.moveaxis(integers, -1, 0), np.moveaxis(scale, -1, 0)
        zero = np.moveaxis(zero, -1, 0) if zero.ndim else zero
    return StoredWeight(integers, types[made_float.input[0]], scale, zero, None, "", levels=levels)


def _quantizations(
    value: str, readers: Mapping[str, list[onnx.NodeProto]], producer: Mapping[str, onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """The nodes that quantize a value, and those that round it anew behind the first."""
    first = _quantization(value, readers, producer)
    if first is None:
        return []
    others = [n for n in readers.get(value, ()) if n.op_type == "QuantizeLinear" and n is not first]
    integers = first.input[0] if first.op_type == "DequantizeLinear" else first.output[0]
    while readers.get(integers) and readers[integers][0].op_type in _MOVES_INTEGERS:
        integers = readers[integers][0].output[0]
    reals = [n.output[0] for n in readers.get(integers, ()) if n.op_type == "DequantizeLinear"]
    return [first, *others, *(n for real in reals for n in readers.get(real, ()) if n.op_type == "QuantizeLinear")]


def _quantization(
    value: str, readers: Mapping[str, list[onnx.NodeProto]], producer: Mapping[str, onnx.NodeProto]
) -> onnx.NodeProto | None:
    """The node that quantizes a value, also where an output's name moved behind it, or an input is integer itself."""
    for name in (f"{value}_before", value):
        for node in readers.get(name, []):
            if node.op_type == "QuantizeLinear":
                return node
    made_by = producer.get(value)
    if made_by is not None and made_by.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return made_by
    only = readers.get(value, [])
    return only[0] if made_by is None and only and only[0].op_type == "DequantizeLinear" else None


def _dequantized(value: str, producer: Mapping[str, onnx.NodeProto]) -> bool:
    made_by = producer.get(value)
    return made_by is not None and made_by.op_type == "DequantizeLinear"


def _on_integers(
    node: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto], readers: Mapping[str, list[onnx.NodeProto]]
) -> bool:
    source = producer.get(node.input[0]) if node.input else None
    if source is None:
        return False
    if node.op_type in _MOVES_INTEGERS and source.op_type in {"QuantizeLinear", *_MOVES_INTEGERS}:
        return source.op_type == "QuantizeLinear" or _on_integers(source, producer, readers)
    return source.op_type == "DequantizeLinear" or _fused_activation(node, producer)


def _fused_activation(node: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto]) -> bool:
    source = producer.get(node.input[0])
    before = producer.get(source.input[0]) if source is not None and source.input else None
    return node.op_type in ("Relu", "Clip") and before is not None and before.op_type == "DequantizeLinear"


def _bias(
    node: onnx.NodeProto,
    constants: Mapping[str, np.ndarray],
    producer: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, list[onnx.NodeProto]],
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The stored bias, and its scale where it is stored as integers."""
    if node.op_type == "MatMul":
        addition = readers[node.output[0]][0]
        name = next(n for n in addition.input if n != node.output[0])
    elif len(node.input) > 2:
        name = node.input[2]
    else:
        return None, None
    made_by = producer.get(name)
    if made_by is None:
        return constants[name], None
    return constants[made_by.input[0]], constants[made_by.input[1]]


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)
