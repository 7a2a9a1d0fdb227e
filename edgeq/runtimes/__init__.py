"""The runtimes that artefacts are run in: what the host knows about each."""

from __future__ import annotations

from edgeq.errors import UsageError
from edgeq.runtimes import executorch, litert, onnxruntime, onnxruntime_qnn, openvino, tensorrt, tflite_micro, vela
from edgeq.runtimes.info import RuntimeInfo
from edgeq.runtimes.rules import Rulebook

__all__ = ["NOT_RUN", "RUNTIMES", "RuntimeInfo", "on_cpus", "runtime"]

_KNOWN = (
    onnxruntime.INFO,
    openvino.INFO,
    litert.INFO,
    onnxruntime_qnn.INFO,
    tflite_micro.INFO,
    vela.INFO,
    executorch.INFO,
)

RUNTIMES: dict[str, RuntimeInfo] = {info.name: info for info in _KNOWN}


def on_cpus() -> list[RuntimeInfo]:
    """Those that any machine may have."""
    return [info for info in RUNTIMES.values() if not info.elsewhere]


NOT_RUN: dict[str, Rulebook] = {"tensorrt": tensorrt.RULES}
"""Runtimes that files are written for, and that nothing is run in here: files are held against their rules."""


def runtime(name: str) -> RuntimeInfo:
    """What is known about a runtime.

    Raises:
        UsageError: it is none of those that edgeq can run artefacts in.
    """
    if name not in RUNTIMES:
        raise UsageError(f"no artefact can be run in {name!r}", remedy=f"one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name]
