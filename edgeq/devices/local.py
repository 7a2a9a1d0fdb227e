"""This machine as a device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edgeq.devices.device import Device, Exit
from edgeq.runtimes import RuntimeInfo


def run_here(command: Sequence[str], folder: Path, on_line: Callable[[str], None]) -> Exit:
    """Run a worker as a child process of this one.

    The child has a session of its own, so that Ctrl-C reaches this process alone, which then ends the child. Should
    this process be killed, the child sees its standard input close and leaves too.

    Args:
        command: what to put before `worker.py job.json`.
        folder: the job's, see `Run`.
        on_line: receives each line of the child's output.
    """
    log = folder / "stderr.txt"
    with open(log, "wb") as stderr:
        child = subprocess.Popen(
            [*command, "worker.py", "job.json"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
    assert child.stdin is not None and child.stdout is not None
    try:
        for line in child.stdout:
            on_line(line)
        status = child.wait()
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    return Exit(status, log.read_text(encoding="utf-8", errors="replace"))


def open_local() -> Device:
    """This machine, with the Python and the packages that edgeq itself runs on."""
    return Device(
        name="local",
        emulated=False,
        run=partial(run_here, [sys.executable]),
        missing=RuntimeInfo.missing,
        shares_host=True,
    )
