"""LiteRT for Microcontrollers."""

from __future__ import annotations

from edgeq import on_device
from edgeq.runtimes.info import RuntimeInfo

INFO = RuntimeInfo(
    name="tflite-micro",
    distribution="tflite-micro",
    modules=("tflite_micro",),
    extra="micro",
    suffixes=(".tflite",),
    on_device=on_device.FOLDER / "tflite_micro.py",
    elsewhere=True,
    arena=True,
)
