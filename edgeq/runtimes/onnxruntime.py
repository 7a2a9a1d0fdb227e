"""ONNX Runtime: its own profile says which operator ran with which types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeq.records.schema import Placement
from edgeq.runtimes.external import external_files
from edgeq.runtimes.info import Row, RuntimeInfo

_INTEGER_OPS = frozenset(
    {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm",
     "QAttention"}
)  # fmt: skip
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "ReorderInput", "ReorderOutput", "Reshape", "Shape",
     "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)  # fmt: skip
_UNTOLD = frozenset({"MatMulNBits", "GatherBlockQuantized"})
"""Low-bit weights with float activations: the profile does not say in which arithmetic they meet."""


def integer(op: str, inputs: Sequence[str], outputs: Sequence[str]) -> bool | None:
    """Whether an operator computed on integers; None where it only moves or converts data, or the profile is silent.

    Args:
        op: the operator's type after fusion.
        inputs: element types of its inputs, as ONNX Runtime writes them (`uint8`, `float`).
        outputs: likewise.
    """
    if op in _CONVERSIONS or op in _MOVES or op in _UNTOLD or not inputs or not outputs:
        return None
    if op in _INTEGER_OPS or op.startswith("QLinear"):
        return True
    return all("int" in kind for kind in (inputs[0], *outputs))


def placements(rows: Sequence[Row]) -> list[Placement]:
    """Operators of an ONNX Runtime profile: `where` is the execution provider, microseconds a mean over calls."""
    return [
        Placement(
            name=row["name"] or row["op"],
            op=row["op"],
            where=row["provider"],
            integer=integer(row["op"], row["inputs"], row["outputs"]),
            microseconds=row["microseconds"],
        )
        for row in rows
    ]


def companions(path: Path) -> list[Path]:
    """The external data files that an ONNX file names.

    Raises:
        UsageError: see `external_files`.
    """
    return external_files(path) if path.suffix == ".onnx" else []


def baselines(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Float variants: ONNX Runtime's CPU provider has float32 alone."""
    return {"float32": {"precision": "float32"}}


INFO = RuntimeInfo(
    name="onnxruntime",
    distribution="onnxruntime",
    modules=("onnxruntime",),
    extra=None,
    suffixes=(".onnx", ".ort"),
    companions=companions,
    baselines=baselines,
    placements=placements,
)
