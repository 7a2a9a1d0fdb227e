"""The fewest candidates that serve every target: a minimum set cover, solved exactly.

Source: the set covering problem, Karp 1972, "Reducibility among Combinatorial Problems", as an integer program; which
candidate serves which target is then a facility location problem in which a facility costs more than all ways to serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np

from edgeq.planning.solver.highs import minimized, rows, stacked

_SCALE = 1e3
"""What the largest cost is scaled to: HiGHS ends within an absolute gap of a millionth."""


def cover(serving: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The candidate that serves each target, such that as few candidates as possible serve them all.

    Of covers with equally few, one with the least total cost.

    Args:
        serving: by target, the candidates that can serve it, and what it costs the target to be served by them; 0 or
            more.

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
    number = {name: at for at, name in enumerate(dict.fromkeys(name for costs in serving.values() for name in costs))}
    ways = [(target, name) for target, costs in serving.items() for name in costs]
    costs = np.array([serving[target][name] for target, name in ways])
    costs *= _SCALE / max(costs.max(), 1e-300)
    objective = np.concatenate([np.full(len(number), _SCALE * len(serving) + 1), costs])
    once: dict[str, dict[int, float]] = {target: {} for target in serving}
    only_taken: list[dict[int, float]] = []
    for column, (target, name) in enumerate(ways, start=len(number)):
        once[target][column] = 1.0
        only_taken.append({column: 1.0, number[name]: -1.0})
    within = stacked(rows([*once.values()], 1.0, 1.0), rows(only_taken, -inf, 0.0))
    zeros, ones = np.zeros_like(objective), np.ones_like(objective)
    found = minimized(objective, zeros, ones, within, integers=len(objective), gap=0.0, seconds=inf)
    assert found.state == "optimal" and found.values is not None
    return {target: name for (target, name), used in zip(ways, found.values[len(number) :], strict=True) if used > 0.5}
