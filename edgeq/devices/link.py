"""Links and runners: how a job's folder gets to a device, and what does the job there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgeq import on_device
from edgeq.runtimes import RuntimeInfo

WORKER = on_device.FOLDER / "worker.py"


class Exit(NamedTuple):
    """How a worker ended: its exit status, negative for a signal, what it wrote to standard error, and for how many
    seconds it had said nothing when it was ended for that."""

    status: int
    stderr: str
    silent: float | None = None


class Link(Protocol):
    """A way to a device (docs/links.md)."""

    def __call__(self, folder: Path, command: Sequence[str], on_line: Callable[[str], None]) -> Exit:
        """Runs a command on the device in a folder, and waits for it.

        Args:
            folder: all that the command needs. What it wrote is in there afterwards: a device elsewhere gets a copy,
                and new files are copied back.
            on_line: receives each line of its output.

        Raises:
            DeviceError: the device cannot be reached.
        """


class Runner(Protocol):
    """What does a job on a device (docs/links.md): the worker in Python, or a program of the runtime's makers."""

    def prepare(self, folder: Path, job: Mapping[str, Any], info: RuntimeInfo) -> Sequence[str]:
        """Puts what it needs into the folder, beside artefacts and inputs, and returns the command to run there.

        Args:
            job: see `edgeq.on_device.worker`.
        """

    def result(self, folder: Path, lines: Sequence[str]) -> dict[str, Any] | None:
        """What came of it, in the worker's words; None where nothing did.

        Args:
            lines: what the command wrote to standard output.
        """


@dataclass(frozen=True)
class PythonWorker:
    """The worker, in the device's Python.

    Attributes:
        python: the command that starts it.
    """

    python: Sequence[str] = ("python3",)

    def prepare(self, folder: Path, job: Mapping[str, Any], info: RuntimeInfo) -> Sequence[str]:
        for file in (*on_device.FOLDER.glob("*.py"), info.on_device):
            shutil.copy(file, folder)
        (folder / "job.json").write_text(json.dumps({**job, "runtime": info.on_device.name}), encoding="utf-8")
        return [*self.python, "worker.py", "job.json"]

    def result(self, folder: Path, lines: Sequence[str]) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, RecursionError, ValueError):  # it was not brought back, or not whole
            return None
        return found if isinstance(found, dict) else None


class Started(Protocol):
    """A worker that was started before there is a job for it: it imports its runtime, and waits."""

    def run(self, folder: Path, on_line: Callable[[str], None]) -> Exit:
        """Does the job in a folder, which is prepared for it; the only one."""

    def end(self) -> None:
        """Without a job."""
