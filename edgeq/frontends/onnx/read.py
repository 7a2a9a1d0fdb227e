"""An ONNX file as an exported program that answers as ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from onnx import ModelProto, TensorProto, ValueInfoProto

from edgeq.errors import UnsupportedError, UsageError
from edgeq.frontends.examples import Given, in_order, sized
from edgeq.frontends.loaded import Loaded
from edgeq.frontends.onnx.file import opset, parse
from edgeq.frontends.onnx.graph import inputs_of, network_of
from edgeq.frontends.original import Original, compare
from edgeq.frontends.trace import from_module
from edgeq.visible import whole

KIND = "ONNX"

ORIGINAL = Original("ONNX Runtime", "edgeq.frontends.onnx.answers")

_DTYPES = {
    TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float32, TensorProto.DOUBLE: torch.float32,
    TensorProto.BFLOAT16: torch.float32, TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32,
    TensorProto.UINT8: torch.uint8, TensorProto.BOOL: torch.bool,
}  # fmt: skip
_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def read_onnx(path: Path, given: Given) -> Loaded:
    """The program of a file; it keeps the file's names of inputs, outputs and layers.

    Raises:
        UsageError: it is damaged, or does not say how large its inputs are.
        UnsupportedError: an operator is not computed here, or the answers are others than ONNX Runtime's.
    """
    model = parse(path)
    inputs = inputs_of(model)
    names = tuple(one.name for one in inputs)
    if not inputs:
        raise UnsupportedError("it takes no inputs", where=path.name, remedy="export a network that takes some")
    free = all(_sizes(one)[:1] == [None] for one in inputs)
    if not given.tensors:
        given = Given(tuple(_example(one, path.name) for one in inputs), names)
    tensors = in_order(given, names, path.name)
    _check_sizes(inputs, tensors, path.name)
    network = network_of(model, path, tensors)
    rounds = any(node.op_type == "QuantizeLinear" for node in model.graph.node) or _is_narrow(model)
    compare(ORIGINAL, path, network, tensors, rounds=rounds)
    loaded = from_module(network, Given(tensors, ()), path.name, free=free)
    outputs = tuple(one.name for one in model.graph.output)
    notes = _notes(model)
    return replace(
        loaded, kind=KIND, input_names=names, output_names=_apart(outputs, names),
        notes=(*notes, *loaded.notes),
    )  # fmt: skip


def _sizes(value: ValueInfoProto) -> list[int | None]:
    shape = value.type.tensor_type.shape
    return [one.dim_value if one.HasField("dim_value") else None for one in shape.dim]


def _example(value: ValueInfoProto, where: str) -> torch.Tensor:
    sizes = _sizes(value)
    has_shape = value.type.tensor_type.HasField("shape")
    if not has_shape or None in sizes[1:]:
        shown = "x".join(str(size or "?") for size in [sizes[0] or 1, *sizes[1:]]) if has_shape and sizes else "?"
        raise UsageError(
            f"the file leaves open how large the input {value.name!r} is ({shown})",
            where=where,
            remedy=f"give all its sizes, such as --input {_shown(value.name)}1x3x224x224",
        )
    return sized(sizes, _dtype(value, where), value.name, where)


def _shown(name: str) -> str:
    return f"{name}:" if name.isidentifier() else ""


def _dtype(value: ValueInfoProto, where: str) -> torch.dtype:
    kind = value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0
    if kind not in _DTYPES:
        raise UnsupportedError(
            f"the input {value.name!r} is {TensorProto.DataType.Name(kind).lower() if kind else 'no tensor'}",
            where=where,
            remedy="export the model with inputs in float32 or integers",
        )
    return _DTYPES[kind]


def _check_sizes(inputs: Sequence[ValueInfoProto], tensors: Sequence[torch.Tensor], where: str) -> None:
    for one, tensor in zip(inputs, tensors, strict=True):
        sizes, dtype = _sizes(one), _dtype(one, where)
        fits = not one.type.tensor_type.HasField("shape") or (
            len(sizes) == tensor.dim() and all(a in (None, b) for a, b in zip(sizes, tensor.shape, strict=True))
        )
        if not fits or dtype != tensor.dtype:
            raise UsageError(
                f"the input {one.name!r} is {[size or 'free' for size in sizes]} {dtype}, not {list(tensor.shape)} "
                f"{tensor.dtype}",
                where=where,
                remedy="give the sizes that the file has; what it says itself need not be given",
            )


def _is_narrow(model: ModelProto) -> bool:
    held = {tensor.data_type for tensor in model.graph.initializer}
    given = {one.type.tensor_type.elem_type for one in model.graph.input}
    return bool((held | given).intersection(_NARROW))


def _notes(model: ModelProto) -> tuple[str, ...]:
    held = {tensor.data_type for tensor in model.graph.initializer}
    others = [one for one in (*_NARROW, TensorProto.DOUBLE) if one in held]
    names = " and ".join(TensorProto.DataType.Name(one).lower().replace("double", "float64") for one in others)
    said = (
        f"operators of ONNX, version {opset(model)}, as {whole(model.producer_name or 'an unknown program')} wrote them"
    )
    return (said, f"weights in {names} were converted to float32") if others else (said,)


def _apart(outputs: tuple[str, ...], inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Names of outputs, of which one that is an input's gets another: files know tensors by nothing else."""
    taken, found = set(inputs), []
    for name in outputs:
        free, number = name, 1
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        taken.add(free)
        found.append(free)
    return tuple(found)
