"""Writing that leaves either all or nothing: single files, and the folder of a build."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.errors import EdgeqError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

LOCK_NAME = "edgeq.lock"
"""The file that makes a folder a build."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOTHING_LEFT = 16 * 1024
_ELSEWHERE = "free some space there, or point TMPDIR elsewhere"


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    What killed processes left beside it is removed.

    Args:
        path: the file; its folder must exist.
        data: text is written as UTF-8, and what that cannot hold as escapes.

    Raises:
        UsageError: the folder is missing or not writable, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        _clean(path)
        with open(partial, "wb") as file:
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise explained(error, path) from error
        raise


def refuse_unwritable(path: Path, siblings: str = "", *, option: str = "--out") -> None:
    """Whether a file can be written is asked before the work that leads to it.

    Args:
        siblings: a pattern of names of further files that will be written beside it.
        option: which one named it.

    Raises:
        UsageError: its folder is missing or not writable, or something that is no file is in its place.
    """
    if not path.name:
        raise UsageError("this is no name of a file", where=option, remedy=f"name one with {option}")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        if not path.parent.is_dir():
            raise UsageError(
                "there is no such folder", where=str(path.parent), remedy=f"make it, or choose another {option}"
            )
        for one in (path, *(path.parent.glob(siblings) if siblings else ())):
            if one.is_dir():
                raise UsageError(
                    "this is a folder, not a file", where=str(one), remedy=f"name a file in it with {option}"
                )
            if one.exists() and not one.is_file():
                raise UsageError(
                    "this is no plain file, so it stays", where=str(one), remedy=f"choose another {option}"
                )
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise explained(error, path) from error


def write_json(path: Path, content: BaseModel) -> None:
    """Write a document, indented for people, as `atomic_write` does.

    Raises:
        UsageError: the folder is missing or not writable, or the disk is full.
    """
    atomic_write(path, json.dumps(content.model_dump(mode="json"), indent=2) + "\n")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for intermediate files, which vanishes with the block.

    Raises:
        UsageError: there is no place for it, or its disk is full.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="edgeq-", ignore_cleanup_errors=True)
    except OSError as error:
        place = Path(error.filename or os.environ.get("TMPDIR", tempfile.gettempdir()))
        cause = f"no temporary folder can be made: {error.strerror or error}"
        raise UsageError(cause, where=str(place), remedy=_ELSEWHERE) from error
    with made as name:
        folder = Path(name)
        try:
            yield folder
        except Exception as error:
            if isinstance(error, EdgeqError):
                raise
            # asked before the folder is cleared; a full disk often comes as a library's own error, or without a name
            named = getattr(error, "filename", None)
            inside = named is not None and Path(os.fsdecode(named)).is_relative_to(folder)
            full = isinstance(error, OSError) and error.errno in _FULL
            if (full and inside) or (named is None and _nothing_left(folder)):
                raise UsageError("the disk is full", where=str(folder.parent), remedy=_ELSEWHERE) from error
            raise


@contextmanager
def staged_directory(
    final: Path, *, overwrite: bool = False, mark: str = LOCK_NAME, kind: str = "build"
) -> Iterator[Path]:
    """A folder to fill, which appears at `final` when the block ends, and vanishes when the block raises.

    The folder is a sibling, `.<name>.partial-<pid>`, so that the last step is a rename on one file system. What a
    killed process left of such folders is removed, and an old build that it had set aside is put back.

    Args:
        final: must be missing or empty, or with `overwrite` hold what edgeq made, which is then replaced.
        overwrite: replace what edgeq made. A folder that holds anything else is never touched.
        mark: the file by which a folder is known as one that edgeq made.
        kind: what such a folder is called in errors.

    Yields:
        The folder to fill.

    Raises:
        UsageError: `final` is taken (found before the block runs), not writable, or the disk is full.
    """
    final = final.resolve()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clean(final)
        _refuse_if_taken(final, overwrite, mark, kind)
        partial = _sibling(final, "partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise explained(error, final) from error
    try:
        yield partial
        _refuse_if_taken(final, overwrite, mark, kind)
        _put_in_place(partial, final)
    except BaseException as error:
        full = isinstance(error, Exception) and not isinstance(error, EdgeqError) and _nothing_left(final.parent)
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (*_FULL, *_REFUSED):
            raise explained(error, final) from error
        if full:
            # Native libraries report a full disk as errors of their own.
            raise explained(OSError(errno.ENOSPC, str(error)), final) from error
        raise


def is_build(folder: Path) -> bool:
    """Whether a folder was written by edgeq."""
    return (folder / LOCK_NAME).is_file()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content.

    Raises:
        UsageError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise explained(error, path) from error
    return digest.hexdigest()


def explained(error: OSError, path: Path) -> UsageError:
    """What the operating system refused, as an error with a remedy."""
    where = str(path)
    if error.errno in _FULL:
        if path.is_relative_to(tempfile.gettempdir()):
            return UsageError("the disk is full", where=where, remedy=_ELSEWHERE)
        return UsageError("the disk is full", where=where, remedy="free some space, or choose another --out")
    if error.errno in _REFUSED:
        return UsageError("no permission here", where=where, remedy="choose a place that you may write to and read")
    if error.errno == errno.ENOENT:
        return UsageError("no such file or folder", where=where)
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UsageError("a file is in the way of a folder", where=where, remedy="choose another place")
    return UsageError(error.strerror or str(error), where=where)


def _refuse_if_taken(final: Path, overwrite: bool, mark: str, kind: str) -> None:
    if not final.exists():
        return
    if not final.is_dir():
        raise UsageError("this is a file, not a folder", where=str(final), remedy="choose another --out")
    if (final / mark).is_file():
        if not overwrite:
            raise UsageError(
                f"this folder already holds another {kind}",
                where=str(final),
                remedy="choose another --out, or pass --overwrite to replace it",
            )
    elif any(final.iterdir()):
        raise UsageError(
            f"this folder is not empty and is no {kind} of edgeq, so nothing in it is touched",
            where=str(final),
            remedy="choose another --out, or empty the folder",
        )


def _put_in_place(partial: Path, final: Path) -> None:
    if not final.exists():
        os.rename(partial, final)
        return
    # A folder cannot be renamed onto a filled one: for a moment there is none, and `_clean` mends a crash just then.
    aside = _sibling(final, "replaced")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(final, aside)
    try:
        os.rename(partial, final)
    except BaseException:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sibling(final: Path, kind: str) -> Path:
    return final.with_name(f".{final.name}.{kind}-{os.getpid()}")


def _clean(final: Path) -> None:
    """Remove what dead processes left beside `final`; put back an old build that one of them had set aside."""
    pattern = re.compile(rf"\.{re.escape(final.name)}\.(partial|replaced)-(\d+)")
    for entry in sorted(final.parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match is None or _alive(int(match[2])):
            continue
        if match[1] == "replaced" and not final.exists():
            os.rename(entry, final)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    # Our own number can only be an earlier process's here: numbers are used again, in containers at once.
    if pid == os.getpid():
        return False
    if os.name == "nt":
        return True  # there, signal 0 would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _nothing_left(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NOTHING_LEFT
    except OSError:
        return False
