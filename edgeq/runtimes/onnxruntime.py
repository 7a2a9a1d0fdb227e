"""ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from edgeq import on_device
from edgeq.runtimes.external import external_files
from edgeq.runtimes.info import RuntimeInfo


def companions(path: Path) -> list[Path]:
    """The external data files that an ONNX file names, and what the builder of ONNX Runtime GenAI says beside it of a
    language model: how wide its cache is, which the file itself may leave open.

    Raises:
        UsageError: see `external_files`.
    """
    if path.suffix != ".onnx":
        return []
    told = path.with_name("genai_config.json")
    return [*external_files(path), *([told] if told.is_file() else [])]


INFO = RuntimeInfo(
    name="onnxruntime",
    distribution="onnxruntime",
    modules=("onnxruntime",),
    extra=None,
    suffixes=(".onnx", ".ort"),
    on_device=on_device.FOLDER / "onnxruntime.py",
    companions=companions,
)
