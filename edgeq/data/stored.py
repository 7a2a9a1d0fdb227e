"""Arrays that a .npz file stores as they are: each read in one piece, and ahead of their use if that is wanted.

NumPy reads a member of an archive in many small pieces and returns to Python for each. Beside a thread that keeps the
interpreter busy, importing for example, every return waits for its turn.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgeq.data.place import Place, mark_of


class Stored(NamedTuple):
    """An array, and where its file holds it; None where it is in another order there."""

    array: NDArray[Any]
    place: Place | None


Arrays = dict[str, Stored]

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_HEADERS = {b"\x01\x00": npy.read_array_header_1_0, b"\x02\x00": npy.read_array_header_2_0}
_ahead: dict[Path, Future[Arrays]] = {}


def read_ahead(sources: Iterable[object]) -> None:
    """Begins to read those of the sources that are .npz files, for `stored_arrays`. Whatever is wrong with one is told
    there."""
    pool = ThreadPoolExecutor(2, "data")
    for path in {Path(source).absolute() for source in sources if isinstance(source, str | Path)}:
        if path.is_file():
            _ahead[path] = pool.submit(_read, path)
    pool.shutdown(wait=False)


def stored_arrays(path: Path) -> Arrays:
    """The arrays of a .npz by name, without those that are compressed, of Python objects, or in a later format.

    Raises:
        zipfile.BadZipFile, OSError, ValueError, MemoryError: the file is damaged, or cannot be read.
    """
    begun = _ahead.pop(path.absolute(), None)
    return _read(path) if begun is None else begun.result()


def _read(path: Path) -> Arrays:
    found: Arrays = {}
    if not zipfile.is_zipfile(path):
        return found
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        state = os.fstat(file.fileno())
        for member in archive.infolist():
            plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1  # 1: encrypted
            if plain and member.filename.endswith(".npy"):
                stored = _array(path, file, member, state)
                if stored is not None:
                    found[member.filename.removesuffix(".npy")] = stored
    return found


def _array(path: Path, file: BinaryIO, member: zipfile.ZipInfo, state: os.stat_result) -> Stored | None:
    """The array that begins behind the header of a member; None if it is not plain."""
    file.seek(member.header_offset)
    head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size or not head.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile(f"no header of {member.filename!r}")
    _, name, extra = _LOCAL_HEADER.unpack(head)
    begin = member.header_offset + _LOCAL_HEADER.size + name + extra
    if begin + member.file_size > state.st_size:
        raise zipfile.BadZipFile(f"{member.filename!r} is cut short")
    file.seek(begin)
    content = np.fromfile(file, np.uint8, member.file_size)
    if zlib.crc32(content.data) != member.CRC:
        raise zipfile.BadZipFile(f"bad CRC-32 of {member.filename!r}")
    magic, version = content[: npy.MAGIC_LEN].tobytes()[:-2], content[: npy.MAGIC_LEN].tobytes()[-2:]
    if magic != npy.MAGIC_PREFIX or version not in _HEADERS:
        return None
    lines = BytesIO(content[npy.MAGIC_LEN : npy.MAGIC_LEN + (1 << 16)].tobytes())
    shape, columns_first, dtype = _HEADERS[version](lines)
    if dtype.hasobject:
        return None
    head_size = npy.MAGIC_LEN + lines.tell()
    values = content[head_size:]
    if values.size < (size := prod(shape) * dtype.itemsize):
        raise ValueError(f"{member.filename!r} has {values.size} bytes for {size}")
    array = values[:size].view(dtype).reshape(shape, order="F" if columns_first else "C")
    if columns_first:
        return Stored(array, None)
    digest = hashlib.sha256(values[:size].data).digest()
    return Stored(array, Place(path.absolute(), begin + head_size, dtype.str, shape, mark_of(state), digest))
