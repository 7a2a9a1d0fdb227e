"""This machine as a device."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edgeq.devices.device import WORKER, Device, Exit
from edgeq.registry.schema import RuntimeName
from edgeq.runtimes import RuntimeInfo


class Child:
    """A worker as a child process of this one.

    It has a session of its own, so that Ctrl-C reaches this process alone, which then ends the child. Should this
    process be killed, the child sees its standard input close and leaves too.
    """

    def __init__(self, command: Sequence[str], folder: Path | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (`end` closes it)
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )

    def follow(self, on_line: Callable[[str], None]) -> Exit:
        """Until it ends.

        Args:
            on_line: receives each line of its output.
        """
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                on_line(line)
            status = self._process.wait()
            self._stderr.seek(0)
            return Exit(status, self._stderr.read().decode("utf-8", "replace"))
        finally:
            self.end()

    def run(self, folder: Path, on_line: Callable[[str], None]) -> Exit:
        """Does the job in a folder, if it was started ahead of it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended, and its status says how
            self._process.stdin.write(json.dumps(str(folder / "job.json")) + "\n")
            self._process.stdin.flush()
        return self.follow(on_line)

    def end(self) -> None:
        """Whatever it is at."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # what it did not read
                stream.close()


def run_here(command: Sequence[str], folder: Path, on_line: Callable[[str], None]) -> Exit:
    """Run a worker.

    Args:
        command: what to put before `worker.py job.json`.
        folder: the job's, see `Run`.
        on_line: receives each line of the child's output.
    """
    return Child([*command, "worker.py", "job.json"], folder).follow(on_line)


def start_here(name: RuntimeName) -> Child:
    """A worker that imports a runtime and waits for a job."""
    return Child([sys.executable, str(WORKER), "--ahead", name])


def open_local() -> Device:
    """This machine, with the Python and the packages that edgeq itself runs on."""
    return Device(
        name="local",
        emulated=False,
        run=partial(run_here, [sys.executable]),
        missing=RuntimeInfo.missing,
        shares_host=True,
        start=start_here,
    )
