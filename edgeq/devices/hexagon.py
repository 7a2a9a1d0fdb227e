"""Qualcomm's emulation of a Hexagon tensor processor, which its library for this machine's CPU brings along.

It computes as the processor does, and takes a thousand times as long. Where there is such a processor, `local`
is the device that runs on it.
"""

from __future__ import annotations

import sys

from edgeq.devices.device import Device
from edgeq.devices.link import PythonWorker
from edgeq.devices.local import run_here
from edgeq.errors import UsageError
from edgeq.runtimes import runtime

RUNTIME = "onnxruntime-qnn"


def open_hexagon(rest: str = "") -> Device:
    """The emulated processor.

    Raises:
        UsageError: more than its name was given.
        DeviceError: the library is not installed.
    """
    if rest:
        raise UsageError(f"there is no device 'hexagon:{rest}'", remedy="the emulated processor is called hexagon")
    if not runtime(RUNTIME).available():
        raise runtime(RUNTIME).missing()
    told = {"emulator": "Qualcomm's of a Hexagon tensor processor"}
    return Device("hexagon", True, run_here, runner=PythonWorker([sys.executable]), facts=told, shares_host=True)
