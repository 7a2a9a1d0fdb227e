"""The searches that may find the best plan - of every runtime, precision and type of activations - and the plan that is
kept of theirs. What is predicted to be behind a plan that was proved is not built."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isinf, sqrt
from pathlib import Path
from typing import NamedTuple

from edgeq.errors import EdgeqError, GateError, UsageError
from edgeq.export.artifact import Exporter
from edgeq.lowering.choices import by_activations
from edgeq.planning.proof.across import at_best, beside_floats, ranked_at
from edgeq.planning.proof.allowed import allowed_loss, most_lost
from edgeq.planning.proof.outcome import Outcome, rank
from edgeq.planning.proof.proving import Rank, answer_preferred, best_rank, held
from edgeq.planning.proof.record import written
from edgeq.planning.proof.rounds import OFF, Rounds, Start, nearest, rounds, start, within_error
from edgeq.planning.proof.search import Search, searches
from edgeq.planning.proof.wider import in_vain, why_wider
from edgeq.planning.solver.solve import Infeasible
from edgeq.plans.plan import Plan, Proof
from edgeq.plans.rules import Rule
from edgeq.prepare import Job
from edgeq.records.wording import times_text
from edgeq.registry.schema import Runtime

FAR = {"latency": 0.97, "size": 1.03}
"""By what is minimized, how many times what is known of the best plan another search must be predicted to find at
least, to be left unbuilt. To prove a latency takes as long as all the rest. Where predictions are off by 4 %, what is
predicted at 0.97 times is slower after all in one case of five; to try all between that and 1, and keep the faster,
would win 2.5 % in such cases."""


Open = Callable[[str, Runtime], list[Search]]
"""Makes the searches of a runtime with one type of activations."""


class Entrant(NamedTuple):
    """A search that stands in line, in the order of the fields: those that have ended come last.

    Attributes:
        ended: no plan of it holds the limits, nor may one that it would still build.
        hoped: what its next plan is predicted to be ranked by, infinite where that cannot be told; of one that ended,
            what the best of its plans is ranked by, as far as that is known.
        steps: how often its turn has come: the first time it only solves, and builds from then on.
    """

    ended: bool
    hoped: tuple[float, ...]
    number: int
    search: Search
    start: Start
    rounds: Rounds
    steps: int = 0


@dataclass
class Contest:
    """What the searches of one job have found so far.

    Attributes:
        allowed: the loss that a plan may be predicted at (see `allowed_loss`).
        beside: by runtime, what makes latencies comparable (see `beside_floats`).
        passed: of the searches that nothing, or nothing more, was built for, why.
        errors: of those that found nothing.
        refused: those whose limits no plan can hold, and why.
    """

    job: Job
    allowed: float | None = None
    beside: Mapping[str, float | None] = field(default_factory=dict)
    found: list[Outcome] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    errors: list[EdgeqError] = field(default_factory=list)
    refused: list[tuple[Search, Start, Infeasible]] = field(default_factory=list)

    def first(self, runtime: Runtime | None = None) -> Outcome | None:
        """The best plan so far, of one runtime or of all."""
        some = [one for one in self.found if runtime is None or one.search.runtime.name == runtime.name]
        return min(some, key=self._rank, default=None)

    def carry_out(self, entered: Iterable[Search]) -> None:
        """Makes the searches."""
        self._in_line([(search, start(search, self.allowed)) for search in entered])

    def come_near(self) -> None:
        """Where no plan holds the limits, those that come nearest to them of the searches that were refused; none that
        is too large beside one that is not."""
        best = self.first()
        if best is not None and best.held:
            return
        refused, self.refused = self.refused, []
        entered: list[tuple[Search, Start]] = []
        for search, first, why in refused:
            try:
                near = nearest(search, first, why)
                if best is None or near.caps.get("size") == first.caps.get("size"):
                    entered.append((search, near))
            except EdgeqError as error:
                self.errors.append(error)
        self._in_line(entered)

    def _in_line(self, entered: Iterable[tuple[Search, Start]]) -> None:
        """Makes searches, a build at a time: always the one that is predicted to be best."""
        line: list[Entrant] = []
        for number, (search, first) in enumerate(entered):
            try:
                bound, first = self._at_best(search, first)
                heapq.heappush(line, Entrant(False, (bound,), number, search, first, rounds(search, first)))
            except EdgeqError as error:
                self._found_nothing(search, first, error)
        while line:
            one = heapq.heappop(line)
            if one.ended and any(outcome.held for outcome in self.found):
                self._give_up(one.search, "no plan that was built holds every limit")
            elif one.ended:
                self._completed(one)
            elif why := self._hopeless(one.search, *one.hoped):
                self._give_up(one.search, f"{'no further plan is' if one.steps > 1 else 'not'} built, {why}")
            elif following := self._stepped(one):
                heapq.heappush(line, following)

    def _stepped(self, one: Entrant) -> Entrant | None:
        """A search after its turn, back in line with what it would build next; None where it is over."""
        try:
            predicted = next(one.rounds)
        except StopIteration as ended:
            self.found.append(ended.value)
        except EdgeqError as error:
            self._found_nothing(one.search, one.start, error)
        else:
            hoped = best_rank(one.search)[1] if predicted is None else (self._ranked(one.search, predicted),)
            return one._replace(ended=predicted is None, hoped=hoped, steps=one.steps + 1)
        return None

    def _completed(self, one: Entrant) -> None:
        """What came of a search no plan of which holds the limits, unless that of another comes nearer to them."""
        nearest = self.first()
        if nearest is not None and one.hoped > _clearly_nearer(*self._rank(nearest)[1]):
            self._give_up(one.search, "its plans are further from the limits, or no nearer than predictions are off")
        else:
            self._stepped(one)

    def _at_best(self, search: Search, first: Start) -> tuple[float, Start]:
        """What a search may be hoped to find, and its start: where nothing but a latency is in the way, and by no more
        than predictions are off, with that of the fastest plan."""
        beside = self.beside.get(search.runtime.name)
        try:
            value = at_best(search, first.caps, beside)
        except Infeasible as refused:
            near = within_error(search, first, refused, OFF)
            if near is None:
                raise
            first, value = near, at_best(search, near.caps, beside)
        return inf if value is None else value, first

    def _found_nothing(self, search: Search, first: Start, error: EdgeqError) -> None:
        self.failed(search.runtime, error)
        if isinstance(error, Infeasible):
            self.refused.append((search, first, error))

    def failed(self, runtime: Runtime, error: EdgeqError) -> None:
        """Another search may find something.

        Raises:
            EdgeqError: none will: it is not that limits are too tight, and this is the only runtime.
        """
        if len(self.job.runtimes) == 1 and not isinstance(error, GateError):
            raise error
        self.job.clock.progress.note(f"{runtime.format}: {error.cause}")
        self.errors.append(error)

    def _rank(self, one: Outcome) -> Rank:
        return rank(one, self.beside.get(one.search.runtime.name))

    def _ranked(self, search: Search, predicted: Mapping[str, float]) -> float:
        value = ranked_at(search, predicted, self.beside.get(search.runtime.name))
        return inf if value is None else value

    def _known(self, first: Outcome, proof: Proof) -> float:
        """What the best plan would be ranked by if it held all limits. One reading of the clock is off by as much as
        predictions are, and now and then by more: what is known of a latency lies between the two."""
        as_held = first._replace(proof=proof.model_copy(update={"held": True}))
        measured = self._rank(as_held)[1][0]
        if first.search.minimize != "latency":
            return measured
        predicted = self._ranked(first.search, first.predicted)
        return measured if isinf(predicted) else sqrt(measured * predicted)

    def _give_up(self, search: Search, why: str) -> None:
        self.passed.append(f"{search.runtime.format}, {search.precision}: {why}")
        self.job.clock.progress.note(self.passed[-1])

    def _hopeless(self, search: Search, hoped: float) -> str:
        """Why nothing is built for a search; empty if something is."""
        first = self.first()
        if first is None or first.proof is None or isinf(hoped):
            return ""
        measure = first.search.minimize
        if measure != search.minimize or measure not in FAR or not (first.proof.held or _too_slow(first)):
            return ""
        times = hoped / self._known(first, first.proof)
        best = f"the plan in {first.search.runtime.format}, {first.search.precision}"
        if times <= FAR[measure] or (not first.proof.held and times * (1 + self._rank(first)[1][2]) <= OFF):
            return ""
        unsure = ": predictions are off by more than that" if times < 1 else ""
        return f"predicted at {times_text(times)} the {measure} of {best}, or more{unsure}"


def _too_slow(one: Outcome) -> bool:
    """Whether a plan that was to be fast holds every limit but that on the latency: it is compared like one that holds
    them all, save with what may be fast enough."""
    proof, limits = one.proof, one.search.provable
    if proof is None or proof.latency is None or limits.max_latency is None or one.search.minimize != "latency":
        return False
    return held(replace(limits, max_latency=None), proof)


def _clearly_nearer(too_large: float, drop_over: float, too_slow: float, drop: float) -> tuple[float, ...]:
    """What a plan that is not timed yet has to be ranked by at most, to be taken for nearer to the limits than one that
    was, and is over them by that much (see `proof_rank`)."""
    return too_large, drop_over, max(0.0, too_slow - (1 - FAR["latency"])), drop


def best_plan(job: Job, exporter: Exporter, folder: Path, minimize: str, rules: Sequence[Rule]) -> Plan:
    """The best plan of all runtimes: in every precision of what stays in float, and with wider activations where those
    of the preferred type cost too much accuracy, or where the rules leave none of it.

    Raises:
        EdgeqError: no search found anything; the error of the first one.
    """

    def opened(kind: str, typed: Runtime) -> list[Search]:
        place = folder / f"{typed.format}-{kind}"
        place.mkdir()
        return searches(job, typed, exporter, place, minimize, rules)

    most_lost(job)  # what cannot be judged is told before anything is measured
    contest = Contest(job)
    kinds = {runtime.name: iter(by_activations(runtime).items()) for runtime in job.runtimes}
    entered: dict[str, list[Search]] = {}
    for runtime in job.runtimes:
        try:
            entered[runtime.name] = _first_of(kinds[runtime.name], opened)
        except EdgeqError as error:
            contest.failed(runtime, error)
    runtimes = [runtime for runtime in job.runtimes if runtime.name in entered]
    contest.beside = beside_floats(job, exporter, runtimes) if runtimes else {}
    every = [search for some in entered.values() for search in some]
    for search in every:
        answer_preferred(search)
    contest.allowed = allowed_loss(job, every)
    contest.carry_out(every)
    told = {runtime.name: _wider(contest, runtime, kinds[runtime.name], opened, folder) for runtime in runtimes}
    contest.come_near()
    best = contest.first()
    if best is None:
        raise contest.errors[0]
    return written(best._replace(notes=[*best.notes, *told[best.search.runtime.name], *contest.passed]))


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


def _wider(
    contest: Contest, runtime: Runtime, kinds: Iterator[tuple[str, Runtime]], opened: Open, folder: Path
) -> list[str]:
    """Searches with the wider types of activations, as long as they may mend something; says what came of it."""
    told: list[str] = []
    for kind, typed in kinds:
        before, best = contest.first(runtime), contest.first()
        if before is None or best is None or (best.held and not before.held):
            break
        why = why_wider(before)
        if not why:
            break
        failures = len(contest.errors)
        try:
            if vain := in_vain(before.search, typed, folder / f"{typed.format}-{kind}-everywhere"):
                told.append(f"{kind} activations were not tried: {vain}")
                contest.job.clock.progress.note(told[-1])
                continue
            contest.job.clock.progress.note(f"{kind} activations are tried as well: {why}")
            contest.carry_out(opened(kind, typed))
            outcome = "they are no better" if contest.first(runtime) is before else "they are better"
            outcome = next((error.cause for error in contest.errors[failures:]), outcome)
        except EdgeqError as error:  # what was found without them stands
            outcome = error.cause
        told.append(f"{kind} activations were tried as well: {why}; {outcome}")
    return told
