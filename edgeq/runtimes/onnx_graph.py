"""What is asked of an ONNX file's graph: constants, who computes a value, who reads it, in what type it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError
from edgeq.reading import refuse_special
from edgeq.runtimes.external import external_files

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto


@dataclass(frozen=True)
class OnnxGraph:
    """A graph with those within it, whose names are one space.

    Attributes:
        opset: of ONNX's own operators.
        nodes: in order.
        constants: initializers and what Constant nodes hold.
        producer: by value, what computes it.
        readers: by value, who reads it, and as which input.
        inputs: names of types, by graph input.
    """

    opset: int
    nodes: list[NodeProto]
    constants: dict[str, TensorProto]
    producer: dict[str, NodeProto]
    readers: dict[str, list[tuple[NodeProto, int]]]
    inputs: dict[str, str]

    def constant(self, value: str) -> TensorProto | None:
        """The constant that a value is, behind any number of Identities."""
        while value not in self.constants and value in self.producer and self.producer[value].op_type == "Identity":
            value = self.producer[value].input[0]
        return self.constants.get(value)

    def array(self, value: str) -> NDArray[np.float64] | None:
        """A constant's numbers; None of what is computed."""
        from onnx import numpy_helper

        held = self.constant(value)
        return None if held is None else np.asarray(numpy_helper.to_array(held)).astype(np.float64)

    def type_of(self, value: str) -> str | None:
        """The name of a value's type, where the file says it without shape inference."""
        held, made_by = self.constant(value), self.producer.get(value)
        if held is not None:
            return type_name(held.data_type)
        if made_by is None:
            return self.inputs.get(value)
        if made_by.op_type == "Cast":
            return type_name(attribute(made_by, "to"))
        return quantized_type(self, made_by) if made_by.op_type == "QuantizeLinear" else None

    def of(self, *kinds: str) -> Iterator[NodeProto]:
        """The nodes of these operators."""
        return (node for node in self.nodes if node.op_type in kinds)


def quantized_type(graph: OnnxGraph, node: NodeProto) -> str | None:
    """The type of the integers of a QuantizeLinear or DequantizeLinear: uint8 where the former does not say it."""
    if node.op_type == "DequantizeLinear":
        return graph.type_of(node.input[0]) or (graph.type_of(node.input[2]) if given(node, 2) else None)
    if given(node, 2):
        return graph.type_of(node.input[2])
    return type_name(attribute(node, "output_dtype")) if attribute(node, "output_dtype") else "uint8"


def read_graph(path: Path) -> OnnxGraph:
    """The graph of a file.

    Raises:
        UsageError: it is no ONNX file, or a file that it names is missing or lies elsewhere.
    """
    import onnx
    import onnx.inliner
    from google.protobuf.message import DecodeError

    refuse_special(path)
    external_files(path)
    try:
        model = onnx.load(str(path))
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except (DecodeError, OSError, ValueError) as error:
        cause = f"cannot be read: {' '.join(str(error).split())[:200]}"
        raise UsageError(cause, where=str(path), remedy="give an ONNX file, with its data beside it") from error
    if not model.graph.node:
        raise UsageError("this is no ONNX model: it has no operators", where=str(path), remedy="give an ONNX file")
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and (len(node.input) < 2 or not node.output):
                cause = f"{node.op_type} {node.name or '(without a name)'} lacks inputs or outputs"
                raise UsageError(cause, where=str(path), remedy="write the file again: onnx.checker tells more")
    return _graph(model)


def _graph(model: ModelProto) -> OnnxGraph:
    nodes: list[NodeProto] = []
    constants: dict[str, TensorProto] = {}
    for graph in _graphs(model.graph):
        nodes += graph.node
        constants |= {held.name: held for held in graph.initializer}
    for node in nodes:
        held = _held(node) if node.op_type == "Constant" else None
        if held is not None:
            constants[node.output[0]] = held
    readers: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in nodes:
        for index, value in enumerate(node.input):
            readers.setdefault(value, []).append((node, index))
    return OnnxGraph(
        opset=max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1),
        nodes=nodes,
        constants=constants,
        producer={value: node for node in nodes for value in node.output},
        readers=readers,
        inputs={given.name: type_name(given.type.tensor_type.elem_type) for given in model.graph.input},
    )


def _held(node: NodeProto) -> TensorProto | None:
    """What a Constant holds: a tensor, or floats; None of anything else."""
    from onnx import numpy_helper

    for held in node.attribute:
        if held.name == "value":
            return held.t
        if held.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(held.f if held.name == "value_float" else held.floats, np.float32))
    return None


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for held in node.attribute:
            for inner in [*([held.g] if held.HasField("g") else []), *held.graphs]:
                yield from _graphs(inner)


def attribute(node: NodeProto, name: str, default: int = 0) -> int:
    """An integer attribute."""
    return next((int(held.i) for held in node.attribute if held.name == name), default)


def given(node: NodeProto, index: int) -> bool:
    """Whether a node has an input at this place."""
    return len(node.input) > index and bool(node.input[index])


def type_name(number: int) -> str:
    """What ONNX calls a type, in small letters."""
    from onnx import TensorProto

    return TensorProto.DataType.Name(number).lower() if number in TensorProto.DataType.values() else str(number)
