"""The program that a plan was solved from."""

from __future__ import annotations

from edgeq.planning.solver.solve import Boundary, Need, Problem
from edgeq.plans.plan import Plan


def restate(plan: Plan) -> Problem:
    """The program that a planned plan was solved from, read back from the plan alone.

    Raises:
        ValueError: the plan was not made by the planner.
    """
    if plan.planned is None:
        raise ValueError("the plan holds no costs")
    return Problem(
        {layer.name: layer.alternatives for layer in plan.layers},
        [
            Boundary(c.producer, frozenset(c.leaves), {r: frozenset(v) for r, v in c.readers.items()}, c.costs)
            for c in plan.planned.conversions
        ],
        [
            Need(c.layer, frozenset(c.choices), tuple((o, frozenset(v)) for o, v in c.any_of.items()))
            for c in plan.planned.conditions
        ],
        plan.planned.fixed,
    )
