"""Picks one choice for every layer group: the cheapest plan within limits, as a mixed-integer program on HiGHS."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from math import fsum, inf, isfinite, isnan
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import GateError

Costs = Mapping[str, float]
"""By measure: `latency` in seconds, `size` in bytes, `loss`, `energy`, or any other name. An absent measure costs 0."""

_Relation: TypeAlias = "Boundary | Need | frozenset[str]"
_UNITS = {"latency": " s", "size": " bytes"}


@dataclass(frozen=True)
class Boundary:
    """A cost between groups, such as that of dequantizing a tensor: paid once, if the producer's choice is among
    `leaves` and the choice of any reader is among those that `readers` gives for it. An input of the model has None
    as its producer and always leaves. No cost may be negative. Choices that a group does not offer are ignored."""

    producer: str | None
    leaves: frozenset[str]
    readers: Mapping[str, frozenset[str]]
    costs: Costs


@dataclass(frozen=True)
class Need:
    """`group` may take one of `choices` only if at least one of the other groups takes one of the choices beside it."""

    group: str
    choices: frozenset[str]
    any_of: tuple[tuple[str, frozenset[str]], ...]


@dataclass(frozen=True)
class Problem:
    """What there is to choose from.

    Attributes:
        options: by group in the model's order, what each of its choices costs.
        ties: groups that take the same choice: one may take a choice only if all others that offer it take it too.
        fixed: what every plan costs on top.
    """

    options: Mapping[str, Mapping[str, Costs]]
    boundaries: Sequence[Boundary] = ()
    needs: Sequence[Need] = ()
    ties: Sequence[frozenset[str]] = ()
    fixed: Costs = field(default_factory=dict)


@dataclass(frozen=True)
class Solution:
    """A plan that holds every limit.

    Attributes:
        choices: by group.
        costs: by measure, as `cost_of` gives them.
        bound: no plan within the limits has less of what was minimized; HiGHS's tolerances are allowed for.
        gap: how far the plan may be from the best: (its cost - bound) / its cost.
        method: `optimal` if the search ended by itself, `time limit` if HiGHS had a plan when time was up, `greedy`
            if it had none.
    """

    choices: dict[str, str]
    costs: dict[str, float]
    bound: float
    gap: float
    method: Literal["optimal", "time limit", "greedy"]
    seconds: float


class Infeasible(GateError):
    """No plan holds the limits.

    Attributes:
        least: by limited measure, the least that any plan reaches if nothing else is limited.
        conflict: the limits that no plan reaches even alone; if there are none, a set that cannot be held together,
            though it can without any one of them. Empty if needs and ties leave no plan at all.
    """

    def __init__(self, cause: str, remedy: str, least: Costs | None = None, conflict: Sequence[str] = ()) -> None:
        super().__init__(cause, remedy=remedy)
        self.least = dict(least or {})
        self.conflict = tuple(conflict)


def solve(
    problem: Problem, *, minimize: str, limits: Costs | None = None, time_limit: float = 10.0, gap: float = 1e-4
) -> Solution:
    """The plan with the least of one measure that keeps others within limits, as `cost_of` judges it.

    Among plans of equal cost the one with less loss is preferred, then the one with less of the rest: all other
    measures together weigh at most a hundredth of `gap` in the program, and the plan is changed as long as changing
    one group (with its ties) lowers the loss at the same cost. The same problem gives the same plan unless time
    runs out.

    Args:
        limits: by measure, the most that a plan may cost.
        time_limit: seconds for the search. Explaining why there is no plan takes up to as long for each step.
        gap: how far from the best the plan may be, relative to its cost.

    Raises:
        Infeasible: no plan holds the limits; says how far each can be reached and which contradict one another.
        GateError: time ran out before any plan that holds the limits was found.
        ValueError: a group is unknown or has no choices, a cost is not finite, a limit is not a number, or the cost
            of a boundary is negative.
    """
    begin = time.perf_counter()
    limits = dict(limits or {})
    _validate(problem)
    if any(isnan(limit) for limit in limits.values()):
        raise ValueError("a limit is not a number")
    program = _program(problem)
    found = _search(program, minimize, limits, gap, time_limit)
    if found.state == "infeasible" and found.choices is None:
        raise _explain(program, limits, gap, time_limit)
    start = found.choices or _cheapest(problem, minimize, limits)
    plans = (_improve(problem, start, minimize, limits), start)
    choices = next((p for p in plans if not check(problem, p) and not _over(cost_of(problem, p), limits)), None)
    if choices is None:
        if found.state == "infeasible":
            raise _explain(program, limits, gap, time_limit)
        raise GateError(
            f"no plan that holds the limits was found within {time_limit:g} s",
            remedy="give the search more time or loosen a limit",
        )
    costs = cost_of(problem, choices)
    value = costs.get(minimize, 0.0)
    bound = min(found.bound, value)
    method: Literal["optimal", "time limit", "greedy"] = "greedy"
    if found.state == "optimal" or _gap(value, bound) <= gap:
        method = "optimal"
    elif found.state == "time limit" and found.choices:
        method = "time limit"
    return Solution(choices, costs, bound, _gap(value, bound), method, time.perf_counter() - begin)


def cost_of(problem: Problem, choices: Mapping[str, str]) -> dict[str, float]:
    """What a plan costs, by measure. Adds up without the program, so that it also judges that, and edited plans."""
    paid = [problem.fixed, *(offered[choices[group]] for group, offered in problem.options.items())]
    paid += [b.costs for b in problem.boundaries if _crossed(b, choices)]
    return {m: fsum(costs.get(m, 0.0) for costs in paid) for m in _measures(problem)}


def check(problem: Problem, choices: Mapping[str, str]) -> list[str]:
    """What is wrong with an edited plan, a sentence for each fault; empty if nothing is. Limits are not looked at."""
    faults = [f"there is no group {group}" for group in choices if group not in problem.options]
    for group, offered in problem.options.items():
        if group not in choices:
            faults.append(f"{group} has no choice")
        elif choices[group] not in offered:
            faults.append(f"{group} does not offer {choices[group]}, only {', '.join(offered)}")
    if faults:  # what follows from choices can be told only of complete ones
        return faults
    for need in problem.needs:
        if not _met(need, choices):
            ways = [f"{other} is {' or '.join(sorted(wanted))}" for other, wanted in need.any_of if wanted]
            condition = f"only if {' or '.join(ways)}" if ways else "never"
            faults.append(f"{need.group} can be {choices[need.group]} {condition}")
    for tie in problem.ties:
        if not _tied(problem, tie, choices):
            held = ", ".join(f"{group} is {choices[group]}" for group in sorted(tie))
            faults.append(f"these must take the same choice: {held}")
    return faults


def _validate(problem: Problem) -> None:
    named = {g for item in _relations(problem) for g in _touched(item)}
    unknown = sorted(named - problem.options.keys())
    if unknown:
        raise ValueError(f"there is no group {', '.join(unknown)}")
    empty = [group for group, offered in problem.options.items() if not offered]
    if empty:
        raise ValueError(f"no choices for {', '.join(empty)}")
    if not all(isfinite(cost) for costs in _entries(problem) for cost in costs.values()):
        raise ValueError("a cost is not finite")
    if any(cost < 0 for b in problem.boundaries for cost in b.costs.values()):
        # The program holds a boundary's column from below alone.
        raise ValueError("a boundary has a negative cost: count what it saves as a cost of doing without it")


def _entries(problem: Problem) -> list[Costs]:
    options = (costs for offered in problem.options.values() for costs in offered.values())
    return [problem.fixed, *options, *(b.costs for b in problem.boundaries)]


def _measures(problem: Problem) -> list[str]:
    return list(dict.fromkeys(measure for costs in _entries(problem) for measure in costs))


def _relations(problem: Problem) -> list[_Relation]:
    return [*problem.boundaries, *problem.needs, *problem.ties]


def _touched(item: _Relation) -> set[str]:
    if isinstance(item, Boundary):
        return {*item.readers, *([item.producer] if item.producer is not None else [])}
    return {item.group, *(group for group, _ in item.any_of)} if isinstance(item, Need) else set(item)


def _crossed(boundary: Boundary, choices: Mapping[str, str]) -> bool:
    leaves = boundary.producer is None or choices[boundary.producer] in boundary.leaves
    return leaves and any(choices[reader] in enters for reader, enters in boundary.readers.items())


def _met(need: Need, choices: Mapping[str, str]) -> bool:
    return choices[need.group] not in need.choices or any(choices[g] in wanted for g, wanted in need.any_of)


def _tied(problem: Problem, tie: frozenset[str], choices: Mapping[str, str]) -> bool:
    taken = {choices[group] for group in tie}
    return all(taken.intersection(problem.options[group]) == {choices[group]} for group in tie)


def _over(costs: Costs, limits: Costs) -> dict[str, float]:
    """By measure, how far a limit is exceeded."""
    return {m: costs.get(m, 0.0) - limit for m, limit in limits.items() if costs.get(m, 0.0) > limit}


def _gap(value: float, bound: float) -> float:
    return (value - bound) / abs(value) if value > bound else 0.0


# The program. A column for every choice of every group, one for every boundary, and a last one that is always 1 and
# carries what every plan costs, so that HiGHS measures its gap against whole costs.

_ROW = 1e3
"""What the room within a limit is scaled to: HiGHS's tolerance is then a billionth of it."""
_OBJECTIVE = 1e4
"""What the dearest choice that can still be taken is scaled to in the objective."""
_TOLERANCE = 1e-6
"""HiGHS's absolute tolerance of rows and of the gap, which scipy gives no way to change."""
_PRICE_TOLERANCE = 1e-7
"""By how much HiGHS may misjudge the price of each column, and so its bound."""
_ROUNDING = 1e-12
"""Relative differences below this are those of floating point sums."""
_LARGE = 400
"""With more columns than this, a part of the program is solved first."""

_State = Literal["optimal", "time limit", "infeasible"]


class _Program(NamedTuple):
    problem: Problem
    columns: dict[tuple[str, str], int]
    costs: dict[str, NDArray[np.float64]]
    """By measure, for each column: what it costs beyond the cheapest choice of its group; never negative."""
    base: dict[str, float]
    """By measure, what the cheapest choices and nothing else cost."""
    equal: tuple[Any, NDArray[np.float64]]
    """Sparse rows and what each is equal to."""
    below: tuple[Any, NDArray[np.float64]]
    """Sparse rows and what each is at most."""


class _Found(NamedTuple):
    state: _State
    choices: dict[str, str] | None = None
    bound: float = -inf
    unseen: float = 0.0
    """The difference in cost that HiGHS's absolute tolerances hide."""


def _program(problem: Problem) -> _Program:
    from scipy.sparse import csr_array

    columns = {key: i for i, key in enumerate((g, c) for g, offered in problem.options.items() for c in offered)}
    size = len(columns) + len(problem.boundaries) + 1
    equal: list[tuple[dict[int, float], float]] = []
    below: list[tuple[dict[int, float], float]] = []

    def taken(group: str | None, choices: Iterable[str]) -> list[int]:
        return [columns[group, c] for c in sorted(choices) if (group, c) in columns] if group is not None else []

    for group, offered in problem.options.items():
        equal.append((dict.fromkeys(taken(group, offered), 1.0), 1.0))
    for place, boundary in enumerate(problem.boundaries, start=len(columns)):
        # The column may stay continuous: its cost pushes it down on to these rows, which leave it 0 or 1.
        leaves = taken(boundary.producer, boundary.leaves)
        for reader, enters in boundary.readers.items():
            row = {place: -1.0}
            for column in (*leaves, *taken(reader, enters)):  # a group may read what it writes
                row[column] = row.get(column, 0.0) + 1.0
            below.append((row, 0.0 if boundary.producer is None else 1.0))
    for need in problem.needs:
        row = dict.fromkeys(taken(need.group, need.choices), 1.0)
        for column in {column for other, wanted in need.any_of for column in taken(other, wanted)}:
            row[column] = row.get(column, 0.0) - 1.0
        below.append((row, 0.0))
    for tie in problem.ties:
        for choice in sorted({c for group in tie for c in problem.options[group]}):
            sharing = [column for group in sorted(tie) for column in taken(group, [choice])]
            equal += [({one: 1.0, other: -1.0}, 0.0) for one, other in pairwise(sharing)]

    def matrix(rows: Sequence[tuple[dict[int, float], float]]) -> tuple[Any, NDArray[np.float64]]:
        entries = [(i, column, value) for i, (row, _) in enumerate(rows) for column, value in row.items()]
        at, to, values = zip(*entries, strict=True) if entries else ((), (), ())
        return csr_array((values, (at, to)), shape=(len(rows), size)), np.array([limit for _, limit in rows])

    costs: dict[str, NDArray[np.float64]] = {}
    base: dict[str, float] = {}
    for measure in _measures(problem):
        values, least = np.zeros(size), [problem.fixed.get(measure, 0.0)]
        for group, offered in problem.options.items():
            least.append(min(c.get(measure, 0.0) for c in offered.values()))
            for choice, paid in offered.items():
                values[columns[group, choice]] = paid.get(measure, 0.0) - least[-1]
        values[len(columns) : -1] = [b.costs.get(measure, 0.0) for b in problem.boundaries]
        costs[measure], base[measure] = values, fsum(least)
    return _Program(problem, columns, costs, base, matrix(equal), matrix(below))


def _search(program: _Program, minimize: str, limits: Costs, gap: float, seconds: float) -> _Found:
    """Runs HiGHS, nearly always once, until what it returns is true of `cost_of`.

    If all it finds exceeds a limit by less than its tolerance, the answer is `infeasible` with that plan.
    """
    until = time.perf_counter() + seconds
    allowed, ceiling, best = dict(limits), inf, _Found("time limit", bound=program.base.get(minimize, 0.0))
    beyond: dict[str, str] | None = None
    while True:
        found = _run(program, minimize, allowed, ceiling, gap, until - time.perf_counter())
        if beyond is None and found.state != "infeasible":
            best = best._replace(bound=max(best.bound, found.bound))
        if found.choices is None:
            if best.choices or found.state == "time limit":
                return best
            return _Found("infeasible", beyond, best.bound)
        costs = cost_of(program.problem, found.choices)
        over = _over(costs, limits)
        if over and beyond is not None:
            return _Found("infeasible", beyond, best.bound)
        if over:  # once more, with the limits lower by more than HiGHS's tolerance
            beyond = found.choices
            for measure, excess in over.items():
                room = max(limits[measure] - program.base.get(measure, 0.0), 0.0)
                allowed[measure] -= excess + 2 * _TOLERANCE / _ROW * room + _ROUNDING * abs(limits[measure])
            continue
        value, best = costs.get(minimize, 0.0), found._replace(bound=best.bound)
        near_enough = _gap(value, best.bound) <= gap or found.unseen <= gap * abs(value) / 10
        if found.state != "optimal" or near_enough or value >= ceiling:
            return best
        ceiling = value  # what is left is too small for HiGHS to see: leave out all that costs more, scale up the rest


def _run(program: _Program, minimize: str, limits: Costs, ceiling: float, gap: float, seconds: float) -> _Found:
    """One search in a scaled program without what alone breaks a limit or costs more than the ceiling."""
    from scipy.sparse import csr_array, vstack

    problem, columns, costs, base, equal, below = program
    upper = np.ones(below[0].shape[1])
    nothing = np.zeros(len(upper))
    room = {m: limit - base.get(m, 0.0) for m, limit in limits.items() if isfinite(limit)}
    for measure, left in (*room.items(), (minimize, ceiling - base.get(minimize, 0.0))):
        rounding = _ROUNDING * (abs(left) + 2 * abs(base.get(measure, 0.0)))
        if left < -rounding:
            return _Found("infeasible")
        upper[costs.get(measure, nothing) > left + rounding] = 0.0  # no huge coefficient may hide behind a tolerance
    possible = {m: values * upper for m, values in costs.items()}
    tight = [m for m, left in room.items() if left > 0.0 and m in costs]
    rows = vstack([below[0], *(csr_array(possible[m][None] * (_ROW / room[m])) for m in tight)]).tocsr()
    most = np.concatenate([below[1], np.full(len(tight), _ROW)])

    least = base.get(minimize, 0.0)
    objective = possible.get(minimize, nothing).copy()
    dearest = max(float(objective.max()), abs(least) * 1e-9)
    scale = _OBJECTIVE / dearest if dearest > 0.0 else 1.0
    weights = {m: (1.0 if m == "loss" else 0.01) for m in costs if m != minimize and possible[m].any()}
    share = abs(least) * gap / 100  # what all other measures together can add at most
    for measure, weight in weights.items():
        objective += possible[measure] * (share * weight / sum(weights.values()) / possible[measure].sum())
    objective[-1] = least

    scaled = _Scaled(objective * scale, upper, equal, (rows, most), len(columns))
    state, values, proved = _highs(program, scaled, gap * 0.98, seconds)
    unseen = (_TOLERANCE + _PRICE_TOLERANCE * len(upper)) / scale
    bound = proved / scale - share - unseen
    if values is None:
        return _Found(state, None, bound)
    picked = {g: max(offered, key=lambda c: values[columns[g, c]]) for g, offered in problem.options.items()}
    return _Found(state, picked, bound, unseen)


class _Scaled(NamedTuple):
    """Minimize `objective` over columns from 0 to `upper`, the last fixed at 1, the first `whole` of them integers."""

    objective: NDArray[np.float64]
    upper: NDArray[np.float64]
    equal: tuple[Any, NDArray[np.float64]]
    below: tuple[Any, NDArray[np.float64]]
    whole: int


class _Answer(NamedTuple):
    state: _State
    values: NDArray[np.float64] | None
    proved: float


def _highs(program: _Program, scaled: _Scaled, gap: float, seconds: float) -> _Answer:
    """Solves a program, a large one in two steps.

    The relaxation without integers is fast, and splits no more than a few groups between choices. So at first only
    those choices are open beside its own that would cost least more; that plan is often good enough. If not, then
    what lies between its cost and the relaxation's shuts out every choice that costs the relaxation more than that.
    """
    if scaled.whole <= _LARGE or seconds <= 0.0:
        return _integers(scaled, gap, seconds)
    from scipy.optimize import linprog

    until = time.perf_counter() + seconds
    lower = np.zeros(len(scaled.upper))
    lower[-1] = 1.0
    relaxed = linprog(
        scaled.objective,
        *scaled.below,
        *scaled.equal,
        bounds=np.stack([lower, scaled.upper], axis=1),
        method="highs",
        options={"time_limit": seconds},
    )
    if relaxed.status == 2:
        return _Answer("infeasible", None, inf)
    if relaxed.status != 0:
        return _integers(scaled, gap, until - time.perf_counter())
    limits = program.below[0].shape[0]  # the rows from here on
    prices = scaled.objective - relaxed.ineqlin.marginals[limits:] @ scaled.below[0][limits:]
    regret = _regrets(program, relaxed.x, prices)
    regret[scaled.upper[: scaled.whole] == 0.0] = inf
    regret[relaxed.x[: scaled.whole] > _TOLERANCE] = -inf
    groups = len(program.problem.options)
    narrow, wide = scaled.upper.copy(), scaled.upper.copy()
    narrow[np.argsort(regret, kind="stable")[groups + 2 * groups // 5 :]] = 0.0
    part = _integers(scaled._replace(upper=narrow), gap / 2, until - time.perf_counter())
    if part.values is None:
        whole = _integers(scaled, gap, until - time.perf_counter())
        return whole._replace(proved=max(whole.proved, relaxed.fun))
    cost = float(scaled.objective @ part.values)
    between = cost - relaxed.fun
    if between <= gap * abs(cost):
        return part._replace(state="optimal", proved=relaxed.fun)
    useless = relaxed.lower.marginals[: scaled.whole] > between * (1 + _TOLERANCE) + _TOLERANCE
    wide[: scaled.whole][useless] = 0.0
    whole = _integers(scaled._replace(upper=wide), gap, until - time.perf_counter())
    proved = max(min(whole.proved, cost), relaxed.fun)
    better = whole.values is not None and float(scaled.objective @ whole.values) <= cost
    state: _State = "time limit" if whole.state == "time limit" else "optimal"
    return _Answer(state, whole.values if better else part.values, proved)


def _regrets(program: _Program, relaxed: NDArray[np.float64], prices: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each choice, what it would add to the rounded relaxation if all other groups stayed as they are."""
    problem, columns = program.problem, program.columns
    now = {g: max(offered, key=lambda c: relaxed[columns[g, c]]) for g, offered in problem.options.items()}
    near: dict[str, list[tuple[int, Boundary]]] = {g: [] for g in problem.options}
    for place, boundary in enumerate(problem.boundaries, start=len(columns)):
        for group in _touched(boundary):
            near[group].append((place, boundary))
    regrets = np.zeros(len(columns))
    for group, offered in problem.options.items():
        kept = now[group]
        for choice in offered:
            now[group] = choice
            paid = [prices[place] for place, boundary in near[group] if _crossed(boundary, now)]
            regrets[columns[group, choice]] = prices[columns[group, choice]] + sum(paid)
        now[group] = kept
        own = [columns[group, choice] for choice in offered]
        regrets[own] -= regrets[columns[group, kept]]
    return regrets


def _integers(scaled: _Scaled, gap: float, seconds: float) -> _Answer:
    from scipy.optimize import Bounds, LinearConstraint, milp

    if seconds <= 0.0:
        return _Answer("time limit", None, -inf)
    lower = np.zeros(len(scaled.upper))
    lower[-1] = 1.0
    with _muted():
        result = milp(
            scaled.objective,
            integrality=np.arange(len(lower)) < scaled.whole,
            bounds=Bounds(lower, scaled.upper),
            constraints=[
                LinearConstraint(scaled.equal[0], scaled.equal[1], scaled.equal[1]),
                LinearConstraint(scaled.below[0], -inf, scaled.below[1]),
            ],
            options={"time_limit": seconds, "mip_rel_gap": gap},
        )
    if result.x is None and "infeasible" in result.message:
        return _Answer("infeasible", None, inf)
    proved = result.mip_dual_bound if result.mip_dual_bound is not None else -inf
    return _Answer("optimal" if result.status == 0 else "time limit", result.x, proved)


@contextmanager
def _muted() -> Iterator[None]:
    """Keeps a line away that HiGHS 1.12 (in scipy 1.17) still prints for its authors, past Python to descriptor 1.

    What other threads print meanwhile is lost as well.
    """
    if sys.stdout:
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _explain(program: _Program, limits: Costs, gap: float, seconds: float) -> Infeasible:
    """Which limits cannot be held, found by minimizing each alone, then each beside those that contradict it."""

    def least_of(measure: str, held: Costs) -> float | None:
        found = _search(program, measure, held, gap, seconds)
        if found.state == "infeasible":
            return None
        return cost_of(program.problem, found.choices).get(measure, 0.0) if found.choices else found.bound

    least = {m: value for m in limits if (value := least_of(m, {})) is not None}
    if len(least) < len(limits) or not limits:
        return Infeasible("no plan is possible: needs and ties contradict one another", "offer the groups more choices")
    listed = ", ".join(f"{m} {_show(m, limits[m])} (least of any plan {_show(m, least[m])})" for m in limits)
    head = f"no plan keeps within the limits: {listed}"
    beyond = [m for m in limits if least[m] > limits[m]]
    if beyond:
        ways = " and ".join(f"{m} to at least {_show(m, least[m])}" for m in beyond)
        return Infeasible(f"{head}; {' and '.join(beyond)} cannot be held even alone", f"raise {ways}", least, beyond)
    conflict = list(limits)
    for measure in limits:
        rest = {m: limits[m] for m in conflict if m != measure}
        if len(rest) > 1 and least_of(next(iter(rest)), rest) is None:
            conflict.remove(measure)
    eased = {m: least_of(m, {k: v for k, v in limits.items() if k != m}) for m in conflict}
    ways = " or ".join(f"{m} to {_show(m, value)}" for m, value in eased.items() if value is not None)
    cause = f"{head}; {' and '.join(conflict)} cannot be held together, though they can without any one of them"
    return Infeasible(cause, f"raise {ways or 'more than one of them'}", least, conflict)


def _show(measure: str, value: float) -> str:
    """A number rounded up, so that a limit set to what is shown can be held."""
    text = f"{value:.6g}"
    return (text if float(text) >= value else f"{value + 1e-5 * abs(value):.6g}") + _UNITS.get(measure, "")


# The same choices one by one, for when HiGHS has no plan in time, and for what its tolerances leave undone.

_SWEEPS = 50


def _cheapest(problem: Problem, minimize: str, limits: Costs) -> dict[str, str]:
    """For each group the choice that takes least of what is limited; without limits, the most accurate one."""

    def price(costs: Costs) -> tuple[float, float, float]:
        used = sum(costs.get(m, 0.0) / (abs(limit) or 1.0) for m, limit in limits.items())
        return used, costs.get("loss", 0.0), costs.get(minimize, 0.0)

    return {g: min(offered, key=lambda c: price(offered[c])) for g, offered in problem.options.items()}


def _improve(problem: Problem, choices: Mapping[str, str], minimize: str, limits: Costs) -> dict[str, str]:
    """Changes one group at a time, with those tied to it, as long as a change helps; best ratio of gain to price first.

    A change helps if it brings the plan closer to holding limits, needs and ties; or, without harm to those, lowers
    what is minimized; or, at the same cost, the loss; or, at the same loss, the rest.
    """
    now = dict(choices)
    near: dict[str, list[_Relation]] = {g: [] for g in problem.options}
    together = {g: {g} for g in problem.options}
    for item in _relations(problem):
        for group in _touched(item):
            near[group].append(item)
            together[group] |= item if isinstance(item, frozenset) else set()

    def nearby(groups: Iterable[str], taken: Mapping[str, str]) -> tuple[dict[str, float], int]:
        """What these groups and all that touches them cost, and how many needs and ties there are broken."""
        costs: dict[str, float] = {}
        broken = 0
        paid = [problem.options[g][taken[g]] for g in groups]
        for item in {id(item): item for g in groups for item in near[g]}.values():
            if isinstance(item, Boundary):
                paid += [item.costs] * _crossed(item, taken)
            else:
                broken += not (_met(item, taken) if isinstance(item, Need) else _tied(problem, item, taken))
        for measure, cost in (entry for entries in paid for entry in entries.items()):
            costs[measure] = costs.get(measure, 0.0) + cost
        return costs, broken

    def gains_of(move: Mapping[str, str], totals: Costs) -> tuple[list[float], dict[str, float]]:
        """What a move wins, relative to the totals, in order of importance; and by measure what it adds."""
        (old, broken), (new, breaks) = nearby(move, now), nearby(move, {**now, **move})
        added = {m: new.get(m, 0.0) - old.get(m, 0.0) for m in {**old, **new}}
        saved = {m: -cost / (abs(totals[m]) or 1.0) for m, cost in added.items()}
        after = {m: total + added.get(m, 0.0) for m, total in totals.items()}
        closer = broken - breaks + _excess(totals, limits) - _excess(after, limits)
        rest = sum(share for m, share in saved.items() if m not in (minimize, "loss"))
        return [closer, saved.get(minimize, 0.0), saved.get("loss", 0.0), rest], added

    for _ in range(_SWEEPS):
        totals = cost_of(problem, now)
        ranked = []
        for group, offered in problem.options.items():
            for choice in offered:
                move = {g: choice for g in sorted(together[group]) if choice in problem.options[g]}
                gains, added = gains_of(move, totals)
                if _helps(gains):
                    used = sum(added.get(m, 0.0) / (abs(limit) or 1.0) for m, limit in limits.items())
                    gain, price = (gains[0], -gains[1]) if gains[0] > 0.0 else (gains[1], used)
                    ranked.append((gain / (max(price, 0.0) + 1e-9), move))
        for _, move in sorted(ranked, key=lambda entry: -entry[0]):
            gains, added = gains_of(move, totals)
            if _helps(gains):
                now.update(move)
                totals = {m: total + added.get(m, 0.0) for m, total in totals.items()}
        if not ranked:
            break
    return now


def _helps(gains: Sequence[float]) -> bool:
    return gains[0] >= 0.0 and next((gain for gain in gains if abs(gain) > _ROUNDING), 0.0) > 0.0


def _excess(costs: Costs, limits: Costs) -> float:
    return sum(over / (abs(limits[m]) or 1.0) for m, over in _over(costs, limits).items())
