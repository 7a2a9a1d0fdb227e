"""What a search came to, and which of several outcomes ranks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple

from edgeq.limits import Limits, exceeded
from edgeq.planning.proof.search import Search, float_seconds
from edgeq.planning.solver.solve import Solution, cost_of
from edgeq.plans.plan import Attempt, Proof

Rank = tuple[bool, tuple[float, ...]]
"""What plans are put in order by, smaller is better: whether a limit is missed, and by what they are compared then."""

LOSES_LEAST = "the other limits leave no plan that is predicted to lose no more than it may: this one loses least"


class Outcome(NamedTuple):
    """A plan that is not written down yet (see `edgeq.planning.proof.record.written`), which takes a second.

    Attributes:
        proof: what it measured; None where nothing can be run.
        solution: None where the plan was not solved for.
        caps: by measure, what it was solved under.
        attempts: what was built on the way.
        remark: what there is to say of this plan, beside the notes of the search.
        size: bytes of its files.
    """

    search: Search
    choices: Mapping[str, str]
    proof: Proof | None
    size: int
    solution: Solution | None = None
    caps: Mapping[str, float] = {}
    attempts: Sequence[Attempt] = ()
    remark: str = ""

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
        beside: see `proof_rank`.
    """
    search, proof, predicted = found.search, found.proof, found.predicted
    if proof is not None:
        return proof_rank(proof, search.minimize, predicted, search.provable, float_seconds(search), beside)
    if not found.held or found.loses_too_much:
        return True, (predicted["loss"] if found.held else inf, float(found.size))
    return False, (float(found.size) if search.minimize == "size" else predicted[search.minimize], predicted["loss"])


def proof_rank(
    proof: Proof,
    minimize: str,
    predicted: Mapping[str, float],
    limits: Limits,
    usual: float | None = None,
    beside: float | None = 1.0,
) -> Rank:
    """Limits held, then what is minimized, then the drop; where they are not, how far the size is over, then the drop,
    then the latency, then the drop itself: what does not fit a device is of no use there, and what is wrong is of none
    for being fast.

    Latency counts in units of the float model's in the same turns: the machine's speed moves from one build to the
    next. Where it has no clock, and for energy, what was predicted counts.

    Args:
        usual: seconds that the float model usually takes, for latencies that are over a limit (see `float_seconds`).
        beside: what a latency in units of the float model's is multiplied by, the same for plans of one runtime; None
            where it is not known, and seconds have to do.
    """
    drop = proof.drop if proof.drop is not None else 0.0
    floats = None if beside is None else proof.latency_of.get("float32")
    if not proof.held:
        latency = proof.latency if proof.latency is not None else predicted.get("latency", 0.0)
        if proof.latency is not None and usual and floats:
            latency *= usual / floats
        too_large, too_slow = (
            0.0 if most is None else max(0.0, value / most - 1)
            for value, most in ((float(proof.size), limits.max_size), (latency, limits.max_latency))
        )
        return True, (too_large, exceeded(limits, proof.measured).get("drop", 0.0), too_slow, drop)
    measured = {"latency": proof.latency, "size": float(proof.size), "loss": drop}.get(minimize)
    value = predicted.get(minimize, inf) if measured is None else measured
    return False, (value / floats * beside if minimize == "latency" and floats and beside else value, drop)
