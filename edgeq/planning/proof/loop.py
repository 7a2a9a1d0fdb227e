"""The loop: solve, build, measure, and solve again with what was learned, until the limits hold.

Every runtime, in every precision of what stays in float, takes part alike: what is proved next is the plan of all of
them that is predicted to be best. The preferred kernels everywhere and float everywhere are two plans like any other.
What is predicted to be behind a plan that was proved is not built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from edgeq.errors import EdgeqError, GateError
from edgeq.lowering.assign import FLOAT
from edgeq.planning.proof.allowed import allowed_loss
from edgeq.planning.proof.outcome import LOSES_LEAST, Outcome, Rank, rank
from edgeq.planning.proof.proving import judge, loses_too_much, prove, size_of
from edgeq.planning.proof.search import NEAR, SAME, Search, cheapest, float_seconds
from edgeq.planning.solver.solve import Infeasible, Solution, check, cost_of, solve
from edgeq.plans.plan import Attempt, Proof
from edgeq.prepare import Job
from edgeq.records.wording import times_text
from edgeq.registry.schema import Runtime

ATTEMPTS = 5
"""Plans of one search that are solved for and proved."""

BETTER = 0.93
"""How many times what the best plan measured, of what is minimized, another must be predicted to have at most to be
built as well. To prove a latency takes as long as all the rest, and predictions are off by 4 %."""

MADE_UP_FOR = 2.0
"""How many times what a plan lost it must have been predicted to lose for others to be tried that may lose more:
predictions are off by less where weights are rounded to nearest."""

TIGHTER = 0.5
"""What is left of the loss that was spent after a plan that missed the drop."""

EASED = ("size", "loss", "latency")
"""Limits in the order in which they are kept, where not all of them can be: what does not fit a device is of no use
there, and what is wrong is of none for being fast."""

KNOWN_TO_HOLD = "it is predicted to lose more than it may, and was measured to hold the drop"


class Hope(NamedTuple):
    """A plan that may be proved next, in the order in which plans are.

    Attributes:
        beyond: by how much it is predicted to be over the limits on size, loss and latency, as shares of them.
        value: what it would be ranked by.
        usual: its name, if it is one of the plans that anyone would try first; empty for one that is solved for.
    """

    beyond: tuple[float, float, float]
    value: float
    number: int
    usual: str


@dataclass
class Line:
    """One search on its way.

    Attributes:
        caps: by measure, the most that the next plan may be predicted to cost.
        solution: that plan; None if nothing is left to solve for.
        eased: the limits that no plan is predicted to hold beside those before them.
        attempts: what was solved for and proved.
        usual: what anyone would try first, by what it is timed as (see `Proof.latency_of`), until it is tried.
    """

    search: Search
    caps: dict[str, float]
    most: Mapping[str, float]
    usual: dict[str, dict[str, str]]
    solution: Solution | None = None
    eased: set[str] = field(default_factory=set)
    attempts: list[Attempt] = field(default_factory=list)


@dataclass
class Book:
    """What was found so far for one job.

    Attributes:
        allowed: the loss that a plan may be predicted at; None where no drop is limited.
        beside: by runtime, what makes latencies comparable (see `edgeq.planning.proof.best`).
        found: every plan that was proved; where nothing can be run, counted.
        passed: why nothing, or nothing more, was built for a search.
        errors: of searches that found nothing.
    """

    job: Job
    allowed: float | None = None
    beside: Mapping[str, float | None] = field(default_factory=dict)
    found: list[Outcome] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    errors: list[EdgeqError] = field(default_factory=list)

    def best(self, runtime: str | None = None) -> Outcome | None:
        """The best plan so far, of one runtime or of all."""
        some = [one for one in self.found if runtime in (None, one.search.runtime.name)]
        return min(some, key=self.rank, default=None)

    def rank(self, one: Outcome) -> Rank:
        return rank(one, self.beside_of(one.search))

    def beside_of(self, search: Search) -> float | None:
        return self.beside.get(search.runtime.name, 1.0)

    def failed(self, runtime: Runtime, error: EdgeqError) -> None:
        """What was found before stands, and another search may find something.

        Raises:
            EdgeqError: none will: it is not that limits are too tight, and this is the only runtime.
        """
        if len(self.job.runtimes) == 1 and not self.found and not isinstance(error, GateError):
            raise error
        self.job.clock.progress.note(f"{runtime.format}: {error.cause}")
        self.errors.append(error)


def find(search: Search) -> Outcome:
    """The best plan of one search.

    Raises:
        GateError: no plan can hold the limits by prediction; nothing was built.
        UsageError: a drop cannot be judged by these outputs.
    """
    book = Book(search.job, allowed_loss(search.job, [search]))
    look(book, [search])
    best = book.best()
    if best is None:
        raise book.errors[0]
    return best


def look(book: Book, searches: Iterable[Search]) -> None:
    """Adds plans of some searches to what was found."""
    lines: dict[int, Line] = {}
    for number, search in enumerate(searches):
        try:
            lines[number] = _line(search, book.allowed)
        except EdgeqError as error:
            book.failed(search.runtime, error)
    while lines:
        hopes = [hope for number, line in lines.items() for hope in _hopes(number, line, book.beside_of(line.search))]
        why = {hope: _hopeless(book, lines[hope.number], hope) for hope in sorted(hopes)}
        hope = next((one for one, text in why.items() if not text), None)
        if hope is None:
            for number, text in {one.number: text for one, text in reversed(why.items())}.items():
                if not (search := lines[number].search).proofs:
                    book.passed.append(f"{search.runtime.format}, {search.precision}: not built, {text}")
                    book.job.clock.progress.note(book.passed[-1])
            break
        line = lines[hope.number]
        try:
            _prove(book, line, hope)
        except EdgeqError as error:
            del lines[hope.number]
            book.failed(line.search.runtime, error)
    _complete(book)


def _line(search: Search, allowed: float | None) -> Line:
    """A search at its beginning, with its first plan.

    Raises:
        Infeasible: there is none.
    """
    limits, preferred = search.job.limits, search.usual
    if allowed is None:
        allowed = cost_of(search.problem, preferred)["loss"]
        told = "no largest drop was given: no more may be lost than the preferred kernels everywhere would lose"
        search.notes.append(told)
    caps = {"loss": allowed}
    if limits.max_latency is not None and search.costs.latency_from is not None:
        caps["latency"] = limits.max_latency
    if limits.max_size is not None:
        caps["size"] = float(limits.max_size)
    late = inf if search.costs.latency_from == "measured" else caps.get("latency", inf)  # no clock would tell
    able = search.job.device is not None  # to run them, which is how they are tried
    usual = {
        name: one
        for name, one in (("preferred", preferred), (search.precision, dict.fromkeys(preferred, FLOAT)))
        if able and not check(search.problem, one) and cost_of(search.problem, one).get("latency", 0.0) <= late
    }
    line = Line(search, caps, dict(caps), usual)
    _solve(line)
    return line


def _hopes(number: int, line: Line, beside: float | None) -> Iterator[Hope]:
    search = line.search
    if (found := line.solution) is not None:
        yield Hope(_beyond(line, found.costs), _value(search, found.costs, beside), number, "")
    for name, choices in line.usual.items():
        if search.name(choices) not in search.proofs:
            costs = cost_of(search.problem, choices)
            beyond = _beyond(line, {m: cost for m, cost in costs.items() if m != "loss"})  # that, only running it tells
            yield Hope(beyond, _value(search, costs, beside), number, name)


def _beyond(line: Line, costs: Mapping[str, float]) -> tuple[float, float, float]:
    size, loss, latency = (max(0.0, costs.get(m, 0.0) / cap - 1) if (cap := line.most.get(m)) else 0.0 for m in EASED)
    return size, loss, latency


def _value(search: Search, costs: Mapping[str, float], beside: float | None) -> float:
    """What a plan is predicted to be ranked by; 0, so that it is tried, where no prediction is like a measurement."""
    if search.minimize == "size":
        return costs["size"]
    unit = float_seconds(search) if search.minimize == "latency" else None
    return 0.0 if unit is None or beside is None else costs["latency"] / unit * beside


def _hopeless(book: Book, line: Line, hope: Hope) -> str:
    """Why a plan is not built, nor any behind it; empty if it is."""
    best = book.best()
    if best is None or best.proof is None:
        return ""
    told, value = f"the plan in {best.search.runtime.format}, {best.search.precision}", book.rank(best)[1]
    if not best.proof.held:
        (too_large, drop_over, too_slow, _), (size, loss, latency) = value, hope.beyond
        further = size > too_large or (not drop_over and (loss, latency) > (0.0, too_slow))
        return f"predicted to be no nearer to the limits than {told}" if further else ""
    if any(hope.beyond):
        return f"no plan is predicted to hold every limit, as {told} does"
    if not hope.value:
        return "" if not hope.usual and not line.attempts else f"{told} holds every limit"
    times, enough, measure = hope.value / value[0], BETTER, best.search.minimize
    if measure == "latency" and best.search is line.search and hope.usual in best.proof.latency_of:
        times, enough = best.proof.latency_of[hope.usual] / (best.proof.latency or inf), 1.0  # in the same turns
    return "" if times < enough else f"predicted at {times_text(times)} the {measure} of {told}, or more"


def _solve(line: Line) -> None:
    """Solves for the next plan; for the one that comes nearest where the limits contradict one another.

    Raises:
        Infeasible: no plan is possible at all, or the limit is on a latency that nobody can measure here: that a plan
            misses it would be no more than a guess.
    """
    search = line.search
    try:
        line.solution = cheapest(search.problem, search.minimize, line.caps)
    except Infeasible as refused:
        caps = _eased(line)
        eased = {measure for measure, cap in caps.items() if cap > line.caps[measure]}
        if "latency" in eased and search.costs.latency_from == "modelled":
            cause = f"{refused.cause} (the latency is modelled, not measured)"
            raise Infeasible(cause, remedy=refused.remedy) from refused
        if not line.eased:
            search.notes.append(f"{refused.cause}: this is the plan that comes nearest; {refused.remedy}")
        line.caps, line.eased = caps, line.eased | eased
        line.solution = cheapest(search.problem, search.minimize, caps)
    if any(one.predicted == line.solution.costs for one in line.attempts):
        line.solution = None


def _eased(line: Line) -> dict[str, float]:
    """The caps on size and latency, each as it is or else the least of any plan that holds those before it (see
    `EASED`). The loss gives way by itself (see `cheapest`)."""
    caps: dict[str, float] = {}
    for measure in EASED:
        if measure in line.caps:
            best = solve(line.search.problem, minimize=measure, limits=caps, gap=NEAR).costs[measure]
            caps[measure] = line.caps[measure] if best <= line.caps[measure] else best * (1 + SAME)
    return {**caps, "loss": line.caps["loss"]}


def _prove(book: Book, line: Line, hope: Hope) -> None:
    """Builds and measures a plan, and learns from what it was. Where nothing can be run, its files are all there is."""
    search, most = line.search, line.search.provable.max_size
    what = f"{hope.usual} kernels everywhere" if hope.usual else f"plan {len(line.attempts) + 1}"
    with search.job.clock.stage(f"search in {search.runtime.name}, {search.precision}: {what}"):
        if hope.usual:
            choices = line.usual.pop(hope.usual)
            _noted(book, line, choices, judge(search, choices), None)
            return
        found, caps, proof = line.solution, line.caps, None
        assert found is not None
        line.solution = None
        if most is not None and "size" not in line.eased and (size := size_of(search, found.choices)) > most:
            line.caps = caps | {"size": _scaled(caps["size"], most, found.costs["size"], size)}  # no proof: it is built
        else:
            if search.job.device is not None:
                proof = search.proofs.get(search.name(found.choices)) or judge(search, found.choices)
            _noted(book, line, found.choices, proof, found)
            line.caps = caps if proof is None else _loosened(line, found, proof) or _tightened(line, found, proof)
        if line.caps != caps and len(line.attempts) < ATTEMPTS:
            _solve(line)


def _noted(book: Book, line: Line, choices: Mapping[str, str], proof: Proof | None, solution: Solution | None) -> None:
    search, preferred, remark = line.search, line.search.usual, ""
    if solution is not None:
        changed = sum(solution.choices[name] != choice for name, choice in preferred.items())
        line.attempts.append(
            Attempt(loss_limit=line.caps["loss"], predicted=solution.costs, changed=changed, proof=proof)
        )
    holds = proof is not None and proof.held
    if cost_of(search.problem, choices)["loss"] > line.most["loss"] * (1 + SAME) and (holds or solution is not None):
        remark = KNOWN_TO_HOLD if holds else LOSES_LEAST
    size = size_of(search, choices) if proof is None else proof.size
    book.found = [one for one in book.found if one.search is not search or one.choices != choices]
    book.found.append(Outcome(search, choices, proof, size, solution, dict(line.caps), line.attempts, remark))


def _tightened(line: Line, found: Solution, proof: Proof) -> dict[str, float]:
    """The caps for the next plan, where one missed the user's limits. The loss that may be predicted shrinks by one
    factor, however far the drop was over: that is mostly chance. It stays where the plan was predicted to lose more,
    for the sake of the other limits."""
    limits, result, seconds = line.search.provable, dict(line.caps), proof.latency
    if seconds is not None and seconds > (limits.max_latency or inf) and "latency" not in line.eased:
        result["latency"] = _scaled(result["latency"], limits.max_latency or inf, found.costs["latency"], seconds)
    if found.costs["loss"] <= result["loss"] and loses_too_much(limits, proof):
        result["loss"] = found.costs["loss"] * TIGHTER
    return result


def _loosened(line: Line, found: Solution, proof: Proof) -> dict[str, float] | None:
    """The caps for the next plan, where one held every limit and lost much less than predicted: methods make up for
    what rounding was predicted to lose, and what loses as much as it may is predicted to lose as many times more."""
    if line.search.provable.max_drop is None or not proof.held or not proof.loss:
        return None
    times = found.costs["loss"] / proof.loss
    return {**line.caps, "loss": line.most["loss"] * times} if times > MADE_UP_FOR else None


def _scaled(cap: float, most: float, predicted: float, measured: float) -> float:
    """The cap on a cost, by how far the table was off."""
    return min(cap, most * predicted / measured) * 0.999


def _complete(book: Book) -> None:
    """Where nothing holds the limits, measures to the end what was given up early, as far as it takes to tell which
    plan comes nearest."""
    while (best := book.best()) is not None and best.proof is not None and not best.held:
        if best.proof.at_least or (best.proof.latency is None and book.job.timed is not None):
            with book.job.clock.stage("what comes nearest to the limits"):
                proof = prove(best.search, best.choices, None if best.proof.at_least else best.proof)
            book.found = [one._replace(proof=proof) if one is best else one for one in book.found]
        else:
            break
