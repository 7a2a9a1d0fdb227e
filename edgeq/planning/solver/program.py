"""A planning problem as a mixed-integer program, scaled for HiGHS's tolerances and run until its answer is exact."""

from __future__ import annotations

import time
from collections.abc import Iterable
from math import fsum, inf, isfinite
from typing import NamedTuple

import numpy as np

from edgeq.planning.solver.highs import Rows, State, Vector, dense_rows, minimized, rows, stacked
from edgeq.planning.solver.problem import Costs, Problem, cost_of, measures, over

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
    below: list[tuple[dict[int, float], float]] = []

    def taken(group: str | None, choices: Iterable[str]) -> list[int]:
        return [columns[group, c] for c in sorted(choices) if (group, c) in columns] if group is not None else []

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

    one_each = [dict.fromkeys(taken(group, offered), 1.0) for group, offered in problem.options.items()]
    lows, highs = [1.0] * len(one_each) + [-inf] * len(below), [1.0] * len(one_each) + [most for _, most in below]
    kept = rows([*one_each, *(row for row, _ in below)], lows, highs)
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


def search(program: Program, minimize: str, limits: Costs, gap: float, seconds: float) -> Found:
    """Runs HiGHS, nearly always once, until what it returns is true of `cost_of`.

    If all it finds exceeds a limit by less than its tolerance, the answer is `infeasible`.
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


def _run(program: Program, minimize: str, limits: Costs, ceiling: float, gap: float, seconds: float) -> Found:
    """One search in a scaled program without what alone breaks a limit or costs more than the ceiling."""
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

    lower = np.zeros(len(upper))
    lower[-1] = 1.0
    within, integers = stacked(kept, dense_rows(limited, _ROW)), max(1, len(columns))
    answer = minimized(objective * scale, lower, upper, within, integers=integers, gap=gap * 0.98, seconds=seconds)
    unseen = (_TOLERANCE + _PRICE_TOLERANCE * len(upper)) / scale
    bound, values = answer.proved / scale - share - unseen, answer.values
    if values is None:
        return Found(answer.state, None, bound)
    picked = {g: max(offered, key=lambda c: values[columns[g, c]]) for g, offered in problem.options.items()}
    return Found(answer.state, picked, bound, unseen)


def relative_gap(value: float, bound: float) -> float:
    return (value - bound) / abs(value) if value > bound else 0.0
