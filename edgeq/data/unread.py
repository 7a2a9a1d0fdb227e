"""Arrays that lie in files and are read when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.data.place import Place
from edgeq.errors import UsageError


class Unread(Mapping[str, NDArray[Any]]):
    """Arrays by name, each read when it is first asked for. Another process is sent the arrays themselves.

    Asking raises `UsageError` where the file is no longer the one that was read before.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = places
        self._read: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._read:
            self._read[name] = _values(self._places[name], self._places[name].shape)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def first(self, name: str, count: int) -> NDArray[Any]:
        """An array as far as its first samples, `[count, ...]`; no more of it is read."""
        if name in self._read:
            return self._read[name][:count]
        place = self._places[name]
        return _values(place, (min(count, place.shape[0]), *place.shape[1:]))


def _values(place: Place, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        values = np.fromfile(place.path, np.dtype(place.dtype), prod(shape), offset=place.offset)
    except OSError:
        values = np.empty(0)
    if values.size != prod(shape) or not place.unchanged():
        raise UsageError("it was changed while it was in use", remedy="run again", where=place.path.name)
    return values.reshape(shape)
