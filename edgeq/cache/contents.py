"""The files of a cache: how they are called, what there is, and what can go.

A result is `<folder>/<stage>/<key>.edgeq`. Whatever is called otherwise is no business of ours, and is never touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from edgeq.errors import UsageError
from edgeq.files import explained

_STAGE = re.compile(r"[a-z][a-z0-9-]*")
_RESULT = re.compile(r"([0-9a-f]{64})\.edgeq")
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{32}\.partial")


@dataclass(frozen=True)
class Stored:
    """One file of a cache. Times are in seconds since 1970; `partial` is one that was not written to its end."""

    path: Path
    stage: str
    bytes: int
    written: float
    used: float
    partial: bool


@dataclass(frozen=True)
class Usage:
    """What a cache holds of one stage: whole results, and bytes on disk. Times are in seconds since 1970."""

    stage: str
    entries: int
    bytes: int
    oldest: float
    newest: float
    last_used: float


@dataclass(frozen=True)
class Freed:
    """What was removed: whole results, and bytes on disk."""

    entries: int
    bytes: int


def result_path(root: Path, stage: str, key: str) -> Path:
    """Where a result is.

    Raises:
        ValueError: the stage or the key cannot be a name.
    """
    name = f"{key}.edgeq"
    if not _STAGE.fullmatch(stage) or not _RESULT.fullmatch(name):
        raise ValueError(f"a stage is lower-case letters, digits and hyphens, a key 64 of 0-9a-f: {stage!r}, {key!r}")
    return root / stage / name


def partial_path(path: Path) -> Path:
    """A new name beside a result, for one attempt to write it: threads and processes may try at once."""
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")


def stored(root: Path) -> list[Stored]:
    """The files of a cache, by stage.

    Raises:
        OSError: the folder cannot be read. One that is missing is empty.
    """
    found: list[Stored] = []
    for stage in _stages(root):
        for file in os.scandir(root / stage):
            partial = _PARTIAL.fullmatch(file.name) is not None
            if not partial and not _RESULT.fullmatch(file.name):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                if file.is_file(follow_symlinks=False):
                    told = file.stat(follow_symlinks=False)
                    times = told.st_mtime, told.st_atime
                    found.append(Stored(Path(file), stage, told.st_size, *times, partial))
    return found


def describe(root: Path | None) -> list[Usage]:
    """What a cache holds, by stage.

    Raises:
        UsageError: the folder cannot be read.
    """
    stages: dict[str, list[Stored]] = {}
    for file in _read(root)[1]:
        stages.setdefault(file.stage, []).append(file)
    return [
        Usage(
            stage,
            entries=sum(not file.partial for file in files),
            bytes=sum(file.bytes for file in files),
            oldest=min(file.written for file in files),
            newest=max(file.written for file in files),
            last_used=max(file.used for file in files),
        )
        for stage, files in stages.items()
    ]


def clear(root: Path | None, stage: str | None = None, older_than: float | None = None) -> Freed:
    """Remove results, and what killed runs left of some. A run that goes on meanwhile computes what it misses.

    Args:
        root: the cache's folder.
        stage: remove only results of this stage.
        older_than: remove only what was not used for so many seconds.

    Raises:
        UsageError: the folder cannot be read or changed, or holds other stages and never held this one.
    """
    freed = []
    known, files = _read(root)
    if stage is not None and known and stage not in known:
        raise UsageError(f"there is no stage {stage!r} in {root}", remedy=f"one of {', '.join(known)}")
    for file in files:
        if stage not in (None, file.stage) or (older_than is not None and time.time() - file.used <= older_than):
            continue
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            raise explained(error, file.path) from error
        freed.append(file)
    return Freed(sum(not file.partial for file in freed), sum(file.bytes for file in freed))


def _stages(root: Path) -> list[str]:
    if not os.path.lexists(root):
        return []
    return sorted(path.name for path in root.iterdir() if _STAGE.fullmatch(path.name) and path.is_dir())


def _read(root: Path | None) -> tuple[list[str], list[Stored]]:
    """Stages and files of a cache, for a person who asks."""
    if root is None:
        return [], []
    try:
        return _stages(root), stored(root)
    except OSError as error:
        raise explained(error, root) from error
