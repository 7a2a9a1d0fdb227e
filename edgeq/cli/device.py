"""`edgeq device`: where artefacts can run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from edgeq.cli.shell import Shell

_READY = {True: Text("yes", "green"), False: Text("no", "yellow"), None: Text("?", "yellow")}


def list_devices(shell: Shell) -> int:
    """List the devices, whether they are ready, and what they lack. Those with a name of yours are not asked."""
    from edgeq.devices import device_status

    found = device_status()
    if shell.json:
        shell.document({"devices": found})
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("device", "ready", "runtimes", "is"):
        table.add_column(heading)
    for status in found:
        runtimes = ", ".join(f"{name} {version}" for name, version in status.runtimes.items())
        ready = _READY[status.ready]
        table.add_row(Text(status.name, "bold"), ready, runtimes or "-", Text(status.detail))
    shell.console.print(table)
    for status in found:
        if status.remedy:
            shell.console.print(Text(f"{status.name}: {status.remedy}"), soft_wrap=True)
    return 0


def setup(
    shell: Shell,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="arm64 or x86_64.")],
    force: Annotated[bool, typer.Option("--force", help="Build it anew even if it is there.")] = False,
) -> int:
    """Set up an emulated machine. Needs a Debian system with network, and no root."""
    from edgeq.devices.setup import set_up

    with shell.stages() as stages:
        folder = set_up(device, stages, force=force)
    if shell.json:
        shell.document({"device": device, "folder": folder})
    elif not shell.quiet:
        shell.console.print(str(folder), markup=False, soft_wrap=True)
    return 0


def add(
    shell: Shell,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it, as in --device NAME.")],
    address: Annotated[
        str, typer.Argument(metavar="URL", help="ssh://user@host:22?python=/usr/bin/python3, qemu://arm64?cpu=CPU.")
    ],
) -> int:
    """Give a device a name. It is not asked: `edgeq device doctor NAME` does that."""
    from edgeq.devices import add_device

    add_device(name, address)
    if shell.json:
        shell.document({"device": name, "address": address})
    return 0


def remove(shell: Shell, name: Annotated[str, typer.Argument(metavar="NAME", help="As it was added.")]) -> int:
    """Forget a device that was added."""
    from edgeq.devices import forget_device

    forget_device(name)
    if shell.json:
        shell.document({"device": name})
    return 0


def doctor(shell: Shell, name: Annotated[str, typer.Argument(metavar="DEVICE", help="A name or an address.")]) -> int:
    """Ask a device for Python, runtimes, cores, clocks, temperature and room. Exit code 5 if nothing runs there."""
    from edgeq.devices import examine
    from edgeq.errors import DeviceError
    from edgeq.runtimes import RUNTIMES

    with shell.stages() as stages:
        stages.start(f"ask {name}")
        found = examine(name)
    if shell.json:
        shell.document({"device": name, "findings": found})
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
        for one in found:
            table.add_row(Text(one.what, "bold"), _GOOD[one.good], Text(one.detail))
        shell.console.print(table)
        for one in found:
            if one.remedy:
                shell.console.print(Text(f"{one.what}: {one.remedy}"), soft_wrap=True)
    runtimes = {info.distribution for info in RUNTIMES.values()}
    return 0 if any(one.good for one in found if one.what in runtimes) else DeviceError.exit_code


_GOOD = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("look", "yellow")}
