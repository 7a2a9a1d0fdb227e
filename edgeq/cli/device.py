"""`edgeq device`: where artefacts can run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from edgeq.cli.shell import Shell


def list_devices(shell: Shell) -> int:
    """List the devices, whether they are ready, and what they lack."""
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
        ready = Text("yes", "green") if status.ready else Text("no", "yellow")
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
