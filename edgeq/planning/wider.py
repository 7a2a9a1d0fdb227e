"""When activations of more bits than the preferred ones are tried: it takes a search, builds and proofs."""

from __future__ import annotations

from edgeq.planning.outcome import Outcome
from edgeq.planning.proving import held
from edgeq.planning.search import SAME
from edgeq.planning.solver import solve
from edgeq.validation.gates import Limits


def why_wider(best: Outcome) -> str:
    """What is wrong with the best plan so far that activations of more bits may mend; empty if nothing is."""
    search, measure = best.search, best.search.minimize
    if best.proof is not None:
        enough = held(Limits(max_drop=search.job.limits.max_drop), best.proof)
        return "" if enough else "without them the best plan loses too much"
    if not best.held:  # it is too large, whatever it may lose
        return ""
    if best.loses_too_much:
        return "without them no plan is predicted to lose little enough"
    others = {name: cap for name, cap in best.caps.items() if name != "loss"}
    least, cost = solve(search.problem, minimize=measure, limits=others).costs[measure], best.predicted[measure]
    return f"without them the limit on the loss is paid for in {measure}" if cost > least * (1 + SAME) else ""
