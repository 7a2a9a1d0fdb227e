"""A TFLite file as it lies there: its tables, constants as NumPy arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.frontends.kinds import head_of
from edgeq.model.refusals import damaged

IDENTIFIER = b"TFL3"

LARGEST = 1 << 31
"""Values of a tensor."""


def is_tflite(path: Path) -> bool:
    """Whether it has the mark of such files."""
    return path.is_file() and head_of(path)[4:8] == IDENTIFIER


def parse(path: Path) -> Any:
    """The file's main graph with its tables, a `ModelT` of the schema.

    Raises:
        UsageError: it is damaged.
        UnsupportedError: it has several graphs.
        MissingExtraError: the schema is not installed.
    """
    schema, data = _schema(), path.read_bytes()
    try:
        root = schema.Model.GetRootAs(data)
        count = root.SubgraphsLength()
        if count == 1:
            _check_lengths(root, len(data))
            model = schema.ModelT.InitFromObj(root)
            _check_places(model, model.subgraphs[0])
    except Exception as error:  # offsets that lead nowhere end in many ways
        raise damaged(path.name, error) from error
    if count != 1:
        raise UnsupportedError(
            f"it has {count} graphs, where one is read",
            where=path.name,
            remedy="export a network whose steps are the same for every input",
        )
    return model


def operators() -> dict[int, str]:
    """The names of operators by their numbers."""
    return {value: name for name, value in vars(_schema().BuiltinOperator).items() if isinstance(value, int)}


def types() -> dict[int, str]:
    """The names of types by their numbers, in lower case."""
    return {value: name.lower() for name, value in vars(_schema().TensorType).items() if isinstance(value, int)}


def text(name: Any) -> str:
    """A name in the file."""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name or "")


def shape_of(tensor: Any) -> list[int]:
    return [int(size) for size in (tensor.shape if tensor.shape is not None else ())]


def constant(model: Any, tensor: Any, where: str) -> NDArray[Any] | None:
    """The values of a tensor that has some; integers of 2 and 4 bits come as int8, all floats as float32.

    Raises:
        UsageError: there are more or fewer than its shape says.
        UnsupportedError: they are no numbers.
    """
    from edgeq.numerics.packing import unpack

    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0:
        return None
    kind, shape, raw = types()[tensor.type], shape_of(tensor), np.frombuffer(bytes(data), np.uint8)
    place = f"{where}: {text(tensor.name)}"
    if tensor.sparsity is not None:
        raise UnsupportedError("it has sparse weights", where=place, remedy="export them as dense ones")
    if kind in ("string", "resource", "variant", "complex64", "complex128"):
        raise UnsupportedError(f"a constant is of the type {kind}", where=place, remedy="export the model without it")
    try:
        if kind in ("int4", "int2", "uint4"):
            return unpack(raw, math.prod(shape), int(kind[-1]), signed=kind[0] == "i").reshape(shape)
        if kind == "bfloat16":
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        found = raw.view(np.dtype(kind)).reshape(shape)
    except (ValueError, TypeError) as error:
        raise damaged(place, error) from error
    return found.astype(np.float32) if found.dtype.kind == "f" else found.copy()


def _check_lengths(root: Any, size: int) -> None:
    """Before all is made of it: parts may share bytes, so that little stands for more than memory holds."""
    graph = root.Subgraphs(0)
    tensors = [graph.Tensors(number) for number in range(_within(graph.TensorsLength(), size))]
    operators = [graph.Operators(number) for number in range(_within(graph.OperatorsLength(), size))]
    buffers = [root.Buffers(number) for number in range(_within(root.BuffersLength(), size))]
    grids = [one for one in (tensor.Quantization() for tensor in tensors) if one is not None]
    _within(sum(one.DataLength() for one in buffers), size)
    _within(sum(one.ShapeLength() + one.ShapeSignatureLength() + len(one.Name() or b"") for one in tensors), size)
    _within(sum(one.ScaleLength() + one.ZeroPointLength() + one.MinLength() + one.MaxLength() for one in grids), size)
    _within(sum(one.InputsLength() + one.OutputsLength() + one.CustomOptionsLength() for one in operators), size)


def _within(count: int, size: int) -> int:
    if count > size:
        raise ValueError("it claims more than its bytes hold")
    return count


def _check_places(model: Any, graph: Any) -> None:
    """Every number that names a table leads to one."""
    count = len(graph.tensors)
    for tensor in graph.tensors:
        if not 0 <= tensor.buffer < len(model.buffers) or tensor.type not in types():
            raise ValueError("a tensor names no buffer, or no type")
        sizes = shape_of(tensor)
        if any(size < 0 for size in sizes) or math.prod(sizes) > LARGEST:
            raise ValueError(f"a tensor is of the shape {sizes}")
    for operator in graph.operators:
        if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
            raise ValueError("an operator has no code")
        places = [*(operator.inputs if operator.inputs is not None else ()), *operator.outputs]
        if any(not -1 <= place < count for place in places):
            raise ValueError("an operator names no tensor")
        if not len(operator.outputs):
            raise ValueError("an operator writes nothing")
    if not len(graph.operators) or not len(graph.outputs):
        raise ValueError("there is no operator in it")
    if any(not 0 <= place < count for place in (*graph.inputs, *graph.outputs)):
        raise ValueError("an end of the graph names no tensor")


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ModuleNotFoundError as missing:
        raise MissingExtraError("ai-edge-litert", "tflite") from missing
    return schema
