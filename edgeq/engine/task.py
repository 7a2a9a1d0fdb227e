"""What an engine sends to a worker, and what happens there: the same for all engines that send anything."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

from edgeq.errors import EdgeqError, UnsupportedError

SENT = 6
"""Shared objects that a worker keeps at a time. The stages of a plan share four at most, the model among them."""


Handle = TypeVar("Handle")


class Sent(Generic[Handle]):
    """What was sent to workers, the last used last: as much as a worker keeps.

    Args:
        send: makes bytes available to every worker.
        drop: takes them back.
    """

    def __init__(self, send: Callable[[bytes], Handle], drop: Callable[[Handle], None]) -> None:
        self._send, self._drop = send, drop
        self._kept: dict[int, tuple[Any, Handle]] = {}

    def handles(self, shared: Sequence[Any]) -> tuple[Handle, ...]:
        """The handle of each object, which is sent unless it was before."""
        assert len(shared) <= SENT
        for value in shared:
            # the object is held: no other can get its id
            known = self._kept.pop(id(value)) if id(value) in self._kept else None
            self._kept[id(value)] = known or (value, self._send(packed(value)))
        for oldest in list(self._kept)[:-SENT]:
            self._drop(self._kept.pop(oldest)[1])
        return tuple(self._kept[id(value)][1] for value in shared)


def packed(value: Any) -> bytes:
    """A value as it travels.

    Raises:
        UnsupportedError: it cannot be sent.
    """
    try:
        return pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UnsupportedError(
            f"this work cannot be sent to other processes: {error}", remedy="leave --workers and --engine away"
        ) from error


def perform(fetch: Callable[[Any], bytes], handles: tuple[Hashable, ...], task: bytes) -> bytes:
    """Does one item's work in a worker.

    Args:
        fetch: gives the bytes of what is shared.
        handles: of what is shared.
        task: the function and its item, packed.

    Returns:
        The result or the error, packed: errors with arguments of their own do not survive every engine.
    """
    import torch  # who only sends work does without it

    torch.set_num_threads(1)
    try:
        work, item = pickle.loads(task)
        return packed((work(*(_received(fetch, handle) for handle in handles), item), None, ""))
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> bytes:
    """An error as a result; one that cannot travel gives its text."""
    trace = traceback.format_exc()
    try:
        data = packed((None, error, trace))
        pickle.loads(data)
    except Exception:
        data = packed((None, EdgeqError(f"{type(error).__name__}: {error}"), trace))
    return data


def result_of(data: bytes) -> Any:
    """What `perform` returned.

    Raises:
        Exception: what the work raised.
    """
    value, error, trace = pickle.loads(data)
    if error is not None:
        raise error from RuntimeError(f"in a worker:\n{trace}")
    return value


@lru_cache(maxsize=SENT)
def _received(fetch: Callable[[Any], bytes], handle: Hashable) -> Any:
    return pickle.loads(fetch(handle))
