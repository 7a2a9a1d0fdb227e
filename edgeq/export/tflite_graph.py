"""A `.tflite` file as a graph that can be edited, and back to bytes that small readers understand as well."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgeq.errors import MissingExtraError
from edgeq.numerics.packing import BITS, pack, unpack

try:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
except ModuleNotFoundError as missing:
    raise MissingExtraError("ai-edge-litert", "tflite") from missing

ALIGNMENT = 16
"""Bytes to which constants are aligned, as the schema asks: microcontrollers read them in place."""

IDENTIFIER = b"TFL3"

TYPES: dict[str, int] = {
    "float32": schema.TensorType.FLOAT32, "int32": schema.TensorType.INT32, "int64": schema.TensorType.INT64,
    "uint8": schema.TensorType.UINT8, "int8": schema.TensorType.INT8, "int16": schema.TensorType.INT16,
    "int2": schema.TensorType.INT2, "int4": schema.TensorType.INT4, "bool": schema.TensorType.BOOL,
}  # fmt: skip
NAMES: dict[int, str] = {value: name for name, value in TYPES.items()}

_OPERATORS: dict[int, str] = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}

# The first version of each operator that reads int8, and for weighted ones scales per channel.
_INT8_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 3, "FULLY_CONNECTED": 5, "BATCH_MATMUL": 2, "ADD": 2,
    "SUB": 2, "MUL": 2, "CONCATENATION": 2, "AVERAGE_POOL_2D": 2, "MAX_POOL_2D": 2, "PAD": 2, "PADV2": 2, "MEAN": 2,
    "SLICE": 2, "STRIDED_SLICE": 2, "TRANSPOSE": 2, "SOFTMAX": 2, "LOGISTIC": 2, "TANH": 2, "RELU": 2, "RELU6": 2,
    "GATHER": 2, "GATHER_ND": 2, "RESIZE_NEAREST_NEIGHBOR": 2, "RESIZE_BILINEAR": 2, "SPLIT": 2, "SPLIT_V": 2,
    "DEQUANTIZE": 2,
}  # fmt: skip

# The first version of each operator that multiplies int8 by fewer bits.
_NARROW_VERSIONS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}


class Graph:
    """The main subgraph of a file, with the tables that its tensors and operators point into.

    Attributes:
        model: the whole file as objects.
        tensors, operators: of the main subgraph, in the file's order.
    """

    def __init__(self, data: bytes) -> None:
        self._hold(schema.ModelT.InitFromObj(schema.Model.GetRootAs(data)))

    @classmethod
    def of(cls, model: Any) -> Graph:
        """The graph of a file that exists as objects already."""
        graph = cls.__new__(cls)
        graph._hold(model)
        return graph

    def _hold(self, model: Any) -> None:
        self.model = model
        self._main = self.model.subgraphs[0]
        self.tensors: list[Any] = self._main.tensors
        self.operators: list[Any] = self._main.operators

    @property
    def inputs(self) -> list[int]:
        return [int(i) for i in self._main.inputs]

    @property
    def outputs(self) -> list[int]:
        return [int(i) for i in self._main.outputs]

    def kind(self, operator: Any) -> str:
        """Name of an operator, `CONV_2D`; `CUSTOM` for what is not built in."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return _OPERATORS[max(int(code.builtinCode), int(code.deprecatedBuiltinCode))]

    def dtype(self, index: int) -> str:
        """Element type of a tensor in numpy's words, `int2` or `int4`; the schema's number where there is no word."""
        return NAMES.get(int(self.tensors[index].type), str(self.tensors[index].type))

    def name(self, index: int) -> str:
        return str(self.tensors[index].name.decode())

    def shape(self, index: int) -> tuple[int, ...]:
        shape = self.tensors[index].shape
        return () if shape is None else tuple(int(d) for d in shape)

    def constant(self, index: int) -> np.ndarray | None:
        """The values of a constant, those of fewer than 8 bits as int8; None for a computed tensor."""
        if index < 0:
            return None
        data = self.model.buffers[self.tensors[index].buffer].data
        if data is None or len(data) == 0:
            return None
        content, shape = np.asarray(data, dtype=np.uint8), self.shape(index)
        if self.dtype(index) in BITS:
            return unpack(content, math.prod(shape), BITS[self.dtype(index)]).reshape(shape)
        return np.frombuffer(content.tobytes(), self.dtype(index)).reshape(shape)

    def is_float(self, index: int) -> bool:
        """Whether a tensor is a computed float."""
        return index >= 0 and self.dtype(index) == "float32" and self.constant(index) is None

    def operator(self, kind: str, inputs: Iterable[int], outputs: Iterable[int], options: Any = None) -> Any:
        """A new operator, not yet part of the graph."""
        new = schema.OperatorT()
        new.opcodeIndex = self._code(kind)
        new.inputs = np.array(list(inputs), dtype=np.int32)
        new.outputs = np.array(list(outputs), dtype=np.int32)
        if options is not None:
            new.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            new.builtinOptions = options
        return new

    def _code(self, kind: str) -> int:
        value = getattr(schema.BuiltinOperator, kind)
        for index, code in enumerate(self.model.operatorCodes):
            if max(int(code.builtinCode), int(code.deprecatedBuiltinCode)) == value:
                return index
        code = schema.OperatorCodeT()
        code.builtinCode = value
        # Readers older than the 32-bit codes look here; 127 says that the other field counts.
        code.deprecatedBuiltinCode = min(value, 127)
        code.version = _INT8_VERSIONS.get(kind, 1)
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def tensor(self, name: str, dtype: str, shape: Iterable[int], values: np.ndarray | None = None) -> int:
        """Adds a tensor, constant if it is given values (`int2` and `int4` want int8); returns its index."""
        new = schema.TensorT()
        new.name = name.encode()
        new.type = TYPES[dtype]
        new.shape = np.array(list(shape), dtype=np.int32)
        new.hasRank = True
        new.buffer = 0
        if values is not None:
            buffer = schema.BufferT()
            content = pack(values, BITS[dtype]) if dtype in BITS else np.ascontiguousarray(values)
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            new.buffer = len(self.model.buffers) - 1
        self.tensors.append(new)
        return len(self.tensors) - 1

    def set_constant(self, index: int, values: np.ndarray) -> None:
        """Turns a computed tensor into a constant."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.tensors[index].buffer = len(self.model.buffers) - 1

    def quantize(self, index: int, dtype: str, scale: np.ndarray, zero_point: np.ndarray, axis: int = 0) -> None:
        """Turns a tensor into an integer one.

        Args:
            scale: float32 [1] or [channels].
            zero_point: as many integers.
            axis: axis of the channels.
        """
        q = schema.QuantizationParametersT()
        q.scale = np.ascontiguousarray(scale, dtype=np.float32)
        q.zeroPoint = np.ascontiguousarray(zero_point, dtype=np.int64)
        q.quantizedDimension = axis
        self.tensors[index].quantization = q
        self.tensors[index].type = TYPES[dtype]

    def quantization(self, index: int) -> tuple[np.ndarray, np.ndarray, int] | None:
        """Scales, zero points and channel axis of a tensor, None if it has none."""
        q = self.tensors[index].quantization
        if q is None or q.scale is None or len(q.scale) == 0:
            return None
        return np.asarray(q.scale), np.asarray(q.zeroPoint), int(q.quantizedDimension)

    def set_operators(self, operators: list[Any]) -> None:
        self._main.operators = self.operators = operators

    def names(self) -> tuple[dict[int, str], dict[int, str]]:
        """Of inputs and outputs, in the file's order, the names that a caller sees: those of its signature, if it has
        one, or else of the tensors."""
        signatures = self.model.signatureDefs or []
        entries = (*signatures[0].inputs, *signatures[0].outputs) if len(signatures) == 1 else ()
        given = {int(entry.tensorIndex): str(entry.name.decode()) for entry in entries}
        inputs, outputs = ({i: given.get(i, self.name(i)) for i in ends} for ends in (self.inputs, self.outputs))
        return inputs, outputs

    def set_ends(self, inputs: list[int], outputs: list[int], names: tuple[list[str], list[str]]) -> None:
        """Sets the graph's inputs and outputs, and the names that a caller sees."""
        self._main.inputs = np.array(inputs, dtype=np.int32)
        self._main.outputs = np.array(outputs, dtype=np.int32)
        signature = schema.SignatureDefT()
        signature.signatureKey = b"serving_default"
        signature.subgraphIndex = 0
        signature.inputs = [_entry(n, i) for n, i in zip(names[0], inputs, strict=True)]
        signature.outputs = [_entry(n, i) for n, i in zip(names[1], outputs, strict=True)]
        self.model.signatureDefs = [signature]

    def packed(self) -> bytes:
        """The file, with all that is in it."""
        builder = _Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def bytes(self) -> bytes:
        """The file. Leaves out what nothing uses, and stores equal constants once."""
        self._raise_versions()
        self._prune_tensors()
        self._prune_codes()
        self.model.metadata = []
        self.model.description = b""
        self._share_buffers()
        return self.packed()

    def _raise_versions(self) -> None:
        for operator in self.operators:
            kind = self.kind(operator)
            first = next((int(i) for i in operator.outputs), -1)
            code = self.model.operatorCodes[operator.opcodeIndex]
            if kind in _INT8_VERSIONS and (kind == "DEQUANTIZE" or self.dtype(first) == "int8"):
                code.version = max(int(code.version), _INT8_VERSIONS[kind])
            if kind == "DEQUANTIZE":
                code.version = max(int(code.version), self._dequantize_version(int(operator.inputs[0])))
            if kind in _NARROW_VERSIONS and any(self.dtype(int(i)) in BITS for i in operator.inputs if i >= 0):
                code.version = max(int(code.version), _NARROW_VERSIONS[kind])

    def _dequantize_version(self, source: int) -> int:
        """The first that reads this tensor: one with a scale for each channel, or with fewer bits."""
        q, kind = self.quantization(source), self.dtype(source)
        by_channel = kind == "int8" and q is not None and len(q[0]) > 1
        return 5 if by_channel else {"int2": 6, "int4": 6, "int16": 3}.get(kind, 2)

    def _prune_tensors(self) -> None:
        used = {*self.inputs, *self.outputs}
        for operator in self.operators:
            used |= {int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0}
        order = sorted(used)
        place = {old: new for new, old in enumerate(order)} | {-1: -1}
        for operator in self.operators:
            operator.inputs = np.array([place[int(i)] for i in operator.inputs], dtype=np.int32)
            operator.outputs = np.array([place[int(i)] for i in operator.outputs], dtype=np.int32)
        inputs, outputs = [place[i] for i in self.inputs], [place[i] for i in self.outputs]
        for entry in (e for s in self.model.signatureDefs for e in (*s.inputs, *s.outputs)):
            entry.tensorIndex = place[int(entry.tensorIndex)]
        self._main.inputs, self._main.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        self._main.tensors = self.tensors = [self.tensors[i] for i in order]
        for index, tensor in enumerate(self.tensors):
            tensor.quantization = tensor.quantization if self.quantization(index) else None

    def _prune_codes(self) -> None:
        operators = [operator for subgraph in self.model.subgraphs for operator in subgraph.operators]
        order = sorted({int(operator.opcodeIndex) for operator in operators})
        for operator in operators:
            operator.opcodeIndex = order.index(int(operator.opcodeIndex))
        self.model.operatorCodes = [self.model.operatorCodes[i] for i in order]

    def _share_buffers(self) -> None:
        # The first buffer is empty by convention: every computed tensor points to it.
        buffers = [schema.BufferT()]
        seen: dict[bytes, int] = {b"": 0}
        for subgraph in self.model.subgraphs:
            for tensor in subgraph.tensors:
                data = self.model.buffers[tensor.buffer].data
                content = b"" if data is None else np.asarray(data, dtype=np.uint8).tobytes()
                if content not in seen:
                    seen[content] = len(buffers)
                    new = schema.BufferT()
                    new.data = np.frombuffer(content, np.uint8)
                    buffers.append(new)
                tensor.buffer = seen[content]
        self.model.buffers = buffers
        self.model.metadataBuffer = None


def _entry(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = name.encode()
    entry.tensorIndex = index
    return entry


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """Aligns byte vectors, the contents of buffers: the generated code forgets that the schema asks for it."""

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        if x.dtype != np.uint8:
            return int(super().CreateNumpyVector(x))
        self.StartVector(1, x.size, ALIGNMENT)
        start = int(self.Head()) - x.size
        self.head = start
        self.Bytes[start : start + x.size] = x.tobytes()
        return int(self.EndVector())
