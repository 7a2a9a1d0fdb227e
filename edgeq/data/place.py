"""Where a file holds an array just as it is in memory, so that another process can read it there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """Values in C order within a file.

    Attributes:
        path: absolute.
        offset: bytes in front of the first value.
        dtype, shape: as NumPy names them.
        mark: which file it was, and in which state (see `mark_of`).
        sha256: of the values.
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    mark: tuple[int, ...]
    sha256: bytes

    def unchanged(self) -> bool:
        """Whether the file is the one that was read."""
        try:
            return mark_of(self.path.stat()) == self.mark
        except OSError:
            return False


def mark_of(state: os.stat_result) -> tuple[int, ...]:
    """Changes with every write to a file, and with every file that takes its place."""
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
