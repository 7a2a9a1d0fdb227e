"""Processors that a library computes for on this machine, as they would, and in another time.

Where there is such a processor, `local` is the device that runs on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from edgeq.devices.device import Device
from edgeq.devices.link import PythonWorker
from edgeq.devices.local import run_here
from edgeq.errors import UsageError
from edgeq.runtimes import runtime


class StandIn(NamedTuple):
    """One of them.

    Attributes:
        runtime: whose library it is.
        emulator: what stands in, for reports.
        quick: whether it takes no longer than this machine's own runtimes do.
    """

    runtime: str
    emulator: str
    quick: bool = False


STAND_INS = {
    "hexagon": StandIn("onnxruntime-qnn", "Qualcomm's own, of a Hexagon tensor processor"),
    "micro": StandIn("tflite-micro", "the interpreter for microcontrollers, with its own kernels", quick=True),
}


def opens(name: str) -> Callable[[str], Device]:
    """What opens one of them. Its errors:

    Raises:
        UsageError: more than its name was given.
        DeviceError: the library is not installed.
    """
    return partial(_open, name)


def _open(name: str, rest: str) -> Device:
    one = STAND_INS[name]
    info = runtime(one.runtime)
    if rest:
        raise UsageError(f"there is no device '{name}:{rest}'", remedy=f"it is called {name}")
    if not info.available():
        raise info.missing()
    python = PythonWorker([sys.executable])
    told = {"emulator": one.emulator}
    return Device(name, True, run_here, runner=python, facts=told, quick=one.quick, shares_host=True)
