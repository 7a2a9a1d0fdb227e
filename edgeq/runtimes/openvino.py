"""OpenVINO: the compiled execution graph names each kernel and the precision that it runs in."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from edgeq.errors import MissingExtraError
from edgeq.reading import within
from edgeq.records.schema import Placement
from edgeq.runtimes import onnxruntime
from edgeq.runtimes.info import Row, RuntimeInfo

_INTEGERS = frozenset({"i4", "u4", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"})
_WEIGHTED = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_FLOAT_KERNELS = ("_f32", "_bf16", "_f16")
_CONVERSIONS_AND_MOVES = frozenset(
    {"Broadcast", "Concatenation", "Convert", "FakeQuantize", "Gather", "Pad", "Reorder", "Reshape", "ShapeOf", "Split",
     "StridedSlice", "Tile", "Transpose", "MemoryInput", "MemoryOutput"}
)  # fmt: skip


def integer(op: str, precision: str, kernel: str) -> bool | None:
    """Whether a node computed on integers; None where it only moves or converts data.

    Args:
        op: `layerType` of the execution graph.
        precision: its `runtimePrecision`, that of one of the node's inputs: of a product with compressed weights that
            of the weights, although the kernel is one of floats.
        kernel: its `primitiveType`, such as `brgemm_avx512_f32`.
    """
    if op in _CONVERSIONS_AND_MOVES:
        return None
    if op in _WEIGHTED and kernel.endswith(_FLOAT_KERNELS):
        return False
    return precision in _INTEGERS


def placements(rows: Sequence[Row]) -> list[Placement]:
    """Nodes of an OpenVINO execution graph: `where` is the plugin and the kernel with its precision."""
    return [
        Placement(
            name=row["name"],
            op=row["op"],
            where=f"CPU {row['kernel']}",
            integer=integer(row["op"], row["precision"], row["kernel"]),
            microseconds=row["microseconds"],
        )
        for row in rows
    ]


def companions(path: Path) -> list[Path]:
    """The weights beside an `.xml`; OpenVINO reads ONNX files too, with their external data."""
    if path.suffix == ".xml":
        return [within(path.parent, path.with_suffix(".bin").name, str(path))]
    return onnxruntime.companions(path)


def baselines(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Float variants: float32, and the reduced precisions that the device's CPU has arithmetic for."""
    has = environment.get("capabilities", "").split()
    names = ["float32"] + [name for name, flag in (("bfloat16", "BF16"), ("float16", "FP16")) if flag in has]
    return {name: {"precision": name} for name in names}


_importing = Lock()


def import_openvino() -> Any:
    """The package itself, to write and read its files with.

    When it is imported it sends its makers an event and keeps an id in the user's home, by way of a package that it
    does without where that is missing: so that is not to be found meanwhile.

    Raises:
        MissingExtraError: it is not installed.
    """
    with _importing:
        hidden = "openvino_telemetry" not in sys.modules
        if hidden:
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("openvino", "openvino") from error
        finally:
            if hidden:
                del sys.modules["openvino_telemetry"]
    return openvino


INFO = RuntimeInfo(
    name="openvino",
    distribution="openvino",
    modules=("openvino",),
    extra="openvino",
    suffixes=(".xml", ".onnx"),
    companions=companions,
    baselines=baselines,
    placements=placements,
)
