"""This machine as a device."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeq.devices.device import Device
from edgeq.devices.link import WORKER, Exit, PythonWorker
from edgeq.errors import UsageError
from edgeq.runtimes import runtime

PATIENCE = 20.0
"""Minutes that a worker may say nothing. It tells of every call, so that loading and one call fit in."""


def patience() -> float:
    """Seconds that a worker may say nothing: as `$EDGEQ_PATIENCE` has it in minutes, or else `PATIENCE`.

    Raises:
        UsageError: the variable holds no such number.
    """
    told = os.environ.get("EDGEQ_PATIENCE", "")
    try:
        minutes = float(told) if told else PATIENCE
    except ValueError:
        minutes = math.nan
    if not minutes > 0:
        raise UsageError(f"cannot read {told!r}", where="EDGEQ_PATIENCE", remedy="set it to a number of minutes, 20")
    return 60 * minutes


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
            with _Listener(self._process) as listener:
                for line in self._process.stdout:
                    listener.heard()
                    on_line(line)
                status = self._process.wait()
            self._stderr.seek(0)
            return Exit(status, self._stderr.read().decode("utf-8", "replace"), listener.ended_after)
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


class _Listener:
    """Ends a process that says nothing for too long; `ended_after` is then for how many seconds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.ended_after: float | None = None
        self._process = process
        self._patience = patience()
        self._last = time.monotonic()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="listener", daemon=True)

    def __enter__(self) -> _Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def heard(self) -> None:
        self._last = time.monotonic()

    def _wait(self) -> None:
        while not self._left.wait(self._last + self._patience - time.monotonic()):
            if time.monotonic() - self._last >= self._patience:
                self.ended_after = self._patience
                self._process.kill()
                return


def run_here(folder: Path, command: Sequence[str], on_line: Callable[[str], None]) -> Exit:
    """The link to this machine: a process in the job's own folder."""
    return Child(command, folder).follow(on_line)


def start_here(name: str) -> Child:
    """A worker that imports a runtime and waits for a job."""
    return Child([sys.executable, str(WORKER), "--ahead", str(runtime(name).on_device)])


def open_local(rest: str = "") -> Device:
    """This machine, with the Python and the packages that edgeq itself runs on.

    Raises:
        UsageError: more than its name was given.
    """
    if rest:
        raise UsageError(f"there is no device 'local:{rest}'", remedy="this machine is called local")
    return Device("local", False, run_here, runner=PythonWorker([sys.executable]), shares_host=True, start=start_here)
