"""Archives as PyTorch is given them: put together anew from the members that were checked.

One file can be two archives: readers differ in where they look for the list of members, and in what they make of names
and sizes that contradict each other. So a file is read once, by Python's reader, and what that found is written to a
plain archive, which is all that anything else ever sees.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from edgeq.files import scratch_folder
from edgeq.frontends.kinds import BROKEN_ZIP, Found
from edgeq.model.refusals import damaged
from edgeq.unpacking import check_unpacked

_OLDER_EXPORT = frozenset({
    "version", "serialized_exported_program.json", "serialized_state_dict.json", "serialized_state_dict.pt",
    "serialized_constants.json", "serialized_constants.pt", "serialized_example_inputs.pt",
})  # fmt: skip
_PIECE = 1 << 22


@contextlib.contextmanager
def rebuilt(path: Path, found: Found) -> Iterator[Path]:
    """The file to be read instead of an archive; what is no archive is read as it is.

    The copy has the same name. Its members are stored, their checksums hold, and all of them lie in the one folder that
    holds everything; in the older layout, which has none, there are no others than PyTorch wrote.

    Raises:
        UsageError: the archive is damaged or unpacks to far more than it is, its members contradict one another, or
            there is no room for a copy.
    """
    if found.content in ("legacy pickle", "safetensors"):
        yield path
        return
    with scratch_folder() as folder:
        copy = folder / path.name
        try:
            _copy(path, copy, found)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(error.errno, error.strerror, str(copy)) from error
            raise damaged(path.name, error) from error
        except BROKEN_ZIP as error:
            raise damaged(path.name, error) from error
        yield copy


def _copy(path: Path, copy: Path, found: Found) -> None:
    with path.open("rb") as file, zipfile.ZipFile(file) as source, zipfile.ZipFile(copy, "w") as target:
        check_unpacked(source, os.fstat(file.fileno()).st_size, path.name)
        for member in _members(source, found, path.name):
            plain = zipfile.ZipInfo(member.filename)
            plain.file_size = member.file_size  # or else a large one is refused half-way
            with source.open(member) as given, target.open(plain, "w") as written:
                shutil.copyfileobj(given, written, _PIECE)


def _members(source: zipfile.ZipFile, found: Found, where: str) -> list[zipfile.ZipInfo]:
    members = [member for member in source.infolist() if not member.is_dir()]
    names = [member.filename for member in members]
    # PyTorch's reader finds a member whatever the case of its name.
    if len({name.lower() for name in names}) != len(names):
        raise damaged(where, "two members have the same name")
    if found.root == "":
        return [member for member in members if member.filename in _OLDER_EXPORT]
    for name in names:
        if not name.startswith(found.root):
            raise damaged(where, f"{name} is outside of {found.root}")
    return members
