"""Ctrl-C and its kin: the first one unwinds the stack, so that what is half written is removed on the way."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from edgeq.frames import is_importing

_GRACE = 2.0
"""Seconds for clearing up, without further signals: they often come in pairs, to a process and to its group."""
_PATIENCE = 10.0
"""Seconds after which the process ends even if nothing was cleared up: it waits for something that never comes."""
_SOON = 0.02
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

_stopped_at: float | None = None
_stopped_by: Stopped | None = None
_ending: list[int] = []
_stderr: int | None = None


def say_so() -> None:
    """Say that the program was interrupted, past whatever lock the interrupted code may hold, and past a redirection
    of the standard streams."""
    if _stderr is not None:
        with contextlib.suppress(OSError):
            os.write(_stderr, b"error: interrupted\n")


_last_word: Callable[[], None] = say_so


def install() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into `Stopped`. One that the parent process had ignored stays ignored."""
    global _stderr
    if sys.stderr is not None:  # otherwise 2 may be any file
        with contextlib.suppress(OSError, ValueError):
            _stderr = os.dup(sys.stderr.fileno())
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


def uninstall() -> None:
    """From now on a signal ends the process at once, as the system does it: all is done, and nothing can be lost."""
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def stopped() -> Stopped | None:
    """The signal that was received, if there was one."""
    return _stopped_by


def check() -> None:
    """Raise again what a library has swallowed.

    Raises:
        Stopped: a signal was received.
    """
    if _stopped_by is not None:
        raise _stopped_by


def at_the_last(say: Callable[[], None]) -> None:
    """What is to be called where the process has to be ended although it does not unwind; from another thread."""
    global _last_word
    _last_word = say


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopped_at, _stopped_by
    now = time.monotonic()
    if _stopped_at is not None and now - _stopped_at < _GRACE:
        return
    if not _ending:
        _ending.append(number)
        _thread.start_new_thread(_end, (128 + number,))
    if is_importing(frame):
        _thread.start_new_thread(_send_again, (number,))
        return
    _stopped_at, _stopped_by = now, Stopped(number)
    raise _stopped_by


# Neither takes a lock of `threading`, which the interrupted code may hold.


def _send_again(number: int) -> None:
    time.sleep(_SOON)
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def _end(exit_code: int) -> None:
    time.sleep(_PATIENCE)
    _last_word()
    os._exit(exit_code)


class Stopped(BaseException):
    """A signal asked the program to stop. No `KeyboardInterrupt`, for which libraries have answers of their own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
