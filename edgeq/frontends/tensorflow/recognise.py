"""Tells Keras files and SavedModel folders from others, before anything of them is read."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from edgeq.errors import UsageError
from edgeq.files import sha256_file
from edgeq.frontends.kinds import BROKEN_ZIP, head_of
from edgeq.reading import within

HDF5 = b"\x89HDF\r\n\x1a\n"
SAVED_MODEL = "saved_model.pb"


def is_keras(path: Path) -> bool:
    """Whether it is an HDF5 file, or an archive as Keras 3 writes it."""
    if not path.is_file():
        return False
    head = head_of(path)
    if head.startswith(HDF5):
        return True
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {"config.json", "model.weights.h5"} <= set(archive.namelist())
    except BROKEN_ZIP:
        return False


def is_saved_model(path: Path) -> bool:
    """Whether it is a folder as TensorFlow writes it."""
    return path.is_dir() and (path / SAVED_MODEL).is_file()


def files_of(folder: Path) -> list[Path]:
    """All files of a SavedModel, in order.

    Raises:
        UsageError: a link leads out of the folder.
    """
    found = sorted(one for one in folder.rglob("*") if one.is_symlink() or one.is_file())
    for one in found:
        within(folder, str(one.relative_to(folder)), folder.name)
        if not one.is_file():
            raise UsageError(f"{one.name} is a link to nothing", where=folder.name, remedy="copy the whole folder")
    return found


def sha256_folder(folder: Path) -> str:
    """Of the names and contents of all files."""
    digest = hashlib.sha256()
    for one in files_of(folder):
        digest.update(f"{one.relative_to(folder)}\0{sha256_file(one)}\0".encode())
    return digest.hexdigest()
