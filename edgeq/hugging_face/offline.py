"""transformers without a network, and without what it tells a terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator

from edgeq.errors import MissingExtraError

_SET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
_ALONE = threading.RLock()
"""What is set here is the process' own: two threads would each restore what the other has set."""

_CHATTY = ("transformers", "torchao", "torch.utils._pytree")


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """For the duration. What was set before is set again.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    with _ALONE:
        yield from _offline()


def _offline() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _SET}
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    os.environ.update(_SET)  # read when transformers is imported
    _set_levels(dict.fromkeys(levels, logging.CRITICAL))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from transformers.utils import logging as told
            except ImportError as error:
                raise MissingExtraError("transformers", "hf") from error
            bars = told.is_progress_bar_enabled()
            told.disable_progress_bar()  # type: ignore[no-untyped-call]
            _set_levels(dict.fromkeys(levels, logging.CRITICAL))  # its import sets one of its own
            try:
                yield
            finally:
                if bars:
                    told.enable_progress_bar()  # type: ignore[no-untyped-call]
    finally:
        _set_levels(levels)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _set_levels(levels: dict[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
