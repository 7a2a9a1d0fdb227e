"""Picks one choice for every layer group: the cheapest plan within limits, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Literal

from edgeq.errors import GateError
from edgeq.planning.solver.problem import Boundary, Costs, Need, Problem, check, cost_of, over, validate
from edgeq.planning.solver.program import Program, build, relative_gap, search

__all__ = ["Boundary", "Costs", "Infeasible", "Need", "Problem", "Solution", "check", "cost_of", "solve"]

SECONDS = 2.0
"""For the search of a thousand groups or fewer."""

_UNITS = {
    "latency": (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)),
    "size": (("MB", 1e6), ("kB", 1e3), ("B", 1.0)),
}
"""As limits are written on the command line."""


@dataclass(frozen=True)
class Solution:
    """A plan that holds every limit.

    Attributes:
        choices: by group.
        costs: by measure, as `cost_of` gives them.
        bound: no plan within the limits has less of what was minimized; HiGHS's tolerances are allowed for.
        gap: how far the plan may be from the best: (its cost - bound) / its cost.
        method: `optimal` if the search ended by itself, `time limit` if HiGHS had a plan when time was up.
    """

    choices: dict[str, str]
    costs: dict[str, float]
    bound: float
    gap: float
    method: Literal["optimal", "time limit"]


class Infeasible(GateError):
    """No plan holds the limits."""


def solve(
    problem: Problem, *, minimize: str, limits: Costs | None = None, time_limit: float | None = None, gap: float = 1e-4
) -> Solution:
    """The plan with the least of one measure that keeps others within limits, as `cost_of` judges it.

    Among plans of equal cost the one with less loss is preferred, then the one with less of the rest: all other
    measures together weigh at most a hundredth of `gap` in the program. The same problem gives the same plan unless
    time runs out.

    Args:
        limits: by measure, the most that a plan may cost.
        time_limit: seconds for the search; by default two, or two for every thousand groups. What is left after
            that is a matter of parts in a thousand, and the gap says so. Explaining why there is no plan takes up to as
            long for each step.
        gap: how far from the best the plan may be, relative to its cost.

    Raises:
        Infeasible: no plan holds the limits; says how far each can be reached.
        GateError: time ran out before any plan that holds the limits was found.
        ValueError: a group is unknown or has no choices, a cost is not finite, a limit is not a number, or the cost
            of a boundary is negative.
    """
    limits = dict(limits or {})
    if time_limit is None:
        time_limit = SECONDS * max(1.0, len(problem.options) / 1000)
    validate(problem)
    if any(isnan(limit) for limit in limits.values()):
        raise ValueError("a limit is not a number")
    program = build(problem)
    found = search(program, minimize, limits, gap, time_limit)
    if found.state == "infeasible":
        raise _explain(program, limits, gap, time_limit)
    choices = found.choices
    if choices is None or check(problem, choices) or over(cost_of(problem, choices), limits):
        raise GateError(
            f"no plan that holds the limits was found within {time_limit:g} s",
            remedy="give the search more time or loosen a limit",
        )
    costs = cost_of(problem, choices)
    value = costs.get(minimize, 0.0)
    bound = min(found.bound, value)
    left = relative_gap(value, bound)
    method: Literal["optimal", "time limit"] = "optimal" if found.state == "optimal" or left <= gap else "time limit"
    return Solution(choices, costs, bound, left, method)


def _explain(program: Program, limits: Costs, gap: float, seconds: float) -> Infeasible:
    """How far each limit can be reached alone; where all can be held so, how far beside the others."""

    def least_of(measure: str, held: Costs) -> float | None:
        found = search(program, measure, held, gap, seconds)
        if found.state == "infeasible":
            return None
        return cost_of(program.problem, found.choices).get(measure, 0.0) if found.choices else found.bound

    alone = {m: value for m in limits if (value := least_of(m, {})) is not None}
    if len(alone) < len(limits) or not limits:
        return Infeasible("no plan is possible: needs contradict one another", remedy="offer the groups more choices")
    listed = ", ".join(f"{m} {_show(m, limits[m])} (least of any plan {_show(m, alone[m])})" for m in limits)
    ways = " and ".join(f"{m} to at least {_show(m, alone[m])}" for m in limits if alone[m] > limits[m])
    if not ways:
        beside = {m: least_of(m, {other: cap for other, cap in limits.items() if other != m}) for m in limits}
        ways = " or ".join(f"{m} to {_show(m, value)}" for m, value in beside.items() if value is not None)
    return Infeasible(f"no plan keeps within the limits: {listed}", remedy=f"raise {ways or 'more than one of them'}")


def _show(measure: str, value: float) -> str:
    """A number rounded up, so that a limit set to what is shown can be held."""
    units = _UNITS.get(measure, (("", 1.0),))
    unit, one = next((u for u in units if value >= u[1]), units[-1])
    text = f"{value / one:.6g}"
    return f"{text if float(text) * one >= value else f'{value / one * (1 + 1e-5):.6g}'} {unit}".rstrip()
