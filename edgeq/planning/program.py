"""A planning problem as a mixed-integer program, scaled for HiGHS's tolerances and run until its answer is exact."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import fsum, inf, isfinite
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.planning.choices import Boundary, Costs, Problem, cost_of, crossed, measures, over, touched

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


class Program(NamedTuple):
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


class Found(NamedTuple):
    state: _State
    choices: dict[str, str] | None = None
    bound: float = -inf
    unseen: float = 0.0
    """The difference in cost that HiGHS's absolute tolerances hide."""


def build(problem: Problem) -> Program:
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
    for measure in measures(problem):
        values, least = np.zeros(size), [problem.fixed.get(measure, 0.0)]
        for group, offered in problem.options.items():
            least.append(min(c.get(measure, 0.0) for c in offered.values()))
            for choice, paid in offered.items():
                values[columns[group, choice]] = paid.get(measure, 0.0) - least[-1]
        values[len(columns) : -1] = [b.costs.get(measure, 0.0) for b in problem.boundaries]
        costs[measure], base[measure] = values, fsum(least)
    return Program(problem, columns, costs, base, matrix(equal), matrix(below))


def search(program: Program, minimize: str, limits: Costs, gap: float, seconds: float) -> Found:
    """Runs HiGHS, nearly always once, until what it returns is true of `cost_of`.

    If all it finds exceeds a limit by less than its tolerance, the answer is `infeasible` with that plan.
    """
    until = time.perf_counter() + seconds
    allowed, ceiling, best = dict(limits), inf, Found("time limit", bound=program.base.get(minimize, 0.0))
    beyond: dict[str, str] | None = None
    while True:
        found = _run(program, minimize, allowed, ceiling, gap, until - time.perf_counter())
        if beyond is None and found.state != "infeasible":
            best = best._replace(bound=max(best.bound, found.bound))
        if found.choices is None:
            if best.choices or found.state == "time limit":
                return best
            return Found("infeasible", beyond, best.bound)
        costs = cost_of(program.problem, found.choices)
        excess = over(costs, limits)
        if excess and beyond is not None:
            return Found("infeasible", beyond, best.bound)
        if excess:  # once more, with the limits lower by more than HiGHS's tolerance
            beyond = found.choices
            for measure, more in excess.items():
                room = max(limits[measure] - program.base.get(measure, 0.0), 0.0)
                allowed[measure] -= more + 2 * _TOLERANCE / _ROW * room + _ROUNDING * abs(limits[measure])
            continue
        value, best = costs.get(minimize, 0.0), found._replace(bound=best.bound)
        near_enough = relative_gap(value, best.bound) <= gap or found.unseen <= gap * abs(value) / 10
        if found.state != "optimal" or near_enough or value >= ceiling:
            return best
        ceiling = value  # what is left is too small for HiGHS to see: leave out all that costs more, scale up the rest


def relaxed(program: Program, minimize: str, limits: Costs, seconds: float) -> float:
    """What no plan within the limits has less of, by the program without integers, in a fraction of a search's time;
    infinite if there is no such plan."""
    return _run(program, minimize, limits, inf, 0.0, seconds, relax=True).bound


def _run(
    program: Program,
    minimize: str,
    limits: Costs,
    ceiling: float,
    gap: float,
    seconds: float,
    relax: bool = False,
) -> Found:
    """One search in a scaled program without what alone breaks a limit or costs more than the ceiling.

    Args:
        relax: choices may be split; the bound is then all that is to be read.
    """
    from scipy.sparse import csr_array, vstack

    problem, columns, costs, base, equal, below = program
    upper = np.ones(below[0].shape[1])
    nothing = np.zeros(len(upper))
    room = {m: limit - base.get(m, 0.0) for m, limit in limits.items() if isfinite(limit)}
    for measure, left in (*room.items(), (minimize, ceiling - base.get(minimize, 0.0))):
        rounding = _ROUNDING * (abs(left) + 2 * abs(base.get(measure, 0.0)))
        if left < -rounding:
            return Found("infeasible", bound=inf)
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

    scaled = _Scaled(objective * scale, upper, equal, (rows, most), 0 if relax else len(columns))
    state, values, proved = _highs(program, scaled, gap * 0.98, seconds)
    unseen = (_TOLERANCE + _PRICE_TOLERANCE * len(upper)) / scale
    bound = proved / scale - share - unseen
    if values is None:
        return Found(state, None, bound)
    picked = {g: max(offered, key=lambda c: values[columns[g, c]]) for g, offered in problem.options.items()}
    return Found(state, picked, bound, unseen)


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


def _highs(program: Program, scaled: _Scaled, gap: float, seconds: float) -> _Answer:
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


def _regrets(program: Program, relaxed: NDArray[np.float64], prices: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each choice, what it would add to the rounded relaxation if all other groups stayed as they are."""
    problem, columns = program.problem, program.columns
    now = {g: max(offered, key=lambda c: relaxed[columns[g, c]]) for g, offered in problem.options.items()}
    near: dict[str, list[tuple[int, Boundary]]] = {g: [] for g in problem.options}
    for place, boundary in enumerate(problem.boundaries, start=len(columns)):
        for group in touched(boundary):
            near[group].append((place, boundary))
    regrets = np.zeros(len(columns))
    for group, offered in problem.options.items():
        kept = now[group]
        for choice in offered:
            now[group] = choice
            paid = [prices[place] for place, boundary in near[group] if crossed(boundary, now)]
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
    with muted():
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
    proved = result.mip_dual_bound
    if proved is None or not scaled.whole:
        proved = result.fun if result.status == 0 and not scaled.whole else -inf
    return _Answer("optimal" if result.status == 0 else "time limit", result.x, proved)


@contextmanager
def muted() -> Iterator[None]:
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


def relative_gap(value: float, bound: float) -> float:
    return (value - bound) / abs(value) if value > bound else 0.0
