"""Samples of a .npz that an earlier run has read and checked: the file is known by what its system and its own
directory say of it, and an array is read when it is used.

A plan whose stages are all kept never looks at the calibration data, and needs one sample of the evaluation data: the
rest is read by the runtime's own process. Hashing gigabytes for that took most of the time before the first solution.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.data.arrays import is_array_file
from edgeq.data.dataset import Dataset, InputSpec, make_dataset
from edgeq.data.load import Role, load_data, tokenizer_for
from edgeq.data.place import Place, mark_of
from edgeq.data.stored import read_ahead
from edgeq.data.unread import Unread
from edgeq.files import sha256_file
from edgeq.hugging_face.folder import tokenizer_sha256
from edgeq.installed import installed

VERSION = 1
"""To be raised whenever what is accepted as samples, or how it is hashed, changes."""

_TICK = 2.0  # seconds; a file system's clock may be as coarse, and two writes within one tick look alike


def load_kept_data(
    source: str | Path,
    inputs: Sequence[InputSpec],
    *,
    preprocess: str | None,
    role: Role,
    cache: Cache,
    tokenizer: Path | None = None,
) -> Dataset:
    """Loads samples as `load_data` does, or takes what an earlier run made of the same file.

    A file is the same if its device, inode, size and time of change are, and the names, sizes, places and CRCs of its
    members. Texts are the same if their bytes and those of their tokenizer are.

    Args:
        tokenizer: the folder of the one for texts, where `preprocess` names none.

    Raises:
        UsageError: see `load_data`; and, from a dataset that was kept, when an array is used whose file has changed
            since.
    """
    seen = None if cache.root is None or preprocess is not None else _seen(Path(source))
    if seen is None:
        load = partial(load_data, source, inputs, preprocess=preprocess, role=role, tokenizer=tokenizer)
        words = tokenizer_for(preprocess, tokenizer)
        if words is None or cache.root is None or not Path(source).is_file() or _is_archive(Path(source)):
            return load()
        return _texts(Path(source), inputs, words, role, cache, load)
    key = _key(seen, role)
    entry = cache.get("data", key)
    if entry is not None:
        try:
            if entry.values["inputs"] == [_plain(spec) for spec in inputs]:
                return _unpack(entry, seen, inputs)
        except (ValueError, TypeError, LookupError):
            cache.tell("a kept result of data is of another kind; it is computed again")
    data = load_data(source, inputs, preprocess=preprocess, role=role)
    marks = {place.mark for place in data.places.values()}
    # what was converted lies in no file; and the file may have been written to while it was read
    if data.places.keys() == data.inputs.keys() and marks == {seen.mark} and time.time() - seen.changed > _TICK:
        cache.put("data", key, _pack(data))
    return data


def _texts(
    path: Path, inputs: Sequence[InputSpec], tokenizer: Path, role: Role, cache: Cache, load: Callable[[], Dataset]
) -> Dataset:
    """Texts as samples, tokenized by this run or an earlier one."""
    key = content_key(
        "texts",
        VERSION,
        file=sha256_file(path),
        name=path.name,
        tokenizer=tokenizer_sha256(tokenizer),
        folder=tokenizer.name,
        inputs=[_plain(spec) for spec in inputs],
        role=role,
        **installed("transformers", "tokenizers"),
    )

    def pack(data: Dataset) -> Entry:
        arrays = {f"input {name}": array for name, array in data.inputs.items()}
        labels = {} if data.labels is None else {"labels": data.labels}
        return Entry({"notes": list(data.notes), "group": data.group}, {**arrays, **labels})

    def unpack(entry: Entry) -> Dataset:
        return make_dataset(
            {spec.name: entry.arrays[f"input {spec.name}"] for spec in inputs},
            inputs,
            labels=entry.arrays.get("labels"),
            source=path.name,
            notes=entry.values["notes"],
            group=entry.values["group"],
        )

    return cached(cache, "texts", key, load, pack, unpack)


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return is_array_file(file.read(16))


def begin_reading(sources: Mapping[Role, str | Path | None], cache: Cache) -> None:
    """Begins to read what no earlier run has read, for `load_kept_data`."""
    for role, source in sources.items():
        seen = None if source is None else _seen(Path(source))
        if seen is None or cache.get("data", _key(seen, role)) is None:
            read_ahead([source])


class _Seen(NamedTuple):
    """What is known of an archive without reading its members.

    Attributes:
        changed: when, in seconds since 1970.
        members: name, CRC, method of compression, bytes and place of each.
    """

    path: Path
    mark: tuple[int, ...]
    changed: float
    members: list[tuple[str, int, int, int, int]]


def _seen(path: Path) -> _Seen | None:
    """None where the path is no archive; whatever is wrong with one is told when it is read."""
    if not path.is_file():  # a pipe can be read only once
        return None
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            state = os.fstat(file.fileno())
            members = [
                (one.filename, one.CRC, one.compress_type, one.file_size, one.header_offset)
                for one in archive.infolist()
            ]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None
    return _Seen(path.absolute(), mark_of(state), state.st_mtime, members)


def _key(seen: _Seen, role: Role) -> str:
    return content_key("data", VERSION, file=seen.mark, name=seen.path.name, members=seen.members, role=role)


def _plain(spec: InputSpec) -> dict[str, Any]:
    return asdict(spec) | {"shape": list(spec.shape)}


def _pack(data: Dataset) -> Entry:
    values = {
        "inputs": [_plain(spec) for spec in data.specs],
        "sha256": data.sha256,
        "notes": list(data.notes),
        "places": {
            name: [place.offset, place.dtype, list(place.shape), place.sha256.hex()]
            for name, place in data.places.items()
        },
    }
    return Entry(values, {} if data.labels is None else {"labels": data.labels})


def _unpack(entry: Entry, seen: _Seen, inputs: Sequence[InputSpec]) -> Dataset:
    places = {
        name: Place(seen.path, offset, dtype, tuple(shape), seen.mark, bytes.fromhex(digest))
        for name, (offset, dtype, shape, digest) in entry.values["places"].items()
    }
    return Dataset(
        inputs=Unread({spec.name: places[spec.name] for spec in inputs}),
        labels=entry.arrays.get("labels"),
        source=seen.path.name,
        sha256=entry.values["sha256"],
        specs=tuple(inputs),
        notes=tuple(entry.values["notes"]),
        places=places,
    )
