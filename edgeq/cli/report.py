"""`edgeq report`: what a build measured, shown again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeq.cli.shell import Shell
from edgeq.cli.verify import Build
from edgeq.errors import UsageError
from edgeq.reading import read_bytes

if TYPE_CHECKING:
    from edgeq.records.schema import Report


def report(
    shell: Shell,
    build: Build,
    html: Annotated[
        bool, typer.Option("--html", help="Open the full report in the browser, and print its path.")
    ] = False,
) -> int:
    """Show the report of a build.

    The exit code is 0 also where a limit was missed: it says whether the report could be shown.
    """
    from edgeq.report.console import render

    if html:
        return _open(shell, build / "report.html")
    found = read_report(build)
    if shell.json:
        shell.document(found)
    else:
        render(found, shell.console, build)
    return 0


def read_report(build: Path) -> Report:
    """The report in the folder of a build.

    Raises:
        UsageError: there is none, it is damaged, or of another version of edgeq.
    """
    from pydantic import ValidationError

    from edgeq.records.schema import Report

    path = build / "report.json"
    try:
        if not path.exists():
            raise _no_report(path)
        return Report.model_validate_json(read_bytes(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"is no report that this edgeq can read ({place + ': ' if place else ''}{first['msg']})",
            where=str(path),
            remedy="use the edgeq that made it, or build again",
        ) from error


def _open(shell: Shell, path: Path) -> int:
    if not path.is_file():
        raise _no_report(path)
    import webbrowser

    # Without a display the browser would be one that takes the terminal over.
    display = sys.platform in ("darwin", "win32") or any(os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY"))
    opened = display and not shell.json and webbrowser.open(path.resolve().as_uri())
    if shell.json:
        shell.document({"html": path, "opened": opened})
    else:
        shell.console.print(str(path), markup=False, soft_wrap=True)
    return 0


def _no_report(path: Path) -> UsageError:
    return UsageError(f"there is no {path.name} here", where=str(path.parent), remedy="give the --out folder of deploy")
