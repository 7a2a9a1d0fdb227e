"""The fewest candidates that serve every target: a minimum set cover, solved exactly.

Source: the set covering problem, Karp 1972, "Reducibility among Combinatorial Problems", as an integer program; which
candidate serves which target is then a facility location problem with the number of facilities given.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeq.planning.program import muted

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
    objective: NDArray[np.float64],
    serving: Mapping[str, Mapping[str, float]],
    candidates: list[str],
    ways: list[tuple[str, str]],
    most: int,
) -> NDArray[np.float64]:
    """The columns of the best cover with at most so many candidates."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    number = {name: column for column, name in enumerate(candidates)}
    once = np.zeros((len(serving), len(objective)))
    only_taken = np.zeros((len(ways), len(objective)))
    row = {target: index for index, target in enumerate(serving)}
    for index, (target, name) in enumerate(ways):
        column = len(candidates) + index
        once[row[target], column] = 1.0
        only_taken[index, column] = 1.0
        only_taken[index, number[name]] = -1.0
    count = np.concatenate([np.ones(len(candidates)), np.zeros(len(ways))])[None]
    with muted():
        result = milp(
            objective,
            constraints=[
                LinearConstraint(once, 1.0, 1.0),
                LinearConstraint(only_taken, -np.inf, 0.0),
                LinearConstraint(count, 0.0, most),
            ],
            integrality=np.ones(len(objective)),
            bounds=Bounds(0.0, 1.0),
            options={"mip_rel_gap": 0.0},
        )
    assert result.success and result.x is not None, result.message
    found: NDArray[np.float64] = np.round(result.x)
    return found
