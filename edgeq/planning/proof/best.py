"""The best plan of all runtimes, in every precision of what stays in float; with activations of more bits where those
of the preferred type cost too much accuracy, or where the rules leave none of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgeq.errors import EdgeqError, UsageError
from edgeq.export.artifact import Exporter
from edgeq.lowering.choices import by_activations
from edgeq.planning.proof.across import beside_floats
from edgeq.planning.proof.allowed import allowed_loss, most_lost
from edgeq.planning.proof.loop import Book, look
from edgeq.planning.proof.record import written
from edgeq.planning.proof.search import Search, searches
from edgeq.planning.proof.wider import in_vain, why_wider
from edgeq.plans.plan import Plan
from edgeq.plans.rules import Rule
from edgeq.prepare import Job
from edgeq.registry.schema import Runtime

Open = Callable[[str, Runtime], list[Search]]
"""Makes the searches of a runtime with one type of activations."""


def best_plan(job: Job, exporter: Exporter, folder: Path, minimize: str, rules: Sequence[Rule]) -> Plan:
    """The best plan that was found.

    Raises:
        EdgeqError: no search found anything; the error of the first one.
    """

    def opened(kind: str, typed: Runtime) -> list[Search]:
        place = folder / f"{typed.format}-{kind}"
        place.mkdir()
        return searches(job, typed, exporter, place, minimize, rules)

    most_lost(job)  # what cannot be judged is told before anything is measured
    book = Book(job)
    kinds = {runtime.name: iter(by_activations(runtime).items()) for runtime in job.runtimes}
    entered: dict[str, list[Search]] = {}
    for runtime in job.runtimes:
        try:
            entered[runtime.name] = _first_of(kinds[runtime.name], opened)
        except EdgeqError as error:
            book.failed(runtime, error)
    runtimes = [runtime for runtime in job.runtimes if runtime.name in entered]
    book.beside = beside_floats(job, exporter, runtimes) if runtimes else {}
    every = [search for some in entered.values() for search in some]
    book.allowed = allowed_loss(job, every)
    look(book, every)
    told = {runtime.name: _wider(book, runtime, kinds[runtime.name], opened, folder) for runtime in runtimes}
    best = book.best()
    if best is None:
        raise book.errors[0]
    return written(best._replace(notes=[*best.notes, *told[best.search.runtime.name], *book.passed]))


def _first_of(kinds: Iterator[tuple[str, Runtime]], opened: Open) -> list[Search]:
    """The searches with the first type of activations that the rules leave something of."""
    refused: UsageError | None = None
    for kind, typed in kinds:
        try:
            return opened(kind, typed)
        except UsageError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _wider(book: Book, runtime: Runtime, kinds: Iterator[tuple[str, Runtime]], opened: Open, folder: Path) -> list[str]:
    """Searches with the wider types of activations, as long as they may mend something; says what came of it."""
    told: list[str] = []
    for kind, typed in kinds:
        before, best = book.best(runtime.name), book.best()
        if before is None or best is None or (best.held and not before.held):
            break
        why = why_wider(before)
        if not why:
            break
        failures = len(book.errors)
        try:
            if vain := in_vain(before.search, typed, folder / f"{typed.format}-{kind}-everywhere"):
                told.append(f"{kind} activations were not tried: {vain}")
                book.job.clock.progress.note(told[-1])
                continue
            book.job.clock.progress.note(f"{kind} activations are tried as well: {why}")
            look(book, opened(kind, typed))
            outcome = "they are no better" if book.best(runtime.name) == before else "they are better"
            outcome = next((error.cause for error in book.errors[failures:]), outcome)
        except EdgeqError as error:  # what was found without them stands
            outcome = error.cause
        told.append(f"{kind} activations were tried as well: {why}; {outcome}")
    return told
