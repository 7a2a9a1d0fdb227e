"""A planning problem as a mixed-integer program, scaled for HiGHS's tolerances and run until its answer is exact."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import fsum, inf, isfinite
from typing import NamedTuple

import numpy as np

from edgeq.planning.solver.highs import Answer, Rows, State, Vector, dense_rows, minimized, rows, stacked
from edgeq.planning.solver.problem import Boundary, Costs, Problem, cost_of, crossed, measures, over, touched

# The program. A column for every choice of every group, one for every boundary, and a last one that is always 1 and
# carries what every plan costs, so that HiGHS measures its gap against whole costs.

_ROW = 1e3
"""What the room within a limit is scaled to: HiGHS's tolerance is then a billionth of it."""
_OBJECTIVE = 1e4
"""What the dearest choice that can still be taken is scaled to in the objective."""
_TOLERANCE = 1e-6
"""HiGHS's absolute tolerance of rows and of the gap."""
_PRICE_TOLERANCE = 1e-7
"""By how much HiGHS may misjudge the price of each column, and so its bound."""
_ROUNDING = 1e-12
"""Relative differences below this are those of floating point sums."""
_LARGE = 100
"""With more columns than this, a part of the program is solved first."""


class Program(NamedTuple):
    problem: Problem
    columns: dict[tuple[str, str], int]
    costs: dict[str, Vector]
    """By measure, for each column: what it costs beyond the cheapest choice of its group; never negative."""
    base: dict[str, float]
    """By measure, what the cheapest choices and nothing else cost."""
    rows: Rows
    """What every plan keeps, whatever the limits."""


class Found(NamedTuple):
    state: State
    choices: dict[str, str] | None = None
    bound: float = -inf
    unseen: float = 0.0
    """The difference in cost that HiGHS's absolute tolerances hide."""


def build(problem: Problem) -> Program:
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

    entries, limits = [row for row, _ in (*equal, *below)], [limit for _, limit in (*equal, *below)]
    kept = rows(entries, [*limits[: len(equal)], *[-inf] * len(below)], limits)
    costs: dict[str, Vector] = {}
    base: dict[str, float] = {}
    for measure in measures(problem):
        values, least = np.zeros(size), [problem.fixed.get(measure, 0.0)]
        for group, offered in problem.options.items():
            least.append(min(c.get(measure, 0.0) for c in offered.values()))
            for choice, paid in offered.items():
                values[columns[group, choice]] = paid.get(measure, 0.0) - least[-1]
        values[len(columns) : -1] = [b.costs.get(measure, 0.0) for b in problem.boundaries]
        costs[measure], base[measure] = values, fsum(least)
    return Program(problem, columns, costs, base, kept)


def search(
    program: Program,
    minimize: str,
    limits: Costs,
    gap: float,
    seconds: float,
    start: Mapping[str, str] | None = None,
) -> Found:
    """Runs HiGHS, nearly always once, until what it returns is true of `cost_of`.

    If all it finds exceeds a limit by less than its tolerance, the answer is `infeasible` with that plan.

    Args:
        start: a plan within the limits, to begin with.
    """
    until = time.perf_counter() + seconds
    allowed, ceiling, best = dict(limits), inf, Found("time limit", bound=program.base.get(minimize, 0.0))
    beyond: dict[str, str] | None = None
    while True:
        found = _run(program, minimize, allowed, ceiling, gap, until - time.perf_counter(), start)
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
    start: Mapping[str, str] | None = None,
    relax: bool = False,
) -> Found:
    """One search in a scaled program without what alone breaks a limit or costs more than the ceiling.

    Args:
        start: a plan to begin with, if it is one of that program.
        relax: choices may be split; the bound is then all that is to be read.
    """
    problem, columns, costs, base, kept = program
    upper = np.ones(len(columns) + len(problem.boundaries) + 1)
    nothing = np.zeros(len(upper))
    room = {m: limit - base.get(m, 0.0) for m, limit in limits.items() if isfinite(limit)}
    for measure, left in (*room.items(), (minimize, ceiling - base.get(minimize, 0.0))):
        rounding = _ROUNDING * (abs(left) + 2 * abs(base.get(measure, 0.0)))
        if left < -rounding:
            return Found("infeasible", bound=inf)
        upper[costs.get(measure, nothing) > left + rounding] = 0.0  # no huge coefficient may hide behind a tolerance
    possible = {m: values * upper for m, values in costs.items()}
    tight = [m for m, left in room.items() if left > 0.0 and m in costs]
    limited = [possible[m] * (_ROW / room[m]) for m in tight]

    least = base.get(minimize, 0.0)
    objective = possible.get(minimize, nothing).copy()
    dearest = max(float(objective.max()), abs(least) * 1e-9)
    scale = _OBJECTIVE / dearest if dearest > 0.0 else 1.0
    weights = {m: (1.0 if m == "loss" else 0.01) for m in costs if m != minimize and possible[m].any()}
    share = abs(least) * gap / 100  # what all other measures together can add at most
    for measure, weight in weights.items():
        objective += possible[measure] * (share * weight / sum(weights.values()) / possible[measure].sum())
    objective[-1] = least

    begun = None if start is None else _columns_of(program, start)
    if begun is not None and ((begun > upper).any() or any(float(row @ begun) > _ROW for row in limited)):
        begun = None
    scaled = _Scaled(objective * scale, upper, kept, limited, 0 if relax else len(columns), begun)
    answer = _highs(program, scaled, gap * 0.98, seconds)
    unseen = (_TOLERANCE + _PRICE_TOLERANCE * len(upper)) / scale
    bound, values = answer.proved / scale - share - unseen, answer.values
    if values is None:
        return Found(answer.state, None, bound)
    picked = {g: max(offered, key=lambda c: values[columns[g, c]]) for g, offered in problem.options.items()}
    return Found(answer.state, picked, bound, unseen)


def _columns_of(program: Program, choices: Mapping[str, str]) -> Vector:
    values = np.zeros(len(program.columns) + len(program.problem.boundaries) + 1)
    values[[program.columns[group, choice] for group, choice in choices.items()]] = 1.0
    values[len(program.columns) : -1] = [crossed(boundary, choices) for boundary in program.problem.boundaries]
    values[-1] = 1.0
    return values


class _Scaled(NamedTuple):
    """Minimize `objective` over columns from 0 to `upper`, the last fixed at 1, the first `whole` of them integers.

    Attributes:
        kept: rows of needs, ties and boundaries.
        limited: for each limit, what every column uses of the `_ROW` that all of them may use together.
        start: columns to begin with.
    """

    objective: Vector
    upper: Vector
    kept: Rows
    limited: list[Vector]
    whole: int
    start: Vector | None = None


def _highs(program: Program, scaled: _Scaled, gap: float, seconds: float) -> Answer:
    """Solves a program, a large one in two steps.

    A plan to begin with may be near enough to the relaxation already. That, without integers, is fast, and splits no
    more than a few groups between choices. So at first only those choices are open beside its own that would cost least
    more; that plan is often good enough. If not, then what lies between its cost and the relaxation's shuts out every
    choice that costs the relaxation more than that, and the search of the rest begins with it.
    """
    if (scaled.whole <= _LARGE and scaled.start is None) or seconds <= 0.0:
        return _integers(scaled, gap, seconds)
    until = time.perf_counter() + seconds
    relaxed = _integers(scaled._replace(whole=0), gap, seconds)
    if relaxed.state == "infeasible":
        return relaxed
    if relaxed.values is None or relaxed.row_prices is None or relaxed.column_prices is None:
        return _integers(scaled, gap, until - time.perf_counter())
    if scaled.start is not None:
        begun = float(scaled.objective @ scaled.start)
        if begun - relaxed.proved <= gap * abs(begun):
            return relaxed._replace(values=scaled.start)
    if scaled.whole <= _LARGE:
        return _integers(scaled, gap, until - time.perf_counter())
    prices = scaled.objective.copy()
    for price, row in zip(relaxed.row_prices[len(scaled.kept) :], scaled.limited, strict=True):
        prices -= price * row
    regret = _regrets(program, relaxed.values, prices)
    regret[scaled.upper[: scaled.whole] == 0.0] = inf
    regret[relaxed.values[: scaled.whole] > _TOLERANCE] = -inf
    groups = len(program.problem.options)
    narrow, wide = scaled.upper.copy(), scaled.upper.copy()
    narrow[np.argsort(regret, kind="stable")[groups + 2 * groups // 5 :]] = 0.0
    if scaled.start is not None:
        narrow = np.maximum(narrow, scaled.start)
    part = _integers(scaled._replace(upper=narrow), gap / 2, until - time.perf_counter())
    if part.values is None:
        whole = _integers(scaled, gap, until - time.perf_counter())
        return whole._replace(proved=max(whole.proved, relaxed.proved))
    cost = float(scaled.objective @ part.values)
    between = cost - relaxed.proved
    if between <= gap * abs(cost):
        return part._replace(state="optimal", proved=relaxed.proved)
    useless = relaxed.column_prices[: scaled.whole] > between * (1 + _TOLERANCE) + _TOLERANCE
    wide[: scaled.whole][useless] = 0.0
    whole = _integers(scaled._replace(upper=wide, start=part.values), gap, until - time.perf_counter())
    proved = max(min(whole.proved, cost), relaxed.proved)
    better = whole.values is not None and float(scaled.objective @ whole.values) <= cost
    state: State = "time limit" if whole.state == "time limit" else "optimal"
    return Answer(state, whole.values if better else part.values, proved)


def _regrets(program: Program, relaxed: Vector, prices: Vector) -> Vector:
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


def _integers(scaled: _Scaled, gap: float, seconds: float) -> Answer:
    lower = np.zeros(len(scaled.upper))
    lower[-1] = 1.0
    within = stacked(scaled.kept, dense_rows(scaled.limited, _ROW))
    start = scaled.start if scaled.whole else None
    return minimized(
        scaled.objective, lower, scaled.upper, within, integers=scaled.whole, gap=gap, seconds=seconds, start=start
    )


def relative_gap(value: float, bound: float) -> float:
    return (value - bound) / abs(value) if value > bound else 0.0
