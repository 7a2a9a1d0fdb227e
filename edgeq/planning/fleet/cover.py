"""The fewest candidates that serve every target: a minimum set cover, solved exactly.

Source: the set covering problem, Karp 1972, "Reducibility among Combinatorial Problems", as an integer program; which
candidate serves which target is then a facility location problem with the number of facilities given.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np

from edgeq.planning.solver.highs import Vector, minimized, rows, stacked

_SCALE = 1e4
"""What the largest cost is scaled to: HiGHS ends within an absolute gap of a millionth."""


def cover(serving: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The candidate that serves each target, such that as few candidates as possible serve them all.

    Of covers with equally few, one with the least total cost.

    Args:
        serving: by target, the candidates that can serve it, and what it costs the target to be served by them; 0 or
            more.

    Returns:
        By target, its candidate.

    Raises:
        ValueError: a target has no candidate, or a cost is negative or not finite.
    """
    lacking = sorted(target for target, costs in serving.items() if not costs)
    if lacking:
        raise ValueError(f"nothing serves {', '.join(lacking)}")
    if not all(np.isfinite(cost) and cost >= 0 for costs in serving.values() for cost in costs.values()):
        raise ValueError("a cost is negative or not finite")
    if not serving:
        return {}
    # one column for each candidate that is taken, then one for each way to serve a target
    candidates = list(dict.fromkeys(name for costs in serving.values() for name in costs))
    ways = [(target, name) for target, costs in serving.items() for name in costs]
    taken = np.concatenate([np.ones(len(candidates)), np.zeros(len(ways))])
    costs = np.array([serving[target][name] for target, name in ways])
    costs = np.concatenate([np.zeros(len(candidates)), costs * (_SCALE / max(costs.max(), 1e-300))])
    fewest = round(float(taken @ _solve(taken, serving, candidates, ways, len(candidates))))
    chosen = _solve(costs, serving, candidates, ways, fewest)[len(candidates) :]
    return {target: name for (target, name), used in zip(ways, chosen, strict=True) if used > 0.5}


def _solve(
    objective: Vector,
    serving: Mapping[str, Mapping[str, float]],
    candidates: list[str],
    ways: list[tuple[str, str]],
    most: int,
) -> Vector:
    """The columns of the best cover with at most so many candidates."""
    number = {name: column for column, name in enumerate(candidates)}
    once: dict[str, dict[int, float]] = {target: {} for target in serving}
    only_taken: list[dict[int, float]] = []
    for column, (target, name) in enumerate(ways, start=len(candidates)):
        once[target][column] = 1.0
        only_taken.append({column: 1.0, number[name]: -1.0})
    count = dict.fromkeys(range(len(candidates)), 1.0)
    within = stacked(
        rows([*once.values()], 1.0, 1.0), rows([*only_taken, count], -inf, [*[0.0] * len(ways), float(most)])
    )
    none, all_of_it = np.zeros(len(objective)), np.ones(len(objective))
    found = minimized(objective, none, all_of_it, within, integers=len(objective), gap=0.0, seconds=inf)
    assert found.state == "optimal" and found.values is not None
    return np.round(found.values)
