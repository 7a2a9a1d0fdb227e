"""`package.module:function` references: what a user's own Python code contributes."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from edgeq.errors import EdgeqError, UsageError


def resolve(reference: str, where: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules in the working directory are found too.

    Args:
        reference: the module and the function, with a colon between.
        where: the option that it came from, for messages.

    Raises:
        UsageError: the reference is malformed, or nothing of that name can be imported.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise UsageError(f"{reference!r} names no function", remedy="write package.module:function", where=where)
    try:
        with working_directory_importable():
            module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"the module {module_name!r} cannot be imported ({type(error).__name__}: {error})",
            remedy="run in the folder that holds it, or install its package",
            where=where,
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        near = difflib.get_close_matches(name, dir(module), n=1)
        raise UsageError(
            f"the module {module_name!r} has no function {name!r}",
            remedy=f"did you mean {module_name}:{near[0]}?" if near else "check the name",
            where=where,
        )
    function: Callable[..., Any] = found
    return function


def call(reference: str, where: str, **arguments: Any) -> Any:
    """Call the function that a reference names, with those of the arguments that it takes.

    Raises:
        UsageError: it cannot be found, or it raises; the message carries its error.
    """
    function = resolve(reference, where)
    try:
        taken = inspect.signature(function).parameters
    except (TypeError, ValueError):
        taken = {}  # type: ignore[assignment]
    try:
        with working_directory_importable():
            return function(**{name: value for name, value in arguments.items() if name in taken})
    except EdgeqError:
        raise
    except Exception as error:
        raise failed(reference, where, error) from error


def failed(reference: str, where: str, error: BaseException) -> UsageError:
    """The error for user code that raised."""
    return UsageError(
        f"{reference} failed ({type(error).__name__}: {error})",
        remedy="call it in Python to see the whole traceback",
        where=where,
    )


@contextlib.contextmanager
def working_directory_importable() -> Iterator[None]:
    """Let `import` find modules in the working directory, as `python -m` does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
