"""`edgeq verify`: whether a build is still what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from edgeq.cli.options import DeviceName
from edgeq.cli.shell import Shell
from edgeq.errors import GateError

Build = Annotated[Path, typer.Argument(metavar="BUILD", help="The --out folder of `edgeq deploy`.")]


def verify(shell: Shell, build: Build, device: DeviceName = None) -> int:
    """Check a build against its lock: files, versions, and the answers on its device.

    Exit code 3 where something is not as it was.
    """
    with shell.stages() as stages:
        from edgeq.api.verify import verify as check

        found = check(build, device=device, progress=stages)
    if shell.json:
        shell.document(
            {
                "ok": found.ok,
                "files_changed": found.files_changed,
                "versions_changed": found.versions_changed,
                "drifts": found.drifts,
            }
        )
    else:
        for line in found.lines():
            shell.console.print(Text(line), soft_wrap=True)
    if found.ok:
        return 0
    return shell.tell(
        GateError(
            "the build is not what its lock says",
            where=str(build),
            remedy="restore its files, or build again with `edgeq deploy --overwrite`",
        )
    )
