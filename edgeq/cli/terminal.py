"""Stages of a run as the user sees them: a moving line on a terminal, plain lines in a log, or nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Span, Text

from edgeq.cli import signals
from edgeq.visible import visible

_NAME_WIDTH = 24


class Visible(Console):
    """A console on which no text from a file does anything: whatever would steer the terminal, break a line or hide is
    shown as an escape. All that a command says to people goes through one."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """A renderable as segments, of which texts and the cells of tables are made; see `rich.console.Console`."""
        if isinstance(renderable, str):
            renderable = self.render_str(renderable)
        return super().render(_escaped(renderable) if isinstance(renderable, Text) else renderable, options)


def _escaped(text: Text) -> Text:
    """The same text in the same styles."""
    hidden = [i for i, c in enumerate(text.plain) if not c.isprintable()]
    if not hidden:
        return text
    escaped = text.blank_copy()
    for piece in text.divide(sorted({*hidden, *(i + 1 for i in hidden)} - {0, len(text)})):
        if not piece.plain.isprintable():  # then it is one character, and so is whatever styles it
            piece.plain = visible(piece.plain)
            piece.spans = [Span(0, len(piece), span.style) for span in piece.spans]
        escaped.append_text(piece)
    return escaped


class Stages:
    """Shows nothing. The base of those that do; each call is also the chance to stop after a signal."""

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def start(self, stage: str) -> None:
        signals.check()

    def step(self, done: int, total: int) -> None:
        signals.check()

    def end(self, stage: str, seconds: float) -> None:
        signals.check()

    def note(self, text: str) -> None:
        signals.check()


class Plain(Stages):
    """For logs: a line for each stage that is over, and for each note."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def end(self, stage: str, seconds: float) -> None:
        super().end(stage, seconds)
        self._line(_over(stage, seconds))

    def note(self, text: str) -> None:
        super().note(text)
        self._line(_note(text))

    def _line(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)
        self._console.file.flush()


class Live(Stages):
    """For terminals: stages that are over stand above, those that run move below."""

    def __init__(self, console: Console) -> None:
        # Python's streams are left alone: what libraries print must not appear above the bars.
        self._progress = Progress(
            SpinnerColumn("line"),
            TextColumn(f"{{task.description:<{_NAME_WIDTH}}}", markup=False),
            BarColumn(bar_width=24),
            _Count(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._running: list[tuple[str, TaskID, int]] = []

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, stage: str) -> None:
        super().start(stage)
        self._running.append((stage, self._progress.add_task(stage, total=None), threading.get_ident()))

    def step(self, done: int, total: int) -> None:
        super().step(done, total)
        # several devices may work at once, each followed by a thread
        own = [task for _, task, thread in self._running if thread == threading.get_ident()] or [
            task for _, task, _ in self._running
        ]
        if own:
            self._progress.update(own[-1], completed=done, total=total)

    def end(self, stage: str, seconds: float) -> None:
        super().end(stage, seconds)
        for entry in reversed(self._running):
            if entry[0] == stage:
                self._running.remove(entry)
                self._progress.remove_task(entry[1])
                break
        self._progress.console.print(_over(stage, seconds), soft_wrap=True)

    def note(self, text: str) -> None:
        super().note(text)
        self._progress.console.print(_note(text), soft_wrap=True)


class _Count(MofNCompleteColumn):
    """`12/100`, and nothing while the end is not known."""

    def render(self, task: object) -> Text:
        return Text() if getattr(task, "total", None) is None else super().render(task)  # type: ignore[arg-type]


def _over(stage: str, seconds: float) -> Text:
    from edgeq.records.wording import seconds_text  # late, so that `edgeq --help` need not wait for the report's parts

    return Text.assemble(f"  {stage:<{_NAME_WIDTH}} ", (seconds_text(seconds), "dim"))


def _note(text: str) -> Text:
    return Text.assemble(("  note: ", "yellow"), " ".join(text.split()))
