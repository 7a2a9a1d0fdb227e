"""ONNX Runtime with Qualcomm's execution provider."""

from __future__ import annotations

from edgeq import on_device
from edgeq.runtimes.info import RuntimeInfo
from edgeq.runtimes.onnxruntime import companions

INFO = RuntimeInfo(
    name="onnxruntime-qnn",
    distribution="onnxruntime-qnn",
    modules=("onnxruntime_qnn",),
    extra="qnn",
    suffixes=(".onnx",),
    on_device=on_device.FOLDER / "onnxruntime_qnn.py",
    companions=companions,
    elsewhere=True,
    accelerator="QNN",
)
