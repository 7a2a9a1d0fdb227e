"""Worker processes of this machine, by the standard library's pool."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from edgeq.engine.task import Sent, packed, perform, result_of
from edgeq.errors import DeviceError
from edgeq.progress import Progress, Silent

Item = TypeVar("Item")
Result = TypeVar("Result")


class Processes:
    """See `edgeq.engine.Engine`. Processes start with the first work and stay until the `with` block ends.

    They are spawned, not forked: PyTorch's threads do not survive a fork.
    """

    here = True

    def __init__(self, workers: int) -> None:
        self.workers: int | None = workers
        self._pool: ProcessPoolExecutor | None = None
        self._members: set[BaseProcess] = set()
        self._sent = Sent(self._store, Path.unlink)
        self._stored = 0

    def __enter__(self) -> Processes:
        self._folder = tempfile.TemporaryDirectory(prefix="edgeq-workers-", ignore_cleanup_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._pool is not None:
            self._pool.shutdown()
        self._kill()
        self._folder.cleanup()

    def map(
        self,
        work: Callable[..., Result],
        items: Iterable[Item],
        *shared: Any,
        progress: Progress | None = None,
        threads: bool = True,
    ) -> list[Result]:
        steps = progress or Silent()
        handles = self._sent.handles(shared)
        waiting: list[Future[bytes]] = []
        found: list[Result] = []
        try:
            for item in items:
                waiting.append(self._submit(handles, packed((work, item))))
            for future in waiting:
                found.append(result_of(future.result()))
                steps.step(len(found), len(waiting))
        except BrokenProcessPool as error:
            raise self._death(started=any(f.done() and not f.exception() for f in waiting)) from error
        except Exception:
            for future in waiting:
                future.cancel()
            wait(waiting)
            raise
        except BaseException:
            self._kill()
            raise
        return found

    def _submit(self, handles: tuple[Path, ...], task: bytes) -> Future[bytes]:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, spawn, initializer=_begin, initargs=(self._folder.name,))
        others = set(multiprocessing.active_children()) - self._members
        future = self._pool.submit(perform, Path.read_bytes, handles, task)
        self._members |= set(multiprocessing.active_children()) - others
        return future

    def _store(self, content: bytes) -> Path:
        self._stored += 1
        path = Path(self._folder.name) / f"shared{self._stored}"
        path.write_bytes(content)
        return path

    def _kill(self) -> None:
        """Ends the processes, whatever they do. The next work starts others."""
        for process in self._members:
            process.kill()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
        self._members = set()

    def _death(self, started: bool) -> DeviceError:
        members = self._members
        assert self._pool is not None
        self._pool.shutdown(cancel_futures=True)
        # the pool ends the others with SIGTERM as soon as one is gone
        codes = [process.exitcode for process in members if process.exitcode not in (None, 0)]
        code = next((code for code in codes if code != -signal.SIGTERM), codes[0] if codes else None)
        self._kill()
        how, remedy = f"ended with status {code}", "run with --debug to see what it wrote"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
            remedy = (
                "most often the system was out of memory: give fewer --workers; what was finished is kept in the cache"
            )
        elif not started:
            remedy = 'in a script of your own, plan below `if __name__ == "__main__":`; workers import the script'
        return DeviceError(f"a worker process {how}", remedy=remedy)


def _begin(folder: str) -> None:
    """Prepares a process: Ctrl-C is for its parent, its parent's end is its own, what it writes goes to one place."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    tempfile.tempdir = folder


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
