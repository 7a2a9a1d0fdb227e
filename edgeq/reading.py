"""Reading what a user or another file names: plain files alone, and none outside of the folder of the file that names
it. What is wrong with a file is told with its place."""

from __future__ import annotations

import json
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgeq.errors import UsageError


def within(folder: Path, name: str, where: str) -> Path:
    """The file that another file names, relative to that one's folder.

    Args:
        folder: of the file that holds the name.
        name: as it stands there.
        where: that file, for messages.

    Returns:
        `folder / name`. There need be nothing.

    Raises:
        UsageError: it is absolute, goes up, or is a link that leads out of the folder.
    """
    forms = PurePosixPath(name), PureWindowsPath(name)
    if name.strip() and "\0" not in name and not any(form.anchor or ".." in form.parts for form in forms):
        path = folder / name
        try:
            path.is_file()  # refuses what can be no name
            if path.resolve().is_relative_to(folder.resolve()):
                return path
        except (OSError, RuntimeError):  # links in a circle, a name that is too long
            pass
    raise UsageError(
        f"it names {name[:80]!r}, which is no place in its own folder",
        where=where,
        remedy="put that file beside it, not a link to one elsewhere, and name it without a folder",
    )


def refuse_special(path: Path, where: str = "") -> None:
    """Refuses pipes, sockets and devices, whose end one may wait for in vain. What is missing is left to the reader.

    Raises:
        UsageError: it is one of them.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for test, name in kinds if test(mode)), "a device")
        raise UsageError(f"this is {kind}, not a file", where=where or str(path), remedy="write its content to a file")


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        UsageError: there is none, it cannot be read, or it is no plain file.
    """
    refuse_special(path)
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        cause = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot be read: {cause}", where=str(path), remedy="check the path") from error


def read_text(path: Path) -> str:
    """A file's content as UTF-8.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UsageError("is not UTF-8 text", where=str(path), remedy="save the file as UTF-8") from error


def read_json(path: Path, what: str, remedy: str) -> Any:
    """The document of a JSON file.

    Args:
        what: it should hold, for messages: such as `a plan`.
        remedy: where it does not.

    Raises:
        UsageError: it cannot be read, or is no JSON; says where.
    """
    content = read_bytes(path)
    try:
        return json.loads(content.decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", 1)
        raise UsageError(f"is not {what}: no valid JSON", where=f"{path}:{line}", remedy=remedy) from error
    except (RecursionError, ValueError) as error:  # nested a thousand times, or an integer of thousands of digits
        why = "nested too deeply" if isinstance(error, RecursionError) else "it holds a number that is too long"
        raise UsageError(f"is not {what}: {why}", where=str(path), remedy=remedy) from error
