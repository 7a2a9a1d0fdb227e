"""Keeps a converter's chatter from the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(log: logging.Logger) -> Iterator[None]:
    """Messages of Python's go nowhere, and those that C++ parts write themselves to a log, at debug level. Handlers and
    levels that a library gives the root logger when it is imported are taken away again.
    """
    handlers, level = logging.root.handlers[:], logging.root.level
    with tempfile.TemporaryFile() as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            caught.seek(0)
            log.debug("%s", caught.read().decode(errors="replace"))
