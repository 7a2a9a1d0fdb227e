"""Devices: where artefacts run and are measured."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.devices.device import Candidate, ColdStart, Device, Inputs, Interface, Port, workers_ahead
from edgeq.devices.local import open_local
from edgeq.devices.qemu import (
    DEFAULT_CPU,
    EMULATOR,
    devices_folder,
    open_emulated,
    read_machine,
    set_up_command,
    wanted_packages,
)
from edgeq.errors import UsageError
from edgeq.runtimes import RUNTIMES

__all__ = [
    "Candidate",
    "ColdStart",
    "Device",
    "DeviceStatus",
    "Inputs",
    "Interface",
    "Port",
    "device_status",
    "open_device",
    "workers_ahead",
]


def open_device(name: str) -> Device:
    """A device by name.

    Args:
        name: `local`; `arm64` or `x86_64`, which are emulated; these also with a CPU model, as in `arm64:cortex-a53`.

    Raises:
        DeviceError: it is not set up.
        UsageError: there is no such device.
    """
    if name == "local":
        return open_local()
    kind, _, cpu = name.partition(":")
    if kind in EMULATOR:
        return open_emulated(kind, cpu)
    known = ["local", *EMULATOR, *(f"{kind}:CPU" for kind in EMULATOR)]
    raise UsageError(f"there is no device {name!r}", remedy=f"one of {', '.join(known)}")


@dataclass(frozen=True)
class DeviceStatus:
    """One device as `edgeq device list` shows it.

    Attributes:
        ready: whether it can run artefacts now.
        runtimes: version of each runtime's package on it.
        detail: what it is, or what it lacks.
        remedy: the command that would set it right, if something is to be done.
    """

    name: str
    emulated: bool
    ready: bool
    runtimes: dict[str, str]
    detail: str
    remedy: str = ""


def device_status() -> list[DeviceStatus]:
    """Every device, whether it is ready, and what it lacks."""
    return [_local_status(), *(_emulated_status(kind) for kind in EMULATOR)]


def _local_status() -> DeviceStatus:
    lacking = [info for info in RUNTIMES.values() if not info.available()]
    return DeviceStatus(
        name="local",
        emulated=False,
        ready=len(lacking) < len(RUNTIMES),
        runtimes=_installed(),
        detail="this machine" + (f", without {', '.join(i.distribution for i in lacking)}" if lacking else ""),
        remedy="; ".join(info.missing().remedy for info in lacking),
    )


def _emulated_status(kind: str) -> DeviceStatus:
    folder = devices_folder() / kind
    machine = read_machine(folder)
    if machine is None:
        return DeviceStatus(kind, True, False, {}, "emulated, not set up", set_up_command(kind))
    stale = machine.packages != wanted_packages(kind)
    detail = f"emulated, {DEFAULT_CPU[kind]} unless another CPU is named, in {folder}"
    return DeviceStatus(
        name=kind,
        emulated=True,
        ready=True,
        runtimes=dict(machine.packages) if kind == "arm64" else _installed(),
        detail=detail + ("; its runtimes are of other versions than those used here" if stale else ""),
        remedy=set_up_command(kind) if stale else "",
    )


def _installed() -> dict[str, str]:
    return {info.distribution: v for info in RUNTIMES.values() if (v := info.version()) is not None}
