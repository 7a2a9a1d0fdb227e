"""Who may write to a cache: whoever can puts results into other people's reports."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def is_others(folder: Path) -> bool:
    """Whether somebody else than this user and the system's administrator may change what a folder holds.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    if os.name == "nt":  # there, permissions are lists, and a user's folders are his own
        return False
    found = folder.stat()
    return found.st_uid not in (0, os.geteuid()) or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def make_folder(folder: Path, *, shared: bool) -> None:
    """Makes a folder, and those above it that are missing: for this user alone, or as the umask says.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent, shared=shared)
        folder.mkdir(mode=0o777 if shared else 0o700, exist_ok=True)
