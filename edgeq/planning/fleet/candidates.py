"""Candidates for a fleet: the plans that its targets find, each for itself and with what all of them offer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeq.errors import EdgeqError, GateError, UsageError
from edgeq.export.artifact import Exporter
from edgeq.limits import Limits
from edgeq.lowering.choices import uniform
from edgeq.planning.fleet.offered import offered_too, refusal
from edgeq.planning.proof.loop import find
from edgeq.planning.proof.outcome import Outcome, rank
from edgeq.planning.proof.proving import prove
from edgeq.planning.proof.record import written
from edgeq.planning.proof.search import Search, searches
from edgeq.planning.proof.wider import in_kinds, why_wider
from edgeq.plans.plan import Plan
from edgeq.plans.rules import Rule
from edgeq.prepare import Job, answered
from edgeq.registry.schema import Runtime


@dataclass(frozen=True)
class Candidate:
    """A plan that may serve several targets.

    Attributes:
        plan: of the target whose kernels it was planned for.
        found: what the plan was written from, proved if that target's device is here.
        common: whether it was solved with what all targets of its format offer.
    """

    name: str
    plan: Plan
    found: Outcome
    common: bool

    @property
    def told(self) -> dict[str, Any]:
        """What the fleet file says of it in several places."""
        return {"target": self.plan.target, "format": self.plan.format, "size": self.found.size}


def candidates(jobs: Sequence[Job], exporter: Exporter, minimize: str, rules: Sequence[Rule]) -> list[Candidate]:
    """The best plan of every runtime of every target, found as `edgeq plan` does it, and beside it the best one of what
    every target offers that has its format.

    Raises:
        EdgeqError: a target has no candidate of its own, and why.
    """
    found: list[Candidate] = []
    for job in jobs:
        others = [other for other in jobs if other is not job]
        errors: list[EdgeqError] = []
        with job.clock.stage(f"plan for {job.target.name}"):
            for runtime in job.runtimes:
                try:
                    found += _of_runtime(job, runtime, others, exporter, minimize, rules)
                except EdgeqError as error:
                    job.clock.progress.note(f"{job.target.name}, {runtime.format}: {error.cause}")
                    errors.append(error)
        if len(errors) == len(job.runtimes):
            raise errors[0]
    return found


def new_folder(exporter: Exporter) -> Path:
    """One for builds, that nobody else writes to."""
    return Path(tempfile.mkdtemp(dir=exporter.scratch))


def reader(plan_format: str, job: Job) -> Runtime | None:
    """The runtime of a target that reads artefacts of a format."""
    return next((r for r in job.runtimes if r.format == plan_format), None)


def _of_runtime(
    job: Job, runtime: Runtime, others: Sequence[Job], exporter: Exporter, minimize: str, rules: Sequence[Rule]
) -> list[Candidate]:
    own, common = list[Outcome](), list[Outcome]()
    note = job.clock.progress.note

    def opened(typed: Runtime) -> list[Search]:
        return _searches(job, typed, exporter, minimize, rules)

    def why() -> str:
        return next(filter(None, (why_wider(min(group, key=rank)) for group in (own, common) if group)), "")

    for searched in in_kinds(runtime, opened, why):
        try:
            shared = [_of_all(one, others) for one in searched]
            own += map(_found, searched)
            common += map(_found, filter(None, shared))
        except EdgeqError as error:
            if not own:
                raise
            note(f"{job.target.name}, {runtime.format}: {error.cause}")  # what was found without these stands
            break
    name, best = f"{job.target.name}/{runtime.format}", min(own, key=rank)
    found = [Candidate(name, written(best), best, False)]
    if common:
        best = min(common, key=rank)
        found.append(Candidate(f"{name}/common", written(best), best, True))
    return found


def _searches(job: Job, runtime: Runtime, exporter: Exporter, minimize: str, rules: Sequence[Rule]) -> list[Search]:
    """The searches of a runtime; without a limit on latency where nobody knows that of the device, which then is not
    validated in any case."""
    if job.device is None:  # an emulator that is not set up is planned for as what nothing can run
        job = replace(job, target=job.target.model_copy(update={"execution": "none"}))
        job = answered(job) if job.limits.max_drop is not None else job
    try:
        return searches(job, runtime, exporter, minimize, rules)
    except UsageError as error:
        if job.timed is not None or job.limits.max_latency is None:
            raise
        job.clock.progress.note(f"{error.cause}; planned without that limit")
        untimed = replace(job, limits=replace(job.limits, max_latency=None))
        return searches(untimed, runtime, exporter, minimize, rules)


def _found(search: Search) -> Outcome:
    """The best plan of a search; the preferred kernels everywhere where none is expected to hold the limits."""
    try:
        return find(search)
    except GateError as refused:
        choices = uniform(search.allowed)
        search.notes.append(refused.cause)
        proof = None if search.job.device is None else prove(search, choices)
        return Outcome(search, choices, proof, search.built(choices).size if proof is None else proof.size)


def _of_all(search: Search, others: Sequence[Job]) -> Search | None:
    """The search among the choices that every target offers which reads its artefacts; None where these are all that it
    has, where they leave a layer with none, or where no other target reads them."""
    runtime, problem = search.runtime, search.problem
    left, readers = search.allowed, []
    for other in others:
        there = reader(runtime.format, other)
        if there is not None and not refusal(runtime, there, search.precision):
            left = offered_too(search.job.model, runtime, there, left)
            readers.append(other)
    if left == search.allowed or not all(left.values()):
        return None
    options = {name: {choice: problem.options[name][choice] for choice in left[name]} for name in problem.options}
    return replace(
        search,
        job=replace(search.job, limits=_tightest([search.job.limits, *(other.limits for other in readers)])),
        problem=replace(problem, options=options),
        folder=new_folder(search.exporter),
        made={},
        proofs={},
        notes=[*search.notes, f"only what {', '.join(other.target.name for other in readers)} also offers"],
    )


def _tightest(limits: Sequence[Limits]) -> Limits:
    """The first limits, with the least drop and size that any of them allows. A latency is one device's own, and drops
    are compared where they are in one unit."""
    first = limits[0]
    drops = [one.max_drop for one in limits if one.max_drop is not None]
    sizes = [one.max_size for one in limits if one.max_size is not None]
    alike = len({drop.percent for drop in drops}) == 1
    drop = min(drops, key=lambda drop: drop.value) if alike else first.max_drop
    return replace(first, max_drop=drop, max_size=min(sizes, default=None))
