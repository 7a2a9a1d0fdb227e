"""C for LiteRT for Microcontrollers: the file as an array, a golden input with its answer, and a `main` that compares.

Methods and interpreter are those of https://github.com/tensorflow/tflite-micro, `micro_mutable_op_resolver.h` and
`micro_interpreter.h`. Sizes of buffers are those of https://github.com/ARM-software/CMSIS-NN, `*_get_buffer_size`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from edgeq.errors import UnsupportedError
from edgeq.export.emitters import Proven
from edgeq.export.tflite_graph import Graph
from edgeq.files import atomic_write
from edgeq.version import __version__

SOURCES = ("model_data.h", "model_data.c", "golden_data.h", "golden_data.c", "main.cc")
TEMPLATES = Path(__file__).parent / "c"

ETHOS_U = "ethos-u"
"""What Vela calls the operators that the NPU runs."""

BESIDE_NPU = 16 * 1024
"""Bytes that the interpreter keeps beside tensors, where it cannot be asked: no machine here has the NPU."""

TYPES = {
    "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "int32": "int32_t", "int64": "int64_t",
    "float32": "float", "bool": "bool",
}  # fmt: skip

METHODS = (
    "Abs", "Add", "AddN", "ArgMax", "ArgMin", "AssignVariable", "AveragePool2D", "BatchMatMul", "BatchToSpaceNd",
    "BroadcastArgs", "BroadcastTo", "CallOnce", "Cast", "Ceil", "Concatenation", "Conv2D", "Cos", "CumSum",
    "DepthToSpace", "DepthwiseConv2D", "Dequantize", "Div", "DynamicUpdateSlice", "Elu", "EmbeddingLookup", "Equal",
    "Exp", "ExpandDims", "Fill", "Floor", "FloorDiv", "FloorMod", "FullyConnected", "Gather", "GatherNd", "Greater",
    "GreaterEqual", "HardSwish", "If", "L2Normalization", "L2Pool2D", "LeakyRelu", "Less", "LessEqual", "Log",
    "LogSoftmax", "LogicalAnd", "LogicalNot", "LogicalOr", "Logistic", "MaxPool2D", "Maximum", "Mean", "Minimum",
    "MirrorPad", "Mul", "Neg", "NotEqual", "Pack", "Pad", "PadV2", "Prelu", "Quantize", "ReadVariable", "ReduceAll",
    "ReduceMax", "ReduceMin", "Relu", "Relu6", "Reshape", "ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2",
    "Round", "Rsqrt", "SelectV2", "Shape", "Sin", "Slice", "Softmax", "SpaceToBatchNd", "SpaceToDepth", "Split",
    "SplitV", "Sqrt", "Square", "SquaredDifference", "Squeeze", "StridedSlice", "Sub", "Sum", "Svdf", "Tanh",
    "Transpose", "TransposeConv", "UnidirectionalSequenceLSTM", "Unpack", "VarHandle", "While", "ZerosLike",
)  # fmt: skip
"""Of MicroMutableOpResolver, without `Add` before them."""

_METHOD_OF = {method.upper(): f"Add{method}" for method in METHODS}


def emit(proven: Proven) -> list[Path]:
    """Writes SOURCES beside the file.

    Raises:
        UnsupportedError: the library has no kernel for one of its operators, or C no word for the type of an end.
    """
    data = proven.path.read_bytes()
    graph = Graph(data)
    by_npu = any(_custom(graph, operator) == ETHOS_U for operator in graph.operators)
    if by_npu or proven.arena is None:
        room, told = _all_tensors(graph) + BESIDE_NPU, "All tensors, and 16 KiB for what the interpreter keeps"
    else:
        room, told = proven.arena + _scratch(graph), "Counted on a 64-bit machine, and what CMSIS-NN may keep beside"
    steps: float
    steps, why = (1, "the golden answer is of kernels without the NPU") if by_npu else (0, "not at all")
    inputs, outputs = (
        [_end(graph, i, place, kind, values) for place, i in enumerate(ends)]
        for ends, kind, values in (
            (graph.inputs, "input", proven.inputs),
            (graph.outputs, "output", proven.outputs),
        )
    )
    if any(end["type"] == "float" for end in outputs):
        steps, why = max(steps, 1e-4), f"{why}; floats of another machine"
    known: dict[str, Any] = {
        "version": __version__,
        "source": proven.path.name,
        "size": len(data),
        "rows": _rows(data),
        "arena": {"bytes": 16 * math.ceil(room / 16), "how": f"{told}: the program says how much of it is used."},
        "inputs": inputs,
        "outputs": outputs,
        "methods": methods(graph),
        "tolerance": {"steps": steps, "why": why},
        "answered": " before Vela compiled it" if by_npu else "",
    }
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    written = [proven.path.with_name(name) for name in SOURCES]
    for path in written:
        atomic_write(path, environment.get_template(f"{path.name}.j2").render(known))
    return written


def methods(graph: Graph) -> list[str]:
    """What registers each operator of a file, sorted.

    Raises:
        UnsupportedError: there is no such method; names the operator and a layer.
    """
    found = set()
    for operator in graph.operators:
        kind = graph.kind(operator)
        method = "AddEthosU" if _custom(graph, operator) == ETHOS_U else _METHOD_OF.get(kind.replace("_", ""))
        if method is None:
            raise UnsupportedError(
                f"LiteRT for Microcontrollers has no kernel for {kind}",
                where=f"layer {graph.name(operator.outputs[0])}",
                remedy="replace it in the network by operators that it has",
            )
        found.add(method)
    return sorted(found)


def _custom(graph: Graph, operator: Any) -> str:
    code = graph.model.operatorCodes[operator.opcodeIndex].customCode
    return "" if code is None else str(code.decode())


def _end(graph: Graph, index: int, place: int, kind: str, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    name, dtype, shape = graph.name(index), graph.dtype(index), graph.shape(index)
    if dtype not in TYPES or name not in values or values[name].size != math.prod(shape):
        why = f"is of type {dtype}" if dtype not in TYPES else "has no golden values of its size"
        raise UnsupportedError(
            f"it {why}, and cannot be emitted", where=f"{kind} {name}", remedy="leave --emit away, or build it anew"
        )
    scales = graph.tensors[index].quantization
    known = scales is not None and scales.scale is not None and len(scales.scale) == 1
    return {
        "macro": f"MODEL_{kind.upper()}_{place}",
        "golden": f"golden_{kind}_{place}",
        "place": place,
        "name": "".join(c if c.isascii() and c.isprintable() and c not in '\\"?' else "_" for c in name),
        "type": TYPES[dtype],
        "shape": shape,
        "elements": math.prod(shape),
        "scale": _real(scales.scale[0]) if known else "",
        "zero_point": int(scales.zeroPoint[0]) if known else 0,
        "rows": _rows(values[name].ravel()),
    }


def _rows(values: Iterable[Any], columns: int = 16) -> str:
    """Values of an array, as C has them."""
    texts = [_real(float(v)) if isinstance(v, np.floating) else _whole(int(v)) for v in values]
    lines = (texts[start : start + columns] for start in range(0, len(texts), columns))
    return "\n".join(f"    {', '.join(line)}," for line in lines)


def _whole(value: int) -> str:
    # the least number of a type is no literal of it
    if value in (-(2**31), -(2**63)):
        return f"({value + 1}LL - 1)"
    return str(value) if abs(value) < 2**31 else f"{value}LL"


def _real(value: float) -> str:
    """A float32 that comes back as it is."""
    if not math.isfinite(value):
        return "NAN" if math.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"
    text = f"{float(value):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _all_tensors(graph: Graph) -> int:
    computed = (i for i in range(len(graph.tensors)) if graph.constant(i) is None)
    return sum(16 * math.ceil(_bytes(graph, i) / 16) for i in computed)


def _bytes(graph: Graph, index: int) -> int:
    return math.prod(graph.shape(index)) * np.dtype(graph.dtype(index)).itemsize


def _scratch(graph: Graph) -> int:
    """Bytes that CMSIS-NN's kernels keep in the arena and LiteRT's own do not, at most: what the greediest layer needs
    while it runs, and sums of weights that stay."""
    at_once, for_good = [0], 0
    for operator in graph.operators:
        kind = graph.kind(operator)
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            _, height, width, channels = graph.shape(operator.inputs[1])
            of_type = np.dtype(graph.dtype(operator.inputs[0])).itemsize
            at_once.append(4 * (16 * math.ceil(height * width * channels / 16)) * of_type + 16)
        elif kind == "TRANSPOSE_CONV":
            outputs, height, width, channels = graph.shape(operator.inputs[1])
            across = graph.shape(operator.outputs[0])[2]
            at_once.append(4 * max(height * width * channels + 16, height * (across + width) * outputs))
        elif kind == "AVERAGE_POOL_2D":
            at_once.append(4 * graph.shape(operator.outputs[0])[-1])
        elif kind == "FULLY_CONNECTED":
            for_good += 4 * graph.shape(operator.inputs[1])[0] + 16
    return max(at_once) + for_good
