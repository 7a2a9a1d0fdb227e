"""LiteRT, which runs `.tflite` files."""

from edgeq import on_device
from edgeq.runtimes.info import RuntimeInfo

INFO = RuntimeInfo(
    name="litert",
    distribution="ai-edge-litert",
    modules=("ai_edge_litert", "tflite_runtime", "tensorflow"),
    extra="tflite",
    suffixes=(".tflite",),
    on_device=on_device.FOLDER / "litert.py",
    timed_alone=True,
)
