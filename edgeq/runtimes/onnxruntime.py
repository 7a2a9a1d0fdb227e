"""ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from edgeq import on_device
from edgeq.runtimes.external import external_files
from edgeq.runtimes.info import RuntimeInfo


def companions(path: Path) -> list[Path]:
    """The external data files that an ONNX file names.

    Raises:
        UsageError: see `external_files`.
    """
    return external_files(path) if path.suffix == ".onnx" else []


INFO = RuntimeInfo(
    name="onnxruntime",
    distribution="onnxruntime",
    modules=("onnxruntime",),
    extra=None,
    suffixes=(".onnx", ".ort"),
    on_device=on_device.FOLDER / "onnxruntime.py",
    companions=companions,
)
