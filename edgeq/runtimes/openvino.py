"""OpenVINO: the compiled execution graph names each kernel and the precision that it runs in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeq.report.schema import Placement
from edgeq.runtimes import onnxruntime
from edgeq.runtimes.info import Row, RuntimeInfo

_INTEGERS = frozenset({"i4", "u4", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"})
_CONVERSIONS_AND_MOVES = frozenset(
    {"Broadcast", "Concatenation", "Convert", "FakeQuantize", "Gather", "Pad", "Reorder", "Reshape", "ShapeOf", "Split",
     "StridedSlice", "Tile", "Transpose", "MemoryInput", "MemoryOutput"}
)  # fmt: skip


def integer(op: str, precision: str) -> bool | None:
    """Whether a node computed on integers; None where it only moves or converts data.

    Args:
        op: `layerType` of the execution graph.
        precision: its `runtimePrecision`, that of the node's inputs.
    """
    if op in _CONVERSIONS_AND_MOVES:
        return None
    return precision in _INTEGERS


def placements(rows: Sequence[Row]) -> list[Placement]:
    """Nodes of an OpenVINO execution graph: `where` is the plugin and the kernel with its precision."""
    return [
        Placement(
            name=row["name"],
            op=row["op"],
            where=f"CPU {row['kernel']}",
            integer=integer(row["op"], row["precision"]),
            microseconds=row["microseconds"],
        )
        for row in rows
    ]


def companions(path: Path) -> list[Path]:
    """The weights beside an `.xml`; OpenVINO reads ONNX files too, with their external data."""
    return [path.with_suffix(".bin")] if path.suffix == ".xml" else onnxruntime.companions(path)


def baselines(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Float variants: float32, and the reduced precisions that the device's CPU has arithmetic for."""
    has = environment.get("capabilities", "").split()
    names = ["float32"] + [name for name, flag in (("bfloat16", "BF16"), ("float16", "FP16")) if flag in has]
    return {name: {"precision": name} for name in names}


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
