"""The float ONNX model: what the quantized one is made from, and the baseline that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir


@dataclass(frozen=True)
class FloatOnnx:
    """A float ONNX model and its tensors.

    Attributes:
        model: with the user's input and output names.
        values: name of the ONNX value for each graph node that is still there; operators that the exporter merged
            (a padding into its convolution) are absent.
    """

    model: ir.Model
    values: dict[str, str]

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process, as the cache keeps it."""
        from edgeq.export.onnx_format import pack, unpack

        return unpack, (pack(self),)


def save(model: ir.Model, path: Path) -> None:
    """Writes one file, weights inside; the same model gives the same bytes."""
    proto = ir.to_proto(model)
    # every reader infers the shapes of inner values, and of a small network they are an eighth of the file
    del proto.graph.value_info[:]
    path.write_bytes(proto.SerializeToString(deterministic=True))
