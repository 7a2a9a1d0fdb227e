"""What is kept of a result: under which name, and as which bytes.

The bytes are a line with the SHA-256 of all that follows, a line of JSON, and the arrays as `.npy` one behind the
other. Nothing in it can run, and what is cut short, changed or another's is never taken for a result.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"

_FORMAT = "edgeq result 1 "
_HEAD = len(_FORMAT) + 64 + 1


@dataclass(frozen=True)
class Entry:
    """What is kept of a result.

    Attributes:
        values: anything that JSON has, NaN and infinities included. Floats come back to the bit, tuples as lists.
        arrays: by name, of any type that is numpy's own, objects excepted. They come back to the bit and writable.
    """

    values: Any = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def content_key(stage: str, version: int, /, **parts: Json) -> str:
    """The name of a result: hexadecimal SHA-256 of everything that it depends on.

    Args:
        stage: lower-case letters, digits and hyphens.
        version: of the stage's own arithmetic and of what it keeps; to be raised when one of them changes.
        parts: hashes of model and data, the target's text, options, versions of libraries, keys of earlier stages.
    """
    text = json.dumps([_FORMAT, stage, version, parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def pack(stage: str, key: str, entry: Entry) -> bytes:
    """An entry as the bytes of a file.

    Raises:
        TypeError: it holds a value that JSON does not have, or an array of a type that is not numpy's own.
    """
    names = list(entry.arrays)
    head = {"stage": stage, "key": key, "arrays": names, "values": entry.values}
    body = io.BytesIO()
    body.write(json.dumps(head, separators=(",", ":")).encode() + b"\n")
    for name in names:
        array = np.asarray(entry.arrays[name])
        # Types that are not numpy's own (bfloat16) would be written as raw bytes, without a word.
        if array.dtype.hasobject or npy.descr_to_dtype(npy.dtype_to_descr(array.dtype)) != array.dtype:
            raise TypeError(f"array {name!r} of {stage} is of type {array.dtype}, which cannot be kept")
        npy.write_array(body, array, version=(3, 0), allow_pickle=False)
    data = body.getvalue()
    return _first_line(data) + data


def unpack(stage: str, key: str, data: bytes) -> Entry | None:
    """The entry, or None where the bytes are not exactly what was packed for this stage and key."""
    if data[:_HEAD] != _first_line(memoryview(data)[_HEAD:]):
        return None
    body = io.BytesIO(data)
    body.seek(_HEAD)
    try:
        head = json.loads(body.readline())
        if (head["stage"], head["key"]) != (stage, key):
            return None
        arrays = {name: npy.read_array(body, allow_pickle=False) for name in head["arrays"]}
        return Entry(head["values"], arrays)
    except MemoryError:
        raise
    except Exception:  # whole, and yet nothing that was packed here
        return None


def from_list(arrays: Sequence[NDArray[Any]]) -> Entry:
    """Arrays in their order, as an entry."""
    return Entry(len(arrays), {str(index): array for index, array in enumerate(arrays)})


def to_list(entry: Entry) -> list[NDArray[Any]]:
    """What `from_list` was given.

    Raises:
        KeyError: the entry holds something else.
    """
    return [entry.arrays[str(index)] for index in range(len(entry.arrays))]


def read_folder(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """The content of every file in a folder and below, as arrays of an entry.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): np.fromfile(path, np.uint8) for path in files}


def write_folder(arrays: Mapping[str, NDArray[np.uint8]], folder: Path) -> None:
    """Write what `read_folder` read.

    Raises:
        ValueError: a name leads out of the folder.
        OSError: a file cannot be written.
    """
    for name, content in arrays.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name!r} leads out of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        content.tofile(path)


def _first_line(body: bytes | memoryview) -> bytes:
    return f"{_FORMAT}{hashlib.sha256(body).hexdigest()}\n".encode()
