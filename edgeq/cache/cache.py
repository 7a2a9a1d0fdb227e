"""Getting results and keeping them, within a limit, and whatever happens to the process or the disk."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edgeq.cache.contents import partial_path, result_path, stored
from edgeq.cache.entry import Entry, pack, unpack
from edgeq.cache.owner import is_others, make_folder
from edgeq.errors import UsageError
from edgeq.files import explained

T = TypeVar("T")
Note = Callable[[str], None]

LIMIT = 5_000_000_000
"""Bytes that are kept where nothing else is said."""

# Seconds; no write takes so long. The number of the process that wrote would tell nothing where machines or containers
# share a folder.
_ABANDONED = 3600.0


class Cache:
    """Results in a folder. The least recently used give way where they take more than a limit.

    Args:
        root: the folder, made when the first result is kept; None keeps nothing.
        limit: bytes that may be kept.
        note: is told, once each, what the user should know, such as a full disk: `Progress.note`.
        shared: others may write there too, and their results are taken for one's own.
    """

    def __init__(
        self, root: Path | None, *, limit: int = LIMIT, note: Note | None = None, shared: bool = False
    ) -> None:
        self.root = root
        self.limit = limit
        self.shared = shared
        self._note = note
        self._told: set[str] = set()
        self._room = 0  # bytes that may be written before the folder is looked through again
        self._looked_at: dict[Path, bool] = {}  # folders, and whether what lies there can be relied on

    def get(self, stage: str, key: str) -> Entry | None:
        """A kept result, or None. Counts as its use."""
        if self.root is None:
            return None
        path = result_path(self.root, stage, key)
        if not self._is_own(self.root, path.parent):
            return None
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.tell(f"results kept in {self.root} cannot be read: {explained(error, path).cause}")
            return None
        entry = unpack(stage, key, data)
        with contextlib.suppress(OSError):  # a folder that may only be read serves as well
            if entry is None:
                path.unlink()
            else:
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        if entry is None:
            self.tell(f"a kept result of {stage} was damaged; it is computed again")
        return entry

    def put(self, stage: str, key: str, entry: Entry) -> None:
        """Keep a result. A full disk or a missing permission is only noted.

        Raises:
            TypeError: the entry holds what cannot be kept.
        """
        self.keep(stage, key, pack(stage, key, entry))

    def keep(self, stage: str, key: str, packed: bytes) -> None:
        """`put` for what is packed already."""
        if self.root is None:
            return
        path = result_path(self.root, stage, key)
        if not self._is_own(self.root, path.parent):
            return
        if len(packed) > self.limit:
            self.tell(f"a result of {stage} is larger than the cache's limit and is not kept")
            return
        try:
            make_folder(path.parent, shared=self.shared)
            _write(path, packed)
            self._make_room(self.root, path, len(packed))
        except OSError as error:
            self.tell(f"results cannot be kept in {self.root}: {explained(error, path).cause}")

    def tell(self, text: str) -> None:
        """Pass a note on, once."""
        if self._note is not None and text not in self._told:
            self._told.add(text)
            self._note(text)

    def _is_own(self, *folders: Path) -> bool:
        """Whether nobody else may put a result there; if somebody may, nothing is taken from there, or kept."""
        for folder in () if self.shared else folders:
            if folder not in self._looked_at:
                try:
                    self._looked_at[folder] = not is_others(folder)
                except OSError:  # not there yet, or whoever opens a file in it is told
                    continue
            if not self._looked_at[folder]:
                self.tell(
                    f"others may write to {folder}: nothing is kept there or taken from there. Make it yours alone "
                    "(chown, chmod -R go-w), name another in EDGEQ_CACHE, or set EDGEQ_CACHE_SHARED=yes to trust them"
                )
                return False
        return True

    def _make_room(self, root: Path, new: Path, written: int) -> None:
        self._room -= written
        if self._room > 0:
            return
        files = stored(root)
        total = sum(file.bytes for file in files)
        # A little below the limit, or else every result from now on would need a look through the folder.
        goal = self.limit if total <= self.limit else self.limit * 9 // 10
        for file in sorted(files, key=lambda file: (not file.partial, file.used)):
            abandoned = file.partial and time.time() - file.written > _ABANDONED
            # The new result stays even where it alone is above the goal.
            if abandoned or (total > goal and not file.partial and file.path != new):
                file.path.unlink(missing_ok=True)
                total -= file.bytes
        self._room = (self.limit - total) // 4  # other processes may be filling the folder too


def open_cache(note: Note | None = None) -> Cache:
    """The user's cache: in `$EDGEQ_CACHE`, or `$EDGEQ_HOME/results`, or `~/.cache/edgeq/results`.

    `EDGEQ_CACHE=off` keeps nothing. `EDGEQ_CACHE_LIMIT` is a size such as `5GB`. A folder that others may write to is
    used where `EDGEQ_CACHE_SHARED=yes` says so.

    Raises:
        UsageError: `EDGEQ_CACHE_LIMIT` cannot be read.
    """
    told, home = os.environ.get("EDGEQ_CACHE", ""), os.environ.get("EDGEQ_HOME", "")
    if told.lower() == "off":
        return Cache(None)
    limit = LIMIT
    if text := os.environ.get("EDGEQ_CACHE_LIMIT"):
        from edgeq.limits import parse_bytes  # late: pydantic takes its time

        try:
            limit = parse_bytes(text)
        except UsageError as error:
            raise UsageError(
                f"cannot read {text!r}", where="EDGEQ_CACHE_LIMIT", remedy="set it to a size such as 5GB or 500MB"
            ) from error
    try:
        root = Path(told or (f"{home}/results" if home else "~/.cache/edgeq/results")).expanduser().absolute()
    except RuntimeError:  # a user without a home, as in some containers
        if note is not None:
            note("there is no home folder to keep results in; name a folder in EDGEQ_CACHE")
        return Cache(None)
    shared = os.environ.get("EDGEQ_CACHE_SHARED", "").lower() in ("yes", "1", "true")
    return Cache(root, limit=limit, note=note, shared=shared)


def cached(
    cache: Cache,
    stage: str,
    key: str,
    compute: Callable[[], T],
    encode: Callable[[T], Entry],
    decode: Callable[[Entry], T],
) -> T:
    """The kept result, or else what `compute` gives, which is then kept.

    A fresh result passes through the same bytes as one that is read later, also where nothing is kept: no run can
    tell the difference.

    Raises:
        TypeError: `encode` gives what cannot be kept. What `compute` raises passes through, and nothing is kept.
    """
    found = recalled(cache, stage, key, decode)
    if found is not None:
        return found
    packed = pack(stage, key, encode(compute()))
    cache.keep(stage, key, packed)
    fresh = unpack(stage, key, packed)
    if fresh is None:
        raise TypeError(f"a result of {stage} does not come back from the bytes that it is kept as")
    return decode(fresh)


def recalled(cache: Cache, stage: str, key: str, decode: Callable[[Entry], T]) -> T | None:
    """The kept result, or None."""
    found = cache.get(stage, key)
    if found is None:
        return None
    try:
        return decode(found)
    except (ValueError, TypeError, LookupError):  # kept by code that forgot to raise the stage's version
        cache.tell(f"a kept result of {stage} is of another kind; it is computed again")
        return None


def _write(path: Path, data: bytes) -> None:
    """All or nothing, also where the same result is written by others at this moment.

    Raises:
        OSError: no permission, no space, or something is in the way.
    """
    partial = partial_path(path)
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        now = time.time_ns()  # the file system's own clock is too coarse to tell what was used last
        os.utime(partial, ns=(now, now))
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
