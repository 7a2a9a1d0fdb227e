"""What can go wrong, each kind with the exit code that a shell sees.

Every error names its cause, where it happened (a layer, a file) and what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any


class EdgeqError(Exception):
    """Base of all errors meant for a user.

    Args:
        cause: one line that says what is wrong.
        remedy: one line that says what to do about it.
        where: the file, layer or option concerned, if there is one.
    """

    exit_code = 1

    def __init__(self, cause: str, *, remedy: str = "", where: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy
        self.where = where

    def __str__(self) -> str:
        head = f"{self.where}: {self.cause}" if self.where else self.cause
        return f"{head}\n  remedy: {self.remedy}" if self.remedy else head

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another as it is: a kind of error may take other arguments than it keeps."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[EdgeqError], arguments: tuple[object, ...]) -> EdgeqError:
    return kind.__new__(kind, *arguments)


class UsageError(EdgeqError):
    """Wrong use: a bad option, unreadable data, an output folder that is taken."""

    exit_code = 2


class GateError(EdgeqError):
    """A limit that the user set was missed. Artefact and report are written all the same, unless it is known before the
    work that none could hold it."""

    exit_code = 3


class UnsupportedError(EdgeqError):
    """The model, or an operator in it, cannot be handled."""

    exit_code = 4


class DeviceError(EdgeqError):
    """The device or the runtime on it failed, or is not there."""

    exit_code = 5


class MissingExtraError(DeviceError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed",
            remedy=f"pip install 'edgeq[{extra}]'",
        )


class InternalError(EdgeqError):
    """A defect: of edgeq, or of a library that it uses."""

    def __init__(self, error: Exception, where: str = "") -> None:
        super().__init__(
            f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            where=where,
            remedy="please report this model; --debug shows where it happened",
        )


@contextlib.contextmanager
def foreseen(where: str) -> Iterator[None]:
    """Whatever fails inside fails as an EdgeqError. What is wrong with the machine passes as it is.

    Args:
        where: what is done, for the message.

    Raises:
        InternalError: anything that no error was foreseen for.
    """
    try:
        yield
    except (EdgeqError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        raise InternalError(error, where) from error


_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)

INTERRUPTED = 130
