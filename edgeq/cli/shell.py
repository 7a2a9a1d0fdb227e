"""The program's two streams, which no library can reach, and how results and errors are written to them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

from edgeq.cli import signals
from edgeq.cli.terminal import Live, Plain, Stages, Visible
from edgeq.errors import INTERRUPTED, EdgeqError, UsageError
from edgeq.files import explained
from edgeq.visible import visible

# What typer raises for wrong arguments; it is public only as the base of its subclass.
_WRONG_ARGUMENTS: type = typer.BadParameter.__mro__[1]
_WIDTH = 100
"""Columns where there is no terminal to ask: as wide as the report's table."""
_KINDS = {2: "usage", 3: "gate", 4: "unsupported", 5: "device"}


def plain(value: object) -> Any:
    """A value as JSON has it: models and data classes as objects, what is no finite number as null."""
    if hasattr(value, "model_dump"):  # a pydantic model: importing pydantic would make `edgeq --help` wait
        return plain(value.model_dump(mode="json", by_alias=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


class Shell:
    """What a command writes to.

    Attributes:
        json: one JSON document goes to standard output, everything else to standard error.
        quiet: nothing but answers and errors.
        debug: show tracebacks, and on standard error what libraries print.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.debug = debug
        self._out: TextIO = sys.stdout or _nowhere()
        self._err: TextIO = sys.stderr or _nowhere()

    @property
    def console(self) -> Console:
        """For people: standard output, or standard error where the former holds JSON."""
        return _console(self._err if self.json else self._out)

    def stages(self) -> Stages:
        """Shows progress on standard error, for use in a `with` block."""
        console = _console(self._err)
        if self.quiet:
            return Stages()
        return Live(console) if console.is_terminal else Plain(console)

    def document(self, value: object) -> None:
        """Write the answer for programs."""
        self._out.write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")
        self._out.flush()

    def tell(self, error: EdgeqError, kind: str | None = None) -> int:
        """Write an error, and its document unless the command has one of its own; returns the exit code."""
        kind = kind or _KINDS.get(error.exit_code, "internal")
        where, cause, remedy = (_one_line(text) for text in (error.where, error.cause, error.remedy))
        line = Text.assemble(("error: ", "bold red"), f"{where}: {cause}" if where else cause)
        console = _console(self._err)
        console.print(line, soft_wrap=True)
        if remedy:
            console.print(Text(f"  remedy: {remedy}"), soft_wrap=True)
        if self.json and kind != "gate":
            told = {"kind": kind, "exit_code": error.exit_code, "where": where, "cause": cause, "remedy": remedy}
            with contextlib.suppress(OSError):  # outside of a command, where the stream is Python's own
                self.document({"error": told})
        return error.exit_code

    def warn(self, text: str) -> None:
        """Write what must not be overlooked, also where nothing failed."""
        line = Text.assemble(("warning: ", "bold yellow"), _one_line(text))
        _console(self._err).print(line, soft_wrap=True)

    def guard(self, work: Callable[[], int]) -> int:
        """Run something that may fail in any way; returns the exit code."""
        try:
            return work()
        except BaseException as error:
            # A library that is interrupted half-way through may raise an error of its own.
            told = isinstance(error, KeyboardInterrupt | signals.Stopped)
            stopped = signals.stopped() or (error if told else None)
            if self.debug and not isinstance(error, _WRONG_ARGUMENTS):
                self._err.write(visible("".join(traceback.format_exception(error)), keep="\n"))
            if stopped is not None:
                signals.at_the_last(lambda: None)
                return self.tell(_interrupted(stopped), "interrupted")
            return self.tell(_explain(error))

    def ended(self, code: int) -> int:
        """The exit code of a command that has said everything: an error if its answer could not be written."""
        self._out.flush()
        refused = getattr(self._out, "refused", None)
        if refused is None:
            return code
        return self.tell(unwritten(refused))

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """Keep the two streams for ourselves; whatever else writes to them reaches nobody, or with `debug` stderr.

        Native code writes to the file descriptors past `sys.stdout`. These stay redirected until the process ends,
        since libraries also write at exit.
        """
        before = sys.stdout, sys.stderr
        if _is_descriptor(sys.stdout, 1) and _is_descriptor(sys.stderr, 2):
            self._out, self._err = _own(sys.stdout), _own(sys.stderr)
            sink = os.dup(2) if self.debug else os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            os.close(sink)
        signals.at_the_last(self._last_word)
        chatter = self._err if self.debug else _nowhere()
        sys.stdout = sys.stderr = chatter
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            self._out.flush()
            self._err.flush()

    def _last_word(self) -> None:
        os.write(self._err.fileno(), b"error: interrupted\n")


def unwritten(error: OSError) -> UsageError:
    """The error for an answer that standard output did not take."""
    return UsageError(
        f"the answer cannot be written: {error.strerror}",
        where="standard output",
        remedy="send it to a place with space left",
    )


def _explain(error: BaseException) -> EdgeqError:
    if isinstance(error, EdgeqError):
        return error
    if isinstance(error, _WRONG_ARGUMENTS):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "edgeq"
        cause = str(error.format_message()).replace("Value error, ", "").rstrip(".")  # type: ignore[attr-defined]
        return UsageError(cause[:1].lower() + cause[1:], where=command, remedy=f"see {command} --help")
    if isinstance(error, SystemExit):
        return UsageError(
            f"code that was imported called sys.exit({error.code!r})",
            remedy="keep that call out of the modules named in options",
        )
    if isinstance(error, MemoryError):
        return EdgeqError("out of memory", remedy="free some, or give fewer samples")
    if isinstance(error, OSError) and error.filename is not None:
        known = explained(error, Path(os.fsdecode(error.filename)))
        if known.remedy:
            return known
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UsageError("a disk is full", remedy="free some space, choose another --out, or point TMPDIR elsewhere")
    return EdgeqError(
        f"internal error: {type(error).__name__}: {error} (run with --debug for the traceback)",
    )


def _interrupted(stopped: BaseException) -> EdgeqError:
    error = EdgeqError("interrupted")
    error.exit_code = getattr(stopped, "exit_code", INTERRUPTED)
    return error


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _console(stream: TextIO) -> Console:
    # rich would look for the width at the descriptors that were redirected.
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        width = 0
    told = os.environ.get("COLUMNS", "")
    width = int(told) if told.isdecimal() and int(told) else width
    return Visible(file=stream, width=width or _WIDTH, highlight=False, markup=False, emoji=False)


def _is_descriptor(stream: Any, number: int) -> bool:
    try:
        return bool(stream.fileno() == number)
    except (AttributeError, OSError, ValueError):
        return False


def _own(stream: TextIO) -> TextIO:
    """A stream of our own to the same place."""
    stream.flush()
    raw = os.fdopen(os.dup(stream.fileno()), "wb")
    return _Output(raw, encoding=stream.encoding, errors="backslashreplace", line_buffering=stream.isatty())


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8", errors="replace")


class _Output(io.TextIOWrapper):
    """A stream whose reader may leave (`| head`), or whose disk may be full: what is left to say is then dropped. Only
    the latter is an error, which `refused` keeps."""

    refused: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.refused = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        with contextlib.suppress(OSError):
            super().flush()  # what is left of it goes there
