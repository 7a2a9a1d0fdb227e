"""What Vela compiles for an Ethos-U. Its files are run before that, by the interpreter for microcontrollers."""

from __future__ import annotations

from dataclasses import replace

from edgeq.runtimes import tflite_micro

INFO = replace(
    tflite_micro.INFO,
    name="vela",
    arena=False,
    remark="the file was run as it is before Vela compiles it, by LiteRT for Microcontrollers",
)
