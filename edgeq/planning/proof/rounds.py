"""The rounds of one search: solve, build, measure, and solve again with what was learned, until the limits hold."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from math import inf
from typing import NamedTuple

from edgeq.limits import Limits
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import uniform
from edgeq.planning.proof.allowed import allowed_loss
from edgeq.planning.proof.outcome import LOSES_LEAST, Outcome
from edgeq.planning.proof.proving import answer_preferred, best_proof, complete, held, judge, prove, size_of
from edgeq.planning.proof.search import NEAR, SAME, Search, best_of, bound_of
from edgeq.planning.proof.unproved import without_proof
from edgeq.planning.solver.solve import Infeasible, Problem, Solution, check, cost_of, least, solve
from edgeq.plans.plan import Attempt, Proof
from edgeq.progress import Progress

ATTEMPTS = 5
"""Builds that the search may make after the first solution."""

SHORT = 1.002
"""By how much files are larger than predicted, at most and mostly: a plan that is solved for within less is built
once."""

OFF = 1.05
"""How many times what is predicted latencies are, at most and mostly (see `tools/bench/predicted_latency.py`)."""

TIGHTER = 0.5
"""What is left of the loss that was spent after a round that missed the drop."""

DROP_FIRST = (
    "no plan that may hold the latency was found to hold the drop, which goes first: slower ones were built too"
)
"""A note of plans that are slower than they may be, and were not the first to be tried."""

KNOWN_TO_HOLD = "it is predicted to lose more than it may, and was measured to hold the drop"


class Start(NamedTuple):
    """What the first round is solved under.

    Attributes:
        caps: by measure, the most that a plan may be predicted to cost.
        notes: what a reader of the plan has to know.
    """

    caps: dict[str, float]
    notes: list[str]


class Solved(NamedTuple):
    """A plan by prediction, and by measure the most that it might cost."""

    solution: Solution
    caps: dict[str, float]


def start(search: Search, allowed: float | None) -> Start:
    """What the limits mean for a search.

    Args:
        allowed: from `allowed_loss`.
    """
    job, notes = search.job, list(search.notes)
    if allowed is None:
        allowed = cost_of(search.problem, uniform(search.allowed))["loss"]
        notes.append("no largest drop was given: no more may be lost than the preferred kernels everywhere would lose")
    caps = {"loss": allowed}
    if job.limits.max_latency is not None and search.costs.latency_from is not None:
        caps["latency"] = job.limits.max_latency
    if job.limits.max_size is not None:
        caps["size"] = _spared(search, float(job.limits.max_size), caps)
    return Start(caps, notes)


def _spared(search: Search, most: float, caps: Mapping[str, float]) -> float:
    """The size to solve for: a little less than the largest, unless that is needed to hold the others."""
    smallest = least(search.problem, minimize="size", limits=caps)
    if smallest > most:  # the loss is not held in any case
        smallest = least(search.problem, minimize="size", limits={m: cap for m, cap in caps.items() if m != "loss"})
    return most / SHORT if smallest <= most / SHORT else most


def nearest(search: Search, begun: Start, refused: Infeasible) -> Start:
    """The start of a search for the plan that comes nearest to limits which cannot be held together (see `_eased`).

    Raises:
        Infeasible: `refused`, where no plan is possible at all, or where the limit is on a latency that nobody can
            measure: that a plan misses it would be no more than a guess.
    """
    if not refused.conflict or ("latency" in refused.conflict and search.costs.latency_from == "modelled"):
        raise refused
    told = f"{refused.cause}: this is the plan that comes nearest; {refused.remedy}"
    return Start(_eased(search.problem, begun.caps), [*begun.notes, told])


def _eased(problem: Problem, caps: Mapping[str, float]) -> dict[str, float]:
    """The limits on size and latency, each as it is or else the least of any plan that holds those before it: size,
    since what does not fit a device is of no use there, then loss, then latency."""
    eased: dict[str, float] = {}
    for measure in ("size", "loss", "latency"):
        if measure in caps:
            best = solve(problem, minimize=measure, limits=eased, gap=NEAR).costs[measure]
            eased[measure] = caps[measure] if best <= caps[measure] else best * (1 + SAME)
    return {**eased, "loss": caps["loss"]}


def within_error(search: Search, begun: Start, refused: Infeasible, times: float) -> Start | None:
    """The start of a search for a plan that is predicted to be a little slower than it may be, and may not be; None
    where the limits are further from what is predicted than that.

    Args:
        times: how many times the latency that is allowed may be predicted.
    """
    if "latency" not in refused.conflict or search.costs.latency_from != "measured":
        return None
    caps = nearest(search, begun, refused).caps
    if caps["latency"] > begun.caps["latency"] * times or caps.get("size") != begun.caps.get("size"):
        return None
    return Start(caps, [*begun.notes, f"{refused.cause}; predictions are off by as much, and the clock decides"])


Rounds = Generator[dict[str, float] | None, None, Outcome]
"""A search, step by step: yields what the plan that it would solve for or build next is predicted to cost, at best, or
None where no further one may hold every limit, and it could only find out what comes nearest. Whoever sees no use in
that stops asking."""


def rounds(search: Search, begun: Start) -> Rounds:
    """The best plan of one search, proved where that can be done; where a limit cannot be held, the best of those that
    were built.

    Raises:
        Infeasible: no plan can hold the limits by prediction; nothing was built.
    """
    caps, notes = begun
    if search.where is None:
        return without_proof(search, caps, notes, ATTEMPTS)
    made: list[Solved] = []
    caps = yield from _attempts(search, caps, made, search.provable)
    yield from _usual(search, made, search.provable)
    as_fast, anyhow = len(made), replace(search.provable, max_latency=None)
    if not held(anyhow, best_proof(search)[1]):
        yield None
        if anyhow != search.provable:  # no turn for others: they have nothing better
            for _ in chain(_attempts(search, caps, made, anyhow), _usual(search, made, anyhow)):
                pass
        with _stage(search, "what comes nearest to the limits"):
            complete(search)
            prove(search, best_proof(search)[0])
    choices, proof = best_proof(search)
    proof = prove(search, choices)
    (solution, caps), preferred = made[-1], uniform(search.allowed)
    attempts = [_attempt(search, preferred, *one) for one in made]
    solved = solution if choices == solution.choices else None
    if solved is None:
        notes = [*notes, "the plan that was solved for measured worse than this one"]
    elif solved.costs["loss"] > begun.caps["loss"]:
        notes = [*notes, KNOWN_TO_HOLD if solved.choices == search.holding else LOSES_LEAST]
    if len(made) > as_fast and not proof.held:
        notes = [*notes, DROP_FIRST]
    return Outcome(search, choices, proof, proof.size, solved, caps, attempts, notes)


def _attempts(
    search: Search, caps: dict[str, float], made: list[Solved], limits: Limits
) -> Generator[dict[str, float], None, dict[str, float]]:
    """Builds and measures plans until one holds the limits, or there is none left that may: adds them to `made`, and
    says under which limits another one would be solved for.

    Args:
        limits: those of `search.provable`, or without that on the latency: then plans are slower than the caps say, if
            they have to be (see `_eased`).
    """
    slower = limits != search.provable
    for left in reversed(range(ATTEMPTS)):
        try:
            if slower:
                caps = _eased(search.problem, caps)
            solution = best_of(search, caps)
        except Infeasible:
            if not made:
                raise
            break
        if _again(made, solution):
            break
        yield solution.costs
        with _stage(search, f"round {len(made) + 1}"):
            fitting = _small_enough(search, solution, caps)
            if _again(made, fitting.solution):
                break
            proof = judge(search, fitting.solution.choices)
        made.append(fitting)
        if held(limits, proof):
            break
        caps = _tightened(fitting.caps, fitting.solution, proof, limits)
        bound = bound_of(search, caps)
        if bound < inf and left:  # whoever has something better is spared the solver
            yield {search.minimize: bound}
    return caps


def _usual(search: Search, made: Sequence[Solved], limits: Limits) -> Generator[dict[str, float], None, None]:
    """Judges the two plans that anyone would try first, if they may be better: what is measured decides."""
    preferred = uniform(search.allowed)
    for name, other in (("preferred kernels", dict(preferred)), ("float", dict.fromkeys(preferred, FLOAT))):
        if _may_be_better(search, made[-1].solution.choices, other, limits):
            if not best_proof(search)[1].held:
                yield cost_of(search.problem, other)
            with _stage(search, f"{name} everywhere"):
                judge(search, other)


def find(search: Search, begun: Start | None = None) -> Outcome:
    """All rounds of one search.

    Args:
        begun: its start, if that was made already.

    Raises:
        GateError: no plan can hold the limits by prediction; nothing was built.
        UsageError: a drop cannot be judged by these outputs.
    """
    if begun is None:
        answer_preferred(search)
        begun = start(search, allowed_loss(search.job, [search]))
    going = rounds(search, begun)
    while True:
        try:
            next(going)
        except StopIteration as ended:
            outcome: Outcome = ended.value
            return outcome


def _stage(search: Search, what: str) -> AbstractContextManager[Progress]:
    return search.job.clock.stage(f"search in {search.runtime.name}, {search.precision}: {what}")


def _again(made: Sequence[Solved], found: Solution) -> bool:
    return any(found.choices == earlier.solution.choices for earlier in made)


def _attempt(search: Search, preferred: Mapping[str, str], solution: Solution, caps: Mapping[str, float]) -> Attempt:
    changed = sum(solution.choices[name] != choice for name, choice in preferred.items())
    proof = search.proofs[search.name(solution.choices)]
    return Attempt(loss_limit=caps["loss"], predicted=solution.costs, changed=changed, proof=proof)


def _small_enough(search: Search, found: Solution, caps: dict[str, float]) -> Solved:
    """A plan whose file is no larger than it may be: where the prediction was a little short, it is solved for again,
    since a build is cheap beside a proof."""
    most = search.provable.max_size
    for _ in range(ATTEMPTS):
        if most is None or (size := size_of(search, found.choices)) <= most:
            break
        caps = {**caps, "size": min(caps["size"], most * found.costs["size"] / size) * 0.999}
        try:
            found = best_of(search, caps)
        except Infeasible:
            break
    return Solved(found, caps)


def _tightened(caps: Mapping[str, float], found: Solution, proof: Proof, limits: Limits) -> dict[str, float]:
    """The limits for the next round, where a build missed the user's. A cost is scaled by how far the table was off.
    The loss that may be predicted shrinks by one factor, however far the drop was over: that is mostly chance. It stays
    where the plan was predicted to lose more, for the sake of the other limits."""
    result = dict(caps)
    for measure, measured, most in (
        ("size", proof.size, limits.max_size),
        ("latency", proof.latency, limits.max_latency),
    ):
        if measure in result and measured is not None and most is not None and measured > most:
            result[measure] = min(result[measure], most * found.costs[measure] / measured) * 0.999
    if found.costs["loss"] <= result["loss"] and not held(replace(limits, max_latency=None, max_size=None), proof):
        result["loss"] = found.costs["loss"] * TIGHTER
    return result


def _may_be_better(search: Search, choices: Mapping[str, str], other: Mapping[str, str], limits: Limits) -> bool:
    """Whether a plan has to be proved as well: it is not too large, or no larger than the best plan so far, and took
    less time beside that, or is not too slow where that loses too much."""
    if dict(choices) == dict(other) or check(search.problem, other):
        return False
    proof = best_proof(search)[1]
    made, costs = search.made.get(search.name(other)), cost_of(search.problem, other)
    size = made.size if made is not None else costs["size"]
    if limits.max_size is not None and size > max(limits.max_size, 0 if proof.held else proof.size):
        return False
    latency, modelled = costs.get("latency", 0.0), search.costs.latency_from == "modelled"
    if modelled and latency > (search.job.limits.max_latency or inf):  # which no clock would say of it
        return False
    if not held(replace(limits, max_latency=None), proof):
        return latency <= OFF * (limits.max_latency or inf)
    if proof.latency is None or (proof.held and search.minimize != "latency"):
        return False
    floats = all(c == FLOAT for c in other.values())
    beside = proof.latency_of.get(search.precision if floats else "preferred")
    return beside is not None and beside < proof.latency
