"""What a search came to, and which of several outcomes ranks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple

from edgeq.planning.proof.proving import Rank, proof_rank
from edgeq.planning.proof.search import Search, float_seconds
from edgeq.planning.solver.solve import Solution, cost_of
from edgeq.plans.plan import Attempt, Compiled, Proof

LOSES_LEAST = "the other limits leave no plan that is predicted to lose no more than it may: this one loses least"


class Outcome(NamedTuple):
    """A plan that is not written down yet (see `edgeq.planning.proof.record.written`), which takes a second.

    Attributes:
        proof: what it measured; None where nothing can be run.
        solution: None where the plan was not solved for.
        caps: by measure, what it was solved under.
        attempts: what was built on the way.
        size: bytes of its files.
    """

    search: Search
    choices: Mapping[str, str]
    proof: Proof | None
    size: int
    solution: Solution | None = None
    caps: Mapping[str, float] = {}
    attempts: Sequence[Attempt] = ()
    notes: Sequence[str] = ()
    compiled: Compiled | None = None

    @property
    def predicted(self) -> dict[str, float]:
        """By measure, what the plan is expected to cost."""
        return cost_of(self.search.problem, self.choices)

    @property
    def held(self) -> bool:
        """Whether every limit holds that could be judged."""
        limit = self.search.job.limits.max_size
        return self.proof.held if self.proof is not None else limit is None or self.size <= limit

    @property
    def loses_too_much(self) -> bool:
        """Whether it is predicted to lose more than it may, though nothing could be run to see it."""
        return self.proof is None and self.predicted["loss"] > self.caps.get("loss", inf)


def rank(found: Outcome, beside: float | None = 1.0) -> Rank:
    """Also of plans that nothing could be run of.

    Args:
        beside: what a latency in units of the float model's is multiplied by, the same for plans of one runtime; None
            where it is not known, and seconds have to do.
    """
    minimize, proof, predicted = found.search.minimize, found.proof, found.predicted
    if proof is None:
        if not found.held or found.loses_too_much:
            return True, (predicted["loss"] if found.held else inf, float(found.size))
        return False, (float(found.size) if minimize == "size" else predicted[minimize], predicted["loss"])
    if beside is None:
        proof = proof.model_copy(update={"latency_of": {}})
    found_rank = proof_rank(proof, minimize, predicted, found.search.provable, float_seconds(found.search))
    failed, (value, *others) = found_rank
    in_units = not failed and minimize == "latency" and "float32" in proof.latency_of
    return (failed, (value * (beside or 1.0), *others)) if in_units else found_rank
