"""The choices that lose least within a size, or are smallest within a loss: a multiple-choice knapsack, by HiGHS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeq.errors import UsageError
from edgeq.language.sensitivity import Unit

GAP = 1e-3
"""How far from the best possible the answer may be, relative to it."""


def solve(
    units: Sequence[Unit], sizes: Sequence[Mapping[str, int]], *, most_size: float | None, most_loss: float | None
) -> list[str]:
    """A choice for each unit: of least loss where the size is bounded, else of least size.

    Args:
        sizes: of each unit, bytes by choice.
        most_size: bytes of all units.
        most_loss: nats a token.

    Raises:
        UsageError: no choices are within the bounds.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    places = [(at, choice) for at, unit in enumerate(units) for choice in unit.losses]
    loss = np.array([units[at].losses[choice] for at, choice in places])
    size = np.array([sizes[at][choice] for at, choice in places], float)
    one_each = csr_array(
        (np.ones(len(places)), ([at for at, _ in places], range(len(places)))), (len(units), len(places))
    )
    constraints = [LinearConstraint(one_each, 1, 1)]
    # scaled, since bytes and nats are a million times apart
    for costs, most in ((size, most_size), (loss, most_loss)):
        if most is not None:
            constraints.append(LinearConstraint(costs[None] / max(most, 1e-30), -np.inf, 1))
    wanted = loss if most_size is not None else size
    found = milp(
        wanted / max(wanted.max(), 1e-30),
        constraints=constraints,
        integrality=np.ones(len(places)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": 60.0},
    )
    if found.x is None:
        least = sum(min(one.values()) for one in sizes)
        raise UsageError(
            f"no choices are within the limits; the smallest take {least / 1e6:.1f} MB",
            where="--max-size" if most_size is not None else "--max-drop",
            remedy="raise the limit",
        )
    chosen = dict(place for place, taken in zip(places, found.x > 0.5, strict=True) if taken)
    return [chosen[at] for at in range(len(units))]
