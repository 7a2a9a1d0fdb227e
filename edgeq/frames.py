"""What the interpreter is at where a signal reaches it."""

from __future__ import annotations

from types import FrameType

_IMPORTS = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


def is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported somewhere below. An exception that is raised there leaves modules half made,
    and their locks taken: another thread that imports one of them then waits for ever."""
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTS:
            return True
        frame = frame.f_back
    return False
