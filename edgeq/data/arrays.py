"""Samples from NumPy files: `.npz` with an array for each input, `.npy` for models with one input."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from edgeq.data.check import fit, fit_labels
from edgeq.data.dataset import Dataset, InputSpec, make_dataset
from edgeq.data.stored import Arrays, Stored, stored_arrays
from edgeq.errors import UsageError
from edgeq.unpacking import check_unpacked

LABELS = "labels"
_BROKEN = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, KeyError,
    SyntaxError, tokenize.TokenError, MemoryError,
)  # fmt: skip


def is_array_file(head: bytes) -> bool:
    """Whether a file that begins so is a `.npz` or a `.npy`."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY"))


def load_arrays(
    path: Path,
    specs: Sequence[InputSpec],
    *,
    role: Literal["calibration", "evaluation"],
    limit: int | None,
    notes: list[str],
) -> Dataset:
    """Read a NumPy file. Labels are looked at for evaluation only.

    Raises:
        UsageError: the file is damaged, holds Python objects, or does not fit the model.
    """
    stored = _read_npz(path, specs, role) if zipfile.is_zipfile(path) else _read_npy(path, specs)
    arrays = {name: one.array for name, one in stored.items()}
    labels = None if any(spec.name == LABELS for spec in specs) else arrays.pop(LABELS, None)
    chosen = _match(arrays, specs, path.name, notes)
    fitted, kept = fit(chosen, specs, limit=limit, where=path.name, notes=notes)
    if labels is not None:
        labels = fit_labels(labels, len(chosen[specs[0].name]), where=path.name)[kept]
    there = {id(one.array): one.place for one in stored.values() if one.place is not None}
    # what was converted, or is a part of what was read, lies in no file
    places = {name: there[id(array)] for name, array in fitted.items() if id(array) in there}
    return make_dataset(fitted, specs, labels=labels, source=path.name, notes=notes, places=places)


def _read_npy(path: Path, specs: Sequence[InputSpec]) -> Arrays:
    if len(specs) != 1:
        wanted = ", ".join(spec.name for spec in specs)
        raise UsageError(
            f"a .npy file holds one array and the model takes {len(specs)} inputs ({wanted})",
            remedy="save a .npz with an array for each input",
            where=path.name,
        )
    try:
        return {specs[0].name: Stored(np.load(path, allow_pickle=False), None)}
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _read_npz(path: Path, specs: Sequence[InputSpec], role: str) -> Arrays:
    """All arrays of the file, `labels` among them only where they are wanted. Every CRC is checked."""
    unread = role != "evaluation" and all(spec.name != LABELS for spec in specs)
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked(archive, path.stat().st_size, path.name)
        stored = stored_arrays(path)
        with np.load(path, allow_pickle=False) as archive:
            names = [name for name in archive.files if not (unread and name == LABELS)]
            arrays = {name: stored[name] if name in stored else Stored(archive[name], None) for name in names}
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    stray = [name for name, one in arrays.items() if not isinstance(one.array, np.ndarray)]
    if stray:
        raise UsageError(
            f"it holds {stray[0]!r}, which is no array", remedy="write it with numpy.savez", where=path.name
        )
    return arrays


def _match(
    arrays: dict[str, np.ndarray], specs: Sequence[InputSpec], where: str, notes: list[str]
) -> dict[str, np.ndarray]:
    wanted = [spec.name for spec in specs]
    missing = [name for name in wanted if name not in arrays]
    if len(specs) == 1 and missing and len(arrays) == 1:
        ((name, array),) = arrays.items()
        notes.append(f"{where}: the array {name!r} is taken for the model's only input {wanted[0]!r}")
        return {wanted[0]: array}
    if missing:
        raise UsageError(
            f"no array for the input {missing[0]!r}; the model takes {', '.join(wanted)}, "
            f"the file has {', '.join(arrays) or 'no arrays'}",
            remedy="name the arrays after the model's inputs",
            where=where,
        )
    extra = [name for name in arrays if name not in wanted]
    if extra:
        notes.append(f"{where}: not used: {', '.join(extra)}")
    return {name: arrays[name] for name in wanted}


def _unreadable(path: Path, error: Exception) -> UsageError:
    if "allow_pickle" in str(error) or "Object arrays" in str(error):
        return UsageError(
            "it holds Python objects, which only run code can unpack",
            remedy="save plain number arrays: numpy.savez(file, name=array)",
            where=path.name,
        )
    return UsageError(
        f"the file is damaged or cut short ({first_line(error)})",
        remedy="copy or write the file again",
        where=path.name,
    )


def first_line(error: BaseException) -> str:
    """The gist of an exception in one line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
