"""Devices: where artefacts run and are measured."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.devices.device import Candidate, ColdStart, Device, Inputs, Interface, Port
from edgeq.devices.local import open_local
from edgeq.devices.qemu import SET_UP, devices_folder, installed_pins, open_arm64, read_machine
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
]


def open_device(name: str) -> Device:
    """A device by name: `local`, `arm64`, or `arm64:` and a CPU model such as `arm64:cortex-a53`.

    Raises:
        DeviceError: it is not set up.
        UsageError: there is no such device.
    """
    kind, _, model = name.partition(":")
    if name == "local":
        return open_local()
    if kind == "arm64":
        return open_arm64(model) if model else open_arm64()
    raise UsageError(f"there is no device {name!r}", remedy="one of local, arm64, arm64:CPU")


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
    return [_local_status(), _arm64_status()]


def _local_status() -> DeviceStatus:
    versions = {info.distribution: info.version() for info in RUNTIMES.values()}
    lacking = [info for info in RUNTIMES.values() if not info.available()]
    return DeviceStatus(
        name="local",
        emulated=False,
        ready=len(lacking) < len(RUNTIMES),
        runtimes={name: version for name, version in versions.items() if version},
        detail="this machine" + (f", without {', '.join(i.distribution for i in lacking)}" if lacking else ""),
        remedy="; ".join(info.missing().remedy for info in lacking),
    )


def _arm64_status() -> DeviceStatus:
    folder = devices_folder() / "arm64"
    machine = read_machine(folder)
    if machine is None:
        return DeviceStatus("arm64", True, False, {}, f"not set up in {folder}", SET_UP)
    stale = machine.packages != installed_pins()
    detail = f"emulated Arm machine in {folder}" + (", with other versions than those used here" if stale else "")
    return DeviceStatus("arm64", True, True, machine.packages, detail, SET_UP if stale else "")
