"""What a device has and lacks for running artefacts, as it says itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeq.devices.links import open_device
from edgeq.errors import DeviceError
from edgeq.runtimes import on_cpus

LEAST_ROOM = 500 << 20
"""Bytes: a job brings its artefact and its samples."""

WARM = 70.0
"""Degrees from which boards begin to slow down."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        good: None where it can be worked with, and is worth a look.
        remedy: what would set it right.
    """

    what: str
    good: bool | None
    detail: str
    remedy: str = ""


def examine(name: str) -> list[Finding]:
    """Looks at a device: whether it is reached, each runtime, and the state that it is in.

    Raises:
        UsageError: there is no such device.
    """
    try:
        device = open_device(name)
    except DeviceError as error:
        return [Finding("reached", False, error.cause, error.remedy)]
    try:
        state = _state(device.health())
    except DeviceError as error:
        state = [Finding("state", None, error.cause, error.remedy)]
    found = [Finding("reached", True, "emulated: its times are none" if device.emulated else "its times count")]
    told: dict[str, str] = {}
    for info in on_cpus():
        try:
            told = device.environment(info.name)
            found.append(Finding(info.distribution, True, told["runtime_version"]))
        except DeviceError as error:
            found.append(Finding(info.distribution, False, error.cause, error.remedy))
    if told:
        words = (told["system"], told["machine"], told["cpu"], told["cpu_isa"], f"Python: {told['python']}")
        found.insert(1, Finding("is", True, ", ".join(filter(None, words))))
    return found + state


def _state(health: dict[str, Any]) -> list[Finding]:
    found = [Finding("cores", True, f"{health['cores']}")]
    if "megahertz" in health:
        most = f" of {max(health['most_megahertz']):.0f}" if "most_megahertz" in health else ""
        found.append(Finding("clock", True, f"{max(health['megahertz']):.0f}{most} MHz"))
    if governors := health.get("governors"):
        steady = governors == ["performance"]
        remedy = "" if steady else "for steady times: cpupower frequency-set -g performance"
        found.append(Finding("governor", True if steady else None, ", ".join(governors), remedy))
    if "celsius" in health:
        warm = health["celsius"] >= WARM
        detail, remedy = f"{health['celsius']:.0f} °C", "let it cool down before times are taken" if warm else ""
        found.append(Finding("temperature", None if warm else True, detail, remedy))
    if "available_bytes" in health:
        found.append(Finding("memory", True, f"{health['available_bytes'] / 1e6:,.0f} MB to be had"))
    little = health["free_bytes"] < LEAST_ROOM
    remedy = "free some space, or name another folder: ?folder=/data/tmp" if little else ""
    found.append(Finding("room", None if little else True, f"{health['free_bytes'] / 1e6:,.0f} MB free", remedy))
    counters = health.get("counters", [])
    found.append(Finding("energy", True, ", ".join(counters) if counters else "no counter, so that none is told"))
    return found
