"""OpenVINO IR, by way of the ONNX model: its PyTorch front end refuses integer constants under a dequantization."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import UnsupportedError
from edgeq.export.onnx_float import save
from edgeq.numerics.packing import pack, unpack
from edgeq.runtimes.openvino import import_openvino

DYNAMIC = "DYNAMIC_QUANTIZATION_GROUP_SIZE"

_PAIR = ["FakeQuantize", "Convert", "Convert", "Subtract", "Multiply"]


def write_openvino(model: ir.Model, path: Path, dynamic: int = 0) -> None:
    """Writes `path` (.xml) and the .bin beside it.

    Args:
        model: a float or QDQ ONNX model.
        path: ends in .xml.
        dynamic: how many numbers in a row share a scale where products with stored integers round their input in every
            call; 0 where nothing does.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        UnsupportedError: OpenVINO cannot read an operator.
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        onnx_file = Path(folder) / "model.onnx"
        readable, two_bits = _without_two_bits(model)
        save(readable, onnx_file)
        try:
            read = openvino.Core().read_model(onnx_file)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UnsupportedError(
                f"OpenVINO cannot read the exported model: {lines[-1] if lines else error}",
                remedy="choose another format for this model",
            ) from error
        for port, value in [
            *zip(read.inputs, model.graph.inputs, strict=True),
            *zip(read.outputs, model.graph.outputs, strict=True),
        ]:
            port.set_names({str(value.name)})
        _merge_pairs(read)
        _drop_idle(read)
        _reshape_constants(read)
        _split_groups(read)
        _store_two_bits(read, two_bits)
        # By itself the plugin would round the float inputs of products with compressed weights to 8 bits, 32 at a time.
        read.set_rt_info(str(dynamic), ["runtime_options", DYNAMIC])
        _number_unnamed(read)
        # what the plan leaves in float stays float32: halving it is not this stage's choice
        openvino.save_model(read, path, compress_to_fp16=False)
        _without_indents(path)


def _without_two_bits(model: ir.Model) -> tuple[ir.Model, dict[str, bool]]:
    """The model with its 2-bit integers as 4-bit ones, since OpenVINO's front end reads no others; and, by their names,
    whether they have a sign."""
    wider = {ir.DataType.INT2: ir.DataType.INT4, ir.DataType.UINT2: ir.DataType.UINT4}
    found = {
        name: value.dtype == ir.DataType.INT2
        for name, value in model.graph.initializers.items()
        if value.dtype in wider
    }
    if not found:
        return model, found
    result: ir.Model = ir.from_proto(ir.to_proto(model))
    for name in found:
        value = result.graph.initializers[name]
        assert value.const_value is not None and value.dtype is not None
        kind = wider[value.dtype]
        value.const_value = ir.tensor(value.const_value.numpy().astype(kind.numpy()), name=name)
        value.dtype = kind
    return result, found


def _store_two_bits(model: Any, signed: Mapping[str, bool]) -> None:
    """Stores integers of 2 bits as u2. There is no i2: to those from -2 to 1 it adds 2, which is subtracted behind each
    conversion."""
    openvino = import_openvino()
    ops = openvino.opset15

    for op in [op for op in model.get_ordered_ops() if op.get_friendly_name() in signed]:
        sign, shape = signed[op.get_friendly_name()], tuple(op.shape)
        four_bits = np.asarray(op.data).view(np.uint8)
        values = unpack(four_bits, math.prod(shape), 4, signed=sign)
        stored = openvino.Tensor(openvino.Type.u2, openvino.Shape(shape))  # one with memory of its own
        stored.data[:] = pack(values + 2 if sign else values, 2, signed=False)
        held = _with_name(ops.constant(stored), op)
        if not sign:
            op.output(0).replace(held.output(0))
            continue
        for reader in [port.get_node() for port in op.output(0).get_target_inputs()]:
            kind = reader.get_output_element_type(0)
            shifted = ops.subtract(ops.convert(held, kind), ops.constant(np.array(2, kind.to_dtype())))
            shifted.set_friendly_name(reader.get_friendly_name())
            shifted.output(0).set_names(reader.output(0).get_names())
            reader.output(0).replace(shifted.output(0))


def _merge_pairs(model: Any) -> None:
    """Makes each QuantizeLinear and DequantizeLinear, which are read as five operators, one FakeQuantize.

    The runtime does the same when it compiles the model; doing it here takes a third off the .xml.
    """
    ops = import_openvino().opset15

    for op in model.get_ordered_ops():
        steps = [op]
        while (reader := _only_reader(steps[-1])) is not None and len(steps) < 5:
            steps.append(reader)
        if [s.get_type_name() for s in steps] != _PAIR:
            continue
        fake, integers, _, shifted, real = steps
        zero, scale = (_constant(step.input(1)) for step in (shifted, real))
        if zero is None or scale is None or zero.size != 1 or scale.size != 1:
            continue
        kind = np.iinfo(integers.get_output_element_type(0).to_dtype())
        span = np.array([kind.min, kind.max], np.float32)
        ends = (span - np.float32(zero.item())) * np.float32(scale.item())
        low, high = (ops.constant(np.array(end, np.float32)) for end in ends)
        data = fake.input(0).get_source_output()
        merged = ops.fake_quantize(data, low, high, low, high, fake.get_attributes()["levels"])
        merged.set_friendly_name(real.get_friendly_name())
        merged.output(0).set_names(real.output(0).get_names())
        real.output(0).replace(merged.output(0))


def _drop_idle(model: Any) -> None:
    """Takes away what changes no number: the subtraction of zeros from stored integers, five operators a layer, and the
    products with 1 that ONNX's Gemm is read as."""
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Subtract" and _constant(op.input(0)) is not None:
            zero = _constant(op.input(1))
            if zero is not None and not np.any(zero):
                op.output(0).replace(op.input(0).get_source_output())
        elif op.get_type_name() == "Multiply" and _unnamed(op):
            for one, kept in (op.inputs(), reversed(op.inputs())):
                value = _constant(one)
                if _unnamed(_source(one)) and value is not None and value.shape == () and value == 1:
                    op.output(0).replace(kept.get_source_output())
                    break


def _reshape_constants(model: Any) -> None:
    """Reshapes float constants where the file is written.

    A convolution's bias is read as one whose shape hangs on that of the convolution's output. With OpenVINO 2026.4 that
    bias could end in the quantization behind it, and every channel got that of the first: 6 dB of DeiT's outputs.
    """
    for op in model.get_ordered_ops():
        held = _source(op.input(0)) if op.get_type_name() == "Reshape" else None
        if held is None or held.get_type_name() != "Constant" or held.get_element_type().get_type_name() != "f32":
            continue
        shape = op.output(0).get_partial_shape()
        if not shape.is_static:
            continue
        reshaped = _reshaped(held, tuple(shape.to_shape()))
        held.set_friendly_name(op.get_friendly_name())  # should anything else still read it
        op.output(0).replace(reshaped.output(0))


def _split_groups(model: Any) -> None:
    """Stores the integers of a convolution in groups in the shape that it reads. The reader of ONNX splits their first
    axis behind their dequantization, with seven operators that work out by how much."""
    for op in model.get_ordered_ops():
        if op.get_type_name() not in ("GroupConvolution", "GroupConvolutionBackpropData"):
            continue
        reshape = _source(op.input(1))
        if reshape.get_type_name() != "Reshape":
            continue
        old, new = (port.get_partial_shape() for port in (reshape.input(0), reshape.output(0)))
        if not (old.is_static and new.is_static) or [*old.to_shape()][1:] != [*new.to_shape()][2:]:
            continue
        split = _split(_source(reshape.input(0)), tuple(new.to_shape()))
        if split is not None:
            op.input(1).replace_source_output(split.output(0))


def _split(op: Any, shape: tuple[int, ...]) -> Any:
    """An operator again, on constants whose first axis is made two, so that it gives `shape`; None for one that does
    not dequantize constants."""
    ops = import_openvino().opset15
    kind = op.get_type_name()
    if kind == "Constant":
        own = tuple(op.shape)
        if len(own) != len(shape) - 1:
            return None if own else op
        return _reshaped(op, (*(shape[:2] if own[0] > 1 else (1, 1)), *own[1:]))
    if kind == "Gather":
        levels, places, axis = (_source(port) for port in op.inputs())
        split = _split(places, shape)
        return None if split is None else _with_name(ops.gather(levels, split, axis), op)
    if kind not in ("Convert", "Subtract", "Multiply"):
        return None
    parts = [_split(_source(port), shape) for port in op.inputs()]
    if any(part is None for part in parts):
        return None
    if kind == "Convert":
        return _with_name(ops.convert(*parts, op.get_output_element_type(0)), op)
    return _with_name({"Subtract": ops.subtract, "Multiply": ops.multiply}[kind](*parts), op)


def _reshaped(held: Any, shape: tuple[int, ...]) -> Any:
    """A constant of the same name and values."""
    openvino = import_openvino()
    stored = openvino.Tensor(held.get_element_type(), openvino.Shape(shape))  # one with memory of its own
    stored.data[...] = held.data.reshape(stored.data.shape)  # of fewer than 8 bits the bytes, in one row
    return _with_name(openvino.opset15.constant(stored), held)


def _with_name(op: Any, of: Any) -> Any:
    if not _unnamed(of):
        op.set_friendly_name(of.get_friendly_name())
    return op


def _unnamed(op: Any) -> bool:
    return bool(op.get_friendly_name() == op.get_name())


def _number_unnamed(model: Any) -> None:
    """Names what has none by its place. OpenVINO's own names count everything that the process ever made, so that the
    same plan would give other bytes, and another size, each time."""
    for number, op in enumerate(model.get_ordered_ops()):
        if _unnamed(op):
            op.set_friendly_name(f"{op.get_type_name()}_{number}")


def _without_indents(path: Path) -> None:
    """A sixth of the .xml, which is most of the file of a small network, is white space between its tags."""
    path.write_text(re.sub(r">\s+<", "><", path.read_text(encoding="utf-8")), encoding="utf-8")


def _only_reader(op: Any) -> Any:
    readers = [port.get_node() for output in op.outputs() for port in output.get_target_inputs()]
    return readers[0] if len(readers) == 1 else None


def _source(port: Any) -> Any:
    return port.get_source_output().get_node()


def _constant(port: Any) -> np.ndarray | None:
    op = _source(port)
    while op.get_type_name() in ("Convert", "Reshape"):
        op = _source(op.input(0))
    return np.asarray(op.data) if op.get_type_name() == "Constant" else None
