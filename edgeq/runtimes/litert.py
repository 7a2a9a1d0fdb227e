"""LiteRT: the interpreter says which operators a delegate took over, and the types of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeq.records.schema import Placement
from edgeq.runtimes.info import Row, RuntimeInfo

_CONVERSIONS_AND_MOVES = frozenset(
    {"BROADCAST_TO", "CAST", "CONCATENATION", "DEQUANTIZE", "EXPAND_DIMS", "GATHER", "PACK", "PAD", "PADV2", "QUANTIZE",
     "RESHAPE", "SHAPE", "SLICE", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK"}
)  # fmt: skip
_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})


def integer(op: str, inputs: Sequence[str], outputs: Sequence[str]) -> bool | None:
    """Whether an operator computed on integers, told from the types of its tensors.

    None where it only moves or converts data, and for float activations with integer weights: there the kernel may
    quantize the activations on the way in or expand the weights, and the interpreter does not say which.

    Args:
        op: the operator's name in the file (`CONV_2D`).
        inputs: element types of its operands, numpy's names.
        outputs: of its results.
    """
    if op in _CONVERSIONS_AND_MOVES or not inputs or not outputs:
        return None
    if op in _WEIGHTED and "float" in inputs[0] and "int" in inputs[1]:
        return None
    return all("int" in kind for kind in (inputs[0], *outputs))


def placements(rows: Sequence[Row]) -> list[Placement]:
    """Operators of a `.tflite` file: `where` is the delegate, or the interpreter's own kernels. The Python interpreter
    has no per-operator times."""
    return [
        Placement(
            name=row["name"],
            op=row["op"],
            where=row["where"],
            integer=integer(row["op"], row["inputs"], row["outputs"]),
            microseconds=None,
        )
        for row in rows
    ]


def companions(path: Path) -> list[Path]:
    """A `.tflite` file stands alone."""
    return []


def baselines(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Float variants: the Python interpreter offers float32 alone."""
    return {"float32": {"precision": "float32"}}


INFO = RuntimeInfo(
    name="litert",
    distribution="ai-edge-litert",
    modules=("ai_edge_litert", "tflite_runtime", "tensorflow"),
    extra="tflite",
    suffixes=(".tflite",),
    companions=companions,
    baselines=baselines,
    placements=placements,
)
