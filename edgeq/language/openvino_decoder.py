"""A rounded decoder as OpenVINO IR, made of its float ONNX file: compressed weights, and a cache that is state.

The file is as OpenVINO's own pipelines for text read it (openvino-genai): inputs `input_ids`, `attention_mask` and
`beam_idx`, which reorders the cache; the cache is kept between calls. Weights are constants of few bits under a
Convert, a Subtract and a Multiply, in groups. The CPU plugin expands those of 2, 4 and 8 bits as it reads them, and
those of 3 bits, and tables of words of 2 or 3, when it loads the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UnsupportedError, UsageError
from edgeq.export.openvino import DYNAMIC
from edgeq.language.attention import Steps, attention
from edgeq.language.decoder import Decoder, Weight
from edgeq.language.onnx_decoder import Stored
from edgeq.language.rounding import Rounded
from edgeq.numerics.packing import pack, pack_three, unpack, unpack_three
from edgeq.numerics.weights import QuantizedWeight
from edgeq.runtimes.openvino import import_openvino

MODEL = "openvino_model.xml"
KEPT = "KV_CACHE_PRECISION"
BITS = (2, 3, 4, 8)
"""Of one number, those that are written."""

Cache = Literal["float32", "float16", "uint8"]
"""What the cache may be kept in."""

_CACHES: dict[Cache, str] = {"float32": "f32", "float16": "f16", "uint8": "u8"}
_REMEDY = "choose another format for this model"


def write_openvino(
    decoder: Decoder, rounded: Rounded, folder: Path, *, activations: int | None = None, cache: Cache = "float32"
) -> Path:
    """Writes `openvino_model.xml` and `.bin` into a folder.

    Args:
        activations: how many numbers in a row share a scale where products with stored integers round their input to 8
            bits in every call; None where nothing does. By itself the plugin would. CPUs without instructions for it
            do not, whatever the file says.
        cache: what the plugin keeps keys and values in, if the program that loads the file does not say another. By
            itself it would round them to 8 bits.

    Returns:
        The path of the first.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        UsageError: fewer than one number shares a scale.
        UnsupportedError: OpenVINO cannot read the float file, or has no form for its attention or for a weight.
    """
    if activations is not None and activations < 1:
        raise UsageError(f"{activations} numbers cannot share a scale", where="activations", remedy="give 32 or more")
    openvino = import_openvino()
    try:
        model = openvino.Core().read_model(decoder.path)
    except RuntimeError as error:
        gist = str(error).strip().splitlines()[-1]
        raise UnsupportedError(f"OpenVINO cannot read the float model: {gist}", remedy=_REMEDY) from error
    for port, value in zip(model.outputs, decoder.proto.graph.output, strict=True):
        port.set_names({value.name})
    beams = openvino.opset15.parameter([-1], np.int32, "beam_idx")
    beams.output(0).set_names({"beam_idx"})
    steps = Steps(model, decoder.head_size, beams)
    for op in model.get_ordered_ops():
        if op.get_type_name() == "GroupQueryAttention":
            attention(op, steps)
    model.add_parameters([beams])
    _compress(model, decoder, rounded)
    _replace_floats(model, rounded.floats)
    _keep_cache(model, decoder.head_size)
    for name, value in ((DYNAMIC, str(activations or 0)), (KEPT, _CACHES[cache])):
        model.set_rt_info(value, ["runtime_options", name])
    path = folder / MODEL
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def _compress(model: Any, decoder: Decoder, rounded: Rounded) -> None:
    """Puts integers in the place of the weights that were rounded."""
    named = {op.get_friendly_name(): op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"}
    for weight in decoder.weights:
        if weight.name not in rounded.weights:
            continue
        held = named.get(weight.name)
        shape = [weight.columns, weight.rows] if weight.transposed else [weight.rows, weight.columns]
        if held is None or list(held.shape) != shape:
            found = "nothing" if held is None else f"one of {list(held.shape)}"
            raise UnsupportedError(
                f"OpenVINO reads {found} where the float file has a matrix of {shape}",
                where=weight.name,
                remedy=_REMEDY,
            )
        constants = _Constants(weight, rounded.weights[weight.name])
        for reader in [port.get_node() for port in held.output(0).get_target_inputs()]:
            if reader.get_type_name() == "MatMul":
                _product(reader, weight, constants)
            elif reader.get_type_name() == "Gather":
                _words(reader, constants)
            else:  # the transposition before the words of tied ends
                for inner in [port.get_node() for port in reader.output(0).get_target_inputs()]:
                    _words(inner, constants)


class _Constants:
    """A matrix as constants: integers [rows, groups, group], scales and zero points [rows, groups, 1]; made once."""

    def __init__(self, weight: Weight, w: QuantizedWeight) -> None:
        scheme = w.q.scheme
        if scheme.width not in BITS or w.levels is not None or scheme.granularity == "tensor":
            raise UnsupportedError(
                f"a file of OpenVINO has no form for {scheme} here",
                where=weight.name,
                remedy=f"choose evenly spaced integers of {', '.join(map(str, BITS))} bits with scales by groups",
            )
        self.rows, self.columns = w.integers.shape
        group = scheme.group or self.columns
        zero = w.q.zero_point.reshape(self.rows, -1, 1)
        shifted = scheme.symmetry == "asymmetric" or bool(np.any(zero))
        # integers of 4 and 8 bits may have a sign; of others the middle is taken away behind the Convert
        signed = scheme.signed and scheme.width in (4, 8) and not shifted
        middle = 1 << (scheme.width - 1) if scheme.signed and not signed else 0
        kind = f"{'i' if signed else 'u'}{scheme.width}"
        values = (w.integers.astype(np.int16) + middle).reshape(self.rows, -1, group)
        self.integers = _named(_constant(values, kind), f"{weight.name}.integers")
        scale = np.ascontiguousarray(w.q.scale.reshape(self.rows, -1, 1))
        scale = scale.astype(np.float16) if scheme.half_scales else scale
        self.scale = _named(import_openvino().opset15.constant(scale), f"{weight.name}.scales")
        self.zero = None
        if middle or shifted:
            self.zero = _named(_constant(zero + middle, kind), f"{weight.name}.zero_points")

    def real(self) -> Any:
        """[rows, columns] in float32."""
        openvino = import_openvino()
        ops, f32 = openvino.opset15, openvino.Type.f32
        found = ops.convert(self.integers, f32)
        if self.zero is not None:
            found = ops.subtract(found, ops.convert(self.zero, f32))
        shape = ops.constant(np.array([self.rows, self.columns], np.int64))
        scale = ops.convert(self.scale, f32) if self.scale.get_element_type() != f32 else self.scale
        return ops.reshape(ops.multiply(found, scale), shape, special_zero=False)


def _constant(values: NDArray[Any], kind: str) -> Any:
    """A constant of integers, packed here: OpenVINO's own way makes a Python list of them, eight bytes for each."""
    openvino = import_openvino()
    tensor = openvino.Tensor(getattr(openvino.Type, kind), openvino.Shape(values.shape))  # with memory of its own
    bits, signed = int(kind[1:]), kind.startswith("i")
    if bits == 8:
        tensor.data[:] = values
    else:
        tensor.data.view(np.uint8)[:] = pack_three(values) if bits == 3 else pack(values, bits, signed=signed)
    return openvino.opset15.constant(tensor)


def _product(reader: Any, weight: Weight, constants: _Constants) -> None:
    ops = import_openvino().opset15
    x = reader.input(0).get_source_output()
    if more := constants.columns - weight.columns:  # the last group is filled up
        ends = [ops.constant(np.array([0, 0, width], np.int64)) for width in (0, more)]
        x = ops.pad(x, *ends, "constant", ops.constant(np.array(0, np.float32))).output(0)
    _stand_in(ops.matmul(x, constants.real(), False, True), reader)


def _words(reader: Any, constants: _Constants) -> None:
    """Rows of the dequantized table: this is the form of which the plugin makes a Gather that expands the rows alone.
    It gathers packed integers wrongly (4 bits with zero points, version 2026.4), or not at all (3 bits)."""
    ops = import_openvino().opset15
    words = reader.input(1).get_source_output()
    _stand_in(ops.gather(constants.real(), words, ops.constant(np.array(0, np.int64))), reader)


def _replace_floats(model: Any, floats: Mapping[str, NDArray[np.float32]]) -> None:
    ops = import_openvino().opset15
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Constant" and op.get_friendly_name() in floats:
            other = ops.constant(np.ascontiguousarray(floats[op.get_friendly_name()]))
            _stand_in(other, op)


def _keep_cache(model: Any, head_size: int) -> None:
    """Makes state of the cache: what was an input and an output of each call is kept between them, and empty first."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    names = {name for port in model.inputs for name in port.get_names()}
    kept = {}
    for port in model.outputs:
        for name in port.get_names():
            past = name.replace("present.", "past_key_values.")
            if past != name and past in names:
                kept[past] = name
    if not kept:
        raise UnsupportedError("there is no cache in the float model", remedy=_REMEDY)
    apply_make_stateful_transformation(model, kept)
    ops = import_openvino().opset15
    words = next(port for port in model.inputs if "input_ids" in port.get_names())
    texts = ops.gather(
        ops.shape_of(words, "i64"), ops.constant(np.array([0], np.int64)), ops.constant(np.array(0, np.int64))
    )
    for op in model.get_ops():
        if op.get_type_name() == "ReadValue":
            heads = op.get_output_partial_shape(0)[1]
            empty = ops.constant(np.array([heads.get_length(), 0, head_size], np.int64))
            op.set_arguments([ops.broadcast(ops.constant(np.array(0, np.float32)), ops.concat([texts, empty], 0))])
    model.validate_nodes_and_infer_types()


def _stand_in(new: Any, old: Any) -> None:
    new.set_friendly_name(old.get_friendly_name())
    new.output(0).set_names(old.output(0).get_names())
    old.output(0).replace(new.output(0))


def _named(op: Any, name: str) -> Any:
    op.set_friendly_name(name)
    return op


def read_back(path: Path) -> dict[str, Stored]:
    """By initializer of the float file, what a file written here holds, read from it alone."""
    openvino = import_openvino()
    model = openvino.Core().read_model(path)
    constants = {op.get_friendly_name(): op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"}
    found: dict[str, Stored] = {}
    for full, op in constants.items():
        if not full.endswith(".integers"):
            continue
        name = full.removesuffix(".integers")
        kind = op.get_element_type().get_type_name()
        bits, above = int(kind[1:]), 1 << (int(kind[1:]) - 1) if kind.startswith("i") else 0
        rows = op.shape[0]
        scale = np.array(constants[f"{name}.scales"].data, np.float32).reshape(rows, -1)
        held = constants.get(f"{name}.zero_points")
        zero = _values(held).reshape(rows, -1) if held is not None else np.full(scale.shape, above, np.int16)
        integers = (_values(op).astype(np.int16) + above).astype(np.uint8).reshape(rows, -1)
        found[name] = Stored(integers, scale, zero, bits)
    return found


def _values(op: Any) -> NDArray[Any]:
    """The integers of a constant, which OpenVINO gives as bytes where they have few bits."""
    kind, shape = op.get_element_type().get_type_name(), tuple(op.shape)
    data, count, bits = np.array(op.data), math.prod(shape), int(kind[1:])  # a copy: its memory goes with the model
    if bits == 8:
        return data
    packed = data.view(np.uint8)
    few = unpack_three(packed, count) if bits == 3 else unpack(packed, count, bits, signed=kind.startswith("i"))
    return few.reshape(shape)
