"""A rounded decoder as OpenVINO IR, made of its float ONNX file: compressed weights, and a cache that is state.

The file is as OpenVINO's own pipelines for text read it (openvino-genai): inputs `input_ids`, `attention_mask` and
`beam_idx`, which reorders the cache; the cache is kept between calls. Weights are constants of few bits under a
Convert, a Subtract and a Multiply, in groups, which the CPU plugin expands as it reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UnsupportedError
from edgeq.language.attention import Steps, attention
from edgeq.language.decoder import Decoder, Weight
from edgeq.language.onnx_decoder import Stored
from edgeq.language.rounding import Rounded
from edgeq.numerics.weights import QuantizedWeight
from edgeq.runtimes.openvino import import_openvino

MODEL = "openvino_model.xml"
_OPTIONS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}
"""By itself the plugin would round what products with compressed weights read, and what the cache holds, to 8 bits."""


def write_openvino(decoder: Decoder, rounded: Rounded, folder: Path) -> Path:
    """Writes `openvino_model.xml` and `.bin` into a folder.

    Returns:
        The path of the first.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        UnsupportedError: OpenVINO cannot read the float file, or its attention is of another kind.
    """
    openvino = import_openvino()
    try:
        model = openvino.Core().read_model(decoder.path)
    except RuntimeError as error:
        gist = str(error).strip().splitlines()[-1]
        remedy = "choose another format for this model"
        raise UnsupportedError(f"OpenVINO cannot read the float model: {gist}", remedy=remedy) from error
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
    for name, value in _OPTIONS.items():
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
        held = named[weight.name]
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
        openvino = import_openvino()
        scheme, ops = w.q.scheme, openvino.opset15
        self.rows, self.columns = w.integers.shape
        group = scheme.group or self.columns
        grouped = w.integers.reshape(self.rows, -1, group)
        # integers of 4 and 8 bits may have a sign; of 2 and 3 the middle is taken away behind the Convert
        signed = scheme.signed and scheme.width in (4, 8)
        middle = 1 << (scheme.width - 1) if scheme.signed and not signed else 0
        kind = getattr(openvino.Type, f"{'i' if signed else 'u'}{scheme.width}")
        values = grouped.astype(np.int8) if signed else (grouped.astype(np.int16) + middle).astype(np.uint8)
        self.integers = _named(ops.constant(values, kind), f"{weight.name}.integers")
        scale = np.ascontiguousarray(w.q.scale.reshape(self.rows, -1, 1))
        scale = scale.astype(np.float16) if scheme.half_scales else scale
        self.scale = _named(ops.constant(scale), f"{weight.name}.scales")
        self.zero = None
        if middle or scheme.symmetry == "asymmetric":
            zero = (w.q.zero_point.reshape(self.rows, -1, 1) + middle).astype(np.uint8)
            self.zero = _named(ops.constant(zero, kind), f"{weight.name}.zero_points")

    def real(self, take: Any = None) -> Any:
        """[rows, columns] in float32; of the rows that `take` takes, if it is given."""
        openvino = import_openvino()
        ops, f32 = openvino.opset15, openvino.Type.f32

        def part(held: Any) -> Any:
            return held if take is None else take(held)

        found = ops.convert(part(self.integers), f32)
        if self.zero is not None:
            found = ops.subtract(found, ops.convert(part(self.zero), f32))
        scale = part(self.scale)
        return ops.multiply(found, ops.convert(scale, f32) if scale.get_element_type() != f32 else scale)


def _product(reader: Any, weight: Weight, constants: _Constants) -> None:
    ops = import_openvino().opset15
    shape = np.array([constants.rows, constants.columns], np.int64)
    matrix = ops.reshape(constants.real(), ops.constant(shape), special_zero=False)
    x = reader.input(0).get_source_output()
    if more := constants.columns - weight.columns:  # the last group is filled up
        ends = [ops.constant(np.array([0, 0, width], np.int64)) for width in (0, more)]
        x = ops.pad(x, *ends, "constant", ops.constant(np.array(0, np.float32))).output(0)
    product = ops.matmul(x, matrix, False, True)
    _stand_in(product, reader)


def _words(reader: Any, constants: _Constants) -> None:
    ops = import_openvino().opset15
    words = reader.input(1).get_source_output()
    axis = ops.constant(np.array(0, np.int64))
    shape = np.array([constants.rows, constants.columns], np.int64)
    table = ops.reshape(constants.real(), ops.constant(shape), special_zero=False)
    _stand_in(ops.gather(table, words, axis), reader)


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
        raise UnsupportedError("there is no cache in the float model", remedy="choose another format for this model")
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
        scale = np.asarray(constants[f"{name}.scales"].data).astype(np.float32).reshape(rows, -1)
        held = constants.get(f"{name}.zero_points")
        zero = _values(held).reshape(rows, -1) if held is not None else np.full(scale.shape, above, np.int16)
        integers = (_values(op).astype(np.int16) + above).astype(np.uint8).reshape(rows, -1)
        found[name] = Stored(integers, scale, zero, bits)
    return found


def _values(op: Any) -> NDArray[Any]:
    """The integers of a constant of few bits, which OpenVINO gives as bytes: it is asked to convert them itself."""
    openvino = import_openvino()
    kind = openvino.Type.i8 if op.get_element_type().get_type_name().startswith("i") else openvino.Type.u8
    model = openvino.Model([openvino.opset15.convert(op, kind)], [])
    return np.array(next(iter(openvino.Core().compile_model(model, "CPU")({}).values())))
