"""An end to the reading of a file that would take for ever, whatever it is that it has found to do so."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from edgeq.errors import UnsupportedError
from edgeq.frames import is_importing

SECONDS = 900
"""A hundred times what large networks take."""


class _TooLongError(BaseException):
    """No `Exception`: what is read runs within code that catches those."""


@contextlib.contextmanager
def within_reason(where: str) -> Iterator[None]:
    """Ends the block when it takes too long; only in the main thread of a system that has alarms.

    Args:
        where: the file, for the message.

    Raises:
        UnsupportedError: it took too long.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_number: int, frame: FrameType | None) -> None:
        if not is_importing(frame):
            raise _TooLongError

    old = signal.signal(signal.SIGALRM, ring)
    # Again each second, for whoever catches everything.
    rest, interval = signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
    try:
        yield
    except _TooLongError:
        raise UnsupportedError(
            f"to make one graph of it takes longer than {SECONDS // 60} minutes",
            remedy="export a smaller network, or pass --trust-pickle, which waits, if you trust whoever made the file",
            where=where,
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, rest, interval)
        signal.signal(signal.SIGALRM, old)
