"""Every kind of device, by what its name begins with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from edgeq.devices.adb import open_adb
from edgeq.devices.device import Device
from edgeq.devices.local import open_local
from edgeq.devices.named import keep, named
from edgeq.devices.qemu import (
    DEFAULT_CPU,
    EMULATOR,
    devices_folder,
    open_emulated,
    open_qemu,
    read_machine,
    set_up_command,
    wanted_packages,
)
from edgeq.devices.ssh import open_ssh
from edgeq.devices.stand_in import STAND_INS, opens
from edgeq.errors import UsageError
from edgeq.runtimes import on_cpus, runtime


@dataclass(frozen=True)
class DeviceStatus:
    """One device as `edgeq device list` shows it.

    Attributes:
        ready: whether it can run artefacts now; None where it was not asked.
        runtimes: version of each runtime's package on it.
        detail: what it is, or what it lacks.
        remedy: the command that would set it right, if something is to be done.
    """

    name: str
    emulated: bool
    ready: bool | None
    runtimes: dict[str, str]
    detail: str
    remedy: str = ""


class Kind(NamedTuple):
    """One kind of devices (docs/links.md).

    Attributes:
        names: how they are called, for people.
        open: a device, by what its name has behind the first colon. A UsageError says that there is no such one, a
            DeviceError that it is not there.
        status: of the one that is called by the kind's name alone, where there is one.
    """

    names: str
    open: Callable[[str], Device]
    status: Callable[[], DeviceStatus] | None = None


def open_device(name: str) -> Device:
    """A device by name.

    Args:
        name: `local`; `arm64` or `x86_64`, which are emulated; these also with a CPU model, as in `arm64:cortex-a53`;
            what else is in `LINKS`, such as `ssh://user@host`; or a name that a user gave one of these.

    Raises:
        DeviceError: it is not set up, or not there.
        UsageError: there is no such device.
    """
    own = named()
    address = own.get(name, name)
    kind, _, rest = address.partition(":")
    if kind not in LINKS:
        known = ", ".join([*own, *(one.names for one in LINKS.values())])
        raise UsageError(f"there is no device {address!r}", remedy=f"one of {known}")
    device = LINKS[kind].open(rest.removeprefix("//"))
    return replace(device, name=name) if name in own else device


def add_device(name: str, address: str) -> None:
    """Gives a device a name of the user's.

    Raises:
        UsageError: the name is a kind's, or no name; or there is no such device.
    """
    kind = address.partition(":")[0]
    if name in LINKS:
        raise UsageError(f"{name!r} is a kind of device", remedy="give it another name")
    if kind not in LINKS:
        known = ", ".join(one.names for one in LINKS.values())
        raise UsageError(f"there is no device {address!r}", remedy=f"one of {known}")
    keep(name, address)


def device_status() -> list[DeviceStatus]:
    """Every device, whether it is ready, and what it lacks."""
    kinds = [kind.status() for kind in LINKS.values() if kind.status is not None]
    return kinds + [
        DeviceStatus(name, False, None, {}, address, f"edgeq device doctor {name}") for name, address in named().items()
    ]


def _local_status() -> DeviceStatus:
    known = on_cpus()
    lacking = [info for info in known if not info.available()]
    return DeviceStatus(
        name="local",
        emulated=False,
        ready=len(lacking) < len(known),
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


def _stand_in_status(name: str) -> DeviceStatus:
    info = runtime(STAND_INS[name].runtime)
    version = info.version()
    return DeviceStatus(
        name=name,
        emulated=True,
        ready=version is not None,
        runtimes={} if version is None else {info.distribution: version},
        detail=f"emulated: {STAND_INS[name].emulator}",
        remedy="" if version else info.missing().remedy,
    )


def _installed() -> dict[str, str]:
    return {info.distribution: v for info in on_cpus() if (v := info.version()) is not None}


LINKS = {
    "local": Kind("local", open_local, _local_status),
    **{
        kind: Kind(f"{kind}, {kind}:CPU", partial(open_emulated, kind), partial(_emulated_status, kind))
        for kind in EMULATOR
    },
    **{name: Kind(name, opens(name), partial(_stand_in_status, name)) for name in STAND_INS},
    "qemu": Kind("qemu://arm64?cpu=CPU", open_qemu),
    "ssh": Kind("ssh://user@host", open_ssh),
    "adb": Kind("adb://serial", open_adb),
}
"""By what comes before the first colon of a name; two slashes behind it, as in `ssh://board`, are no part of it."""
