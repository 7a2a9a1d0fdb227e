"""The best plan of all runtimes, in every precision of what stays in float; with activations of more bits where those
of the preferred type cost too much accuracy, or where the rules leave none of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from edgeq.cache import Entry, cached, content_key
from edgeq.devices import Candidate, Inputs
from edgeq.errors import EdgeqError
from edgeq.evaluation.alternating import alternating
from edgeq.export.artifact import Exporter
from edgeq.planning.proof.allowed import allowed_loss, most_lost
from edgeq.planning.proof.loop import Book, look
from edgeq.planning.proof.record import written
from edgeq.planning.proof.search import Search, searches
from edgeq.planning.proof.wider import in_kinds, why_wider
from edgeq.plans.plan import Plan
from edgeq.plans.rules import Rule
from edgeq.prepare import Job
from edgeq.registry.schema import Runtime
from edgeq.runtimes import runtime as runtime_info

FLOATS_VERSION = 2
"""To be raised whenever the float models are timed in another way."""


def best_plan(job: Job, exporter: Exporter, minimize: str, rules: Sequence[Rule]) -> Plan:
    """The best plan that was found.

    Raises:
        EdgeqError: no search found anything; the error of the first one.
    """
    most_lost(job)  # what cannot be judged is told before anything is measured
    book = Book(job)
    kinds: dict[str, Iterator[list[Search]]] = {}
    entered: dict[str, list[Search]] = {}
    for runtime in job.runtimes:
        why = partial(_why_wider, book, runtime)
        kinds[runtime.name] = in_kinds(runtime, lambda typed: searches(job, typed, exporter, minimize, rules), why)
        try:
            entered[runtime.name] = next(kinds[runtime.name])
        except EdgeqError as error:
            book.failed(runtime, error)
    book.beside = _beside_floats(job, exporter, [runtime for runtime in job.runtimes if runtime.name in entered])
    every = [search for some in entered.values() for search in some]
    book.allowed = allowed_loss(job, every)
    look(book, every)
    for name in entered:
        for wider in kinds[name]:
            look(book, wider)
    best = book.best()
    if best is None:
        raise book.errors[0]
    best.search.notes.extend(book.passed)
    return written(best)


def _beside_floats(job: Job, exporter: Exporter, runtimes: Sequence[Runtime]) -> dict[str, float | None]:
    """By runtime, what a latency in units of its own float model's is multiplied by, to be compared with the others',
    which are measured minutes apart on a machine that drifts: 1 for one runtime alone; for several what their float
    models took in turns, None where nothing can be timed."""
    device, evaluation = job.timed, job.evaluation
    if len(runtimes) < 2 or device is None or evaluation is None:
        return {runtime.name: 1.0 if len(runtimes) == 1 else None for runtime in runtimes}

    def measured() -> dict[str, float]:
        made: dict[str, tuple[Candidate, Inputs]] = {}
        for runtime in runtimes:
            options = runtime_info(runtime.name).baselines(device.environment(runtime.name))["float32"]
            candidate = Candidate(exporter.float_model(runtime.format)[0], runtime.name, options)
            made[runtime.name] = candidate, evaluation.first(1)
        with job.clock.stage("float model in every runtime") as steps:
            return alternating(device, made, steps, threads=job.threads)

    key = content_key(
        "floats",
        FLOATS_VERSION,
        model=job.model.fingerprint,
        device=device.name,
        runtimes=[[runtime.name, device.environment(runtime.name)] for runtime in runtimes],
        threads=job.threads,
    )
    taken: dict[str, float] = cached(job.cache, "floats", key, measured, Entry, lambda entry: entry.values)
    return {runtime.name: taken.get(runtime.name) for runtime in runtimes}


def _why_wider(book: Book, runtime: Runtime) -> str:
    before, best = book.best(runtime.name), book.best()
    behind = best is not None and best.held and before is not None and not before.held
    return "" if before is None or behind else why_wider(before)
