"""Ctrl-C and its kin: the first one unwinds the stack, so that what is half written is removed on the way."""

from __future__ import annotations

import signal
import time
from types import FrameType

_GRACE = 2.0
"""Seconds for clearing up, without further signals: they often come in pairs, to a process and to its group."""

_stopped_at: float | None = None
_stopped_by: Stopped | None = None


def install() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into `Stopped`. One that the parent process had ignored stays ignored."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


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


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopped_at, _stopped_by
    now = time.monotonic()
    if _stopped_at is not None and now - _stopped_at < _GRACE:
        return
    _stopped_at, _stopped_by = now, Stopped(number)
    raise _stopped_by


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
