"""How long work tells the outside that it moves: one small protocol, silent by default."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a run. The command line draws them; a library caller may ignore them."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def step(self, done: int, total: int) -> None:
        """The running stage has finished `done` of `total` units."""

    def end(self, stage: str, seconds: float) -> None:
        """A stage is over."""

    def note(self, text: str) -> None:
        """Something that the user should know, once (a warning, a choice made)."""


class Silent:
    """The default: says nothing."""

    def start(self, stage: str) -> None: ...
    def step(self, done: int, total: int) -> None: ...
    def end(self, stage: str, seconds: float) -> None: ...
    def note(self, text: str) -> None: ...


class Clock:
    """Runs stages and remembers how long each took, in seconds."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    def copy(self) -> Clock:
        """One that goes on from here by itself."""
        other = Clock(self.progress)
        other.seconds |= self.seconds
        return other

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        self.progress.start(name)
        begin = time.perf_counter()
        yield self.progress
        spent = time.perf_counter() - begin
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        self.progress.end(name, spent)
