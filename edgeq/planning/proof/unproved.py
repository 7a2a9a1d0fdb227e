"""A plan for what cannot be executed from here: solved for, built, counted and, where there is a compiler for the
device, compiled; run nowhere. Simulated losses steered it, and no number of it is a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeq.errors import UnsupportedError
from edgeq.lowering.choices import uniform
from edgeq.planning.costs.estimates import asked_of_vela
from edgeq.planning.costs.vela import estimate
from edgeq.planning.proof.outcome import LOSES_LEAST, Outcome
from edgeq.planning.proof.search import Search, cheapest
from edgeq.planning.solver.solve import Infeasible
from edgeq.plans.plan import Attempt, Compiled


def without_proof(search: Search, caps: Mapping[str, float], notes: list[str], attempts: int) -> Outcome:
    """The best plan by prediction whose files are as small as they have to be.

    Args:
        caps: by measure, what the plan is solved under.
        attempts: builds that may be made until the size holds.

    Raises:
        Infeasible: no plan is expected to keep within the limits.
    """
    most = search.job.limits.max_size
    preferred, held = uniform(search.allowed), dict(caps)
    made: list[Attempt] = []
    with search.job.clock.stage(f"search in {search.runtime.name}, {search.precision}") as steps:
        solution = cheapest(search.problem, search.minimize, held)
        for done in range(1, attempts + 1):
            artifact, _, size = search.built(solution.choices)
            changed = sum(solution.choices[name] != choice for name, choice in preferred.items())
            made.append(Attempt(loss_limit=held["loss"], predicted=solution.costs, changed=changed, proof=None))
            steps.step(done, attempts)
            if most is None or size <= most or done == attempts:
                break
            held["size"] = min(held["size"], most * solution.costs["size"] / size) * 0.999
            try:
                solution = cheapest(search.problem, search.minimize, held)
            except Infeasible:
                break
    remark = LOSES_LEAST if solution.costs["loss"] > caps["loss"] else ""
    compiled, told = _compiled(search, artifact.path)
    notes = [*notes, *told, "not validated: no accuracy, latency or energy of this plan was measured"]
    return Outcome(search, solution.choices, None, size, solution, held, made, notes, remark, compiled)


def _compiled(search: Search, path: Path) -> tuple[Compiled | None, list[str]]:
    """What Vela says of the plan's own file, or why it does not."""
    profile = search.job.profile
    version = asked_of_vela(search.runtime, profile)
    if version is None or profile is None or profile.vela is None:
        return None, []
    with search.job.clock.stage(f"compile for {profile.name}"):
        try:
            said = estimate(path, profile.vela)
        except UnsupportedError as error:
            return None, [f"{error.cause}; {error.remedy}"]
    left = [row.name for row in said.rows if row.where == "CPU"]
    found = Compiled(by=f"Vela {version}", seconds=said.seconds, sram=said.sram, flash=said.flash, left_to_cpu=left)
    return found, []
