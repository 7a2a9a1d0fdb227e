"""File formats of artefacts, by name: what everyone may know of one without its libraries."""

from __future__ import annotations

from typing import NamedTuple


class FileFormat(NamedTuple):
    """One format (docs/runtimes.md).

    Attributes:
        files: of an artefact, the one that a runtime opens first.
        writer: the module that converts, writes and reads it, a `edgeq.export.writers.Writer`. It is imported where it
            is used: its libraries take a second, and a plan whose costs are all kept writes nothing.
        pairs: whether integers are written as float operators between pairs of QuantizeLinear and DequantizeLinear, so
            that the runtime decides which of them it fuses; else each operator says itself in what it computes.
    """

    files: tuple[str, ...]
    writer: str
    pairs: bool


FORMATS = {
    "onnx": FileFormat(("model.onnx",), "edgeq.export.onnx_format", pairs=True),
    "openvino": FileFormat(("model.xml", "model.bin"), "edgeq.export.openvino_format", pairs=True),
    "tflite": FileFormat(("model.tflite",), "edgeq.export.tflite_format", pairs=False),
    "executorch": FileFormat(("model.pte",), "edgeq.export.executorch_format", pairs=True),
}
