"""The planner: costs are measured, the best plan within the limits is solved for, built, and proved in its runtime.

calibrate -> sensitivity -> a few builds for times and sizes -> solve -> build and measure -> solve again with what was
learned, until the limits hold. The result is a plan; `edgeq deploy --plan` makes its artefact.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.case import Case, given
from edgeq.data.dataset import Dataset
from edgeq.engine import LOCAL, Engine
from edgeq.errors import EdgeqError, GateError, UsageError
from edgeq.export.artifact import Exporter
from edgeq.model.model import Model
from edgeq.planning.across import first_of
from edgeq.planning.assign import FLOAT
from edgeq.planning.budget import allowed_damage
from edgeq.planning.ladder import by_activations, uniform
from edgeq.planning.plan import (
    Attempt,
    Plan,
    Proof,
)
from edgeq.planning.proving import best_proof, held, prove, rank
from edgeq.planning.record import written
from edgeq.planning.rules import Rule
from edgeq.planning.search import SAME, Search, best_of, searches
from edgeq.planning.solver import Infeasible, Solution, check, cost_of, solve
from edgeq.planning.unproved import without_proof
from edgeq.prepare import Job, answered, prepare, take_aim
from edgeq.progress import Clock, Progress, Silent
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime
from edgeq.validation.accuracy import compare, quick_drop
from edgeq.validation.gates import Limits, drop_limit
from edgeq.validation.metric import Metric, identity

ATTEMPTS = 5
"""Builds that the search may make after the first solution."""

TIGHTER = 0.5
"""What is left of the loss that was spent after a round that missed the drop."""

ALLOWED_VERSION = 1
"""To be raised whenever the loss that a drop allows is found in another way."""


def plan(
    model: str | Path | torch.nn.Module | Model,
    *,
    target: str,
    calibration: str | Path | Dataset,
    evaluation: str | Path | Dataset,
    minimize: str = "latency",
    limits: Limits | None = None,
    format: str = "auto",
    preprocess: str | None = None,
    metric: str | Metric | None = None,
    device: str | None = None,
    profile: str | None = None,
    threads: int = 1,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    rules: Sequence[Rule] = (),
    engine: Engine = LOCAL,
    progress: Progress | None = None,
) -> Plan:
    """The best plan for a target, with the proof of it; without one where the target cannot be executed from here.

    Args:
        minimize: `latency`, `size`, `loss` or `energy`, within the limits on the others.
        limits: without a largest drop, a plan may lose what uniform INT8 is expected to lose.
        format: of several formats (`auto`) the plan that measured best is kept.
        profile: the device of the target whose time and energy are modelled where they cannot be measured; the target's
            own if not given.
        rules: what some layers have to be, whatever it costs.
        engine: where builds and sensitivities are worked out (see `edgeq.engine.open_engine`); the plan does not
            depend on it.

    The other arguments are those of `edgeq.deploy`.

    Returns:
        A plan whose `planned.held` says whether every limit held that could be judged; `planned.unvalidated` has the
        others, and `planned.proof` what was measured, if anything could be run.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model cannot be handled.
        DeviceError: a device or runtime failed.
        GateError: no plan can hold the limits; it says which.
    """
    if minimize not in ("latency", "size", "loss", "energy"):
        raise UsageError(f"cannot minimize {minimize!r}", remedy="choose latency, size, loss or energy")
    case = Case(model, calibration, evaluation, preprocess, metric, inputs, arch, trust_pickle)
    aim = take_aim(load_target(target), format, device=device, profile=profile, threads=threads, limits=limits)
    (job,) = prepare(case, [aim], Clock(progress or Silent()), engine=engine)
    if job.limits.max_drop is not None:
        job = answered(job)  # a drop has to be put into the loss that it allows, also where nothing can be run
    found: list[Plan] = []
    errors: list[EdgeqError] = []
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        exporter = Exporter(job.model, Path(scratch), job.cache)
        for number, runtime in enumerate(job.runtimes):
            folder = Path(scratch) / f"runtime{number}"
            folder.mkdir()
            try:
                found.append(_of_runtime(job, runtime, exporter, folder, minimize, rules))
            except EdgeqError as error:
                if len(job.runtimes) == 1:
                    raise
                job.clock.progress.note(f"{runtime.format}: {error.cause}")
                errors.append(error)
        if not found:
            raise errors[0]
        best = first_of(job, exporter, found)
    return best.model_copy(update={"given": given(case, job.calibration_data), "rules": list(rules)})


def _of_runtime(
    job: Job, runtime: Runtime, exporter: Exporter, folder: Path, minimize: str, rules: Sequence[Rule]
) -> Plan:
    """The best plan of one runtime: in every precision of what stays in float, and with wider activations where those
    of the preferred type cost too much accuracy, or where the rules leave none of it."""
    found: list[tuple[Search, Plan]] = []
    refused: UsageError | None = None
    told: list[str] = []
    for kind, typed in by_activations(runtime).items():
        why = _why_wider(*_first(found)) if found else ""
        if found and not why:
            break
        place = folder / kind
        place.mkdir()
        before, outcome = list(found), ""
        if why:
            job.clock.progress.note(f"{kind} activations are tried as well: {why}")
        try:
            found += [(search, find(search)) for search in searches(job, typed, exporter, place, minimize, rules)]
        except UsageError as error:
            refused = refused or error
            outcome = error.cause
        except GateError as error:  # too slow or too large, whatever it may lose: more bits are no remedy
            if not found:
                raise
            outcome = error.cause
        if why:
            if not outcome:
                first = _first(found)
                outcome = "they are no better" if any(first is pair for pair in before) else "they are better"
            told.append(f"{kind} activations were tried as well: {why}; {outcome}")
    if not found:
        assert refused is not None
        raise refused
    best = _first(found)[1]
    assert best.planned is not None
    planned = best.planned.model_copy(update={"notes": [*best.planned.notes, *told]})
    return best.model_copy(update={"planned": planned})


def _first(found: Sequence[tuple[Search, Plan]]) -> tuple[Search, Plan]:
    return min(found, key=lambda pair: rank(pair[1]))


def _why_wider(search: Search, best: Plan) -> str:
    """What is wrong with the best plan so far that activations of more bits may mend; empty if nothing is."""
    planned, measure = best.planned, search.minimize
    assert planned is not None
    if planned.proof is not None:
        enough = held(Limits(max_drop=search.job.limits.max_drop), planned.proof)
        return "" if enough else "without them the best plan loses too much"
    if not planned.held:  # it is too large, whatever it may lose
        return ""
    others = {name: cap for name, cap in planned.limits.items() if name != "loss"}
    least, cost = solve(search.problem, minimize=measure, limits=others).costs[measure], planned.predicted[measure]
    return f"without them the limit on the loss is paid for in {measure}" if cost > least * (1 + SAME) else ""


def find(search: Search) -> Plan:
    """The best plan of one search, proved where that can be done; where a limit cannot be held, the best of those that
    were built.

    Raises:
        GateError: no plan can hold the limits by prediction; nothing was built.
    """
    job, problem, notes = search.job, search.problem, list(search.notes)
    preferred = uniform(search.allowed)
    everywhere = cost_of(problem, preferred)
    with job.clock.stage("loss that is allowed"):
        allowed = _allowed(job)
    if allowed is None:
        allowed = everywhere["loss"]
        notes.append("no largest drop was given: no more may be lost than the preferred kernels everywhere would lose")
    caps = {"loss": allowed}
    if job.limits.max_size is not None:
        caps["size"] = float(job.limits.max_size)
    if job.limits.max_latency is not None and search.costs.latency_from is not None:
        caps["latency"] = job.limits.max_latency
    if search.where is None:
        return without_proof(search, caps, notes, ATTEMPTS)
    attempts: list[Attempt] = []
    solution: Solution | None = None
    with job.clock.stage(f"search in {search.runtime.name}, {search.precision}") as steps:
        for done in range(1, ATTEMPTS + 1):
            try:
                found = best_of(search, caps)
            except Infeasible:
                if solution is None:
                    raise
                break
            if solution is not None and found.choices == solution.choices:
                break
            solution = found
            proof = prove(search, found.choices)
            changed = sum(found.choices[name] != choice for name, choice in preferred.items())
            attempts.append(Attempt(loss_limit=caps["loss"], predicted=found.costs, changed=changed, proof=proof))
            steps.step(done, ATTEMPTS)
            if proof.held:
                break
            caps = _tightened(caps, found, proof, search.provable)
        assert solution is not None
        # what is measured decides: the two plans that anyone would try first must not be better
        for other in (dict(preferred), dict.fromkeys(preferred, FLOAT)):
            if _may_be_better(search, solution.choices, other):
                prove(search, other)
    choices, proof = best_proof(search)
    if choices != solution.choices:
        notes.append("the plan that was solved for measured worse than this one")
    solved = solution if choices == solution.choices else None
    return written(search, choices, proof, solved, caps, attempts, notes)


def _allowed(job: Job) -> float | None:
    """The damage that the limit on the metric allows; None without such a limit."""
    if job.limits.max_drop is None:
        return None
    labels = None if job.evaluation is None else job.evaluation.labels
    itself = compare(job.reference, job.reference, labels, job.metric, seconds=0.0)
    most = drop_limit(job.limits.max_drop, itself)
    if most is None or quick_drop(job.reference, job.reference, labels, job.metric) is None:
        raise UsageError(
            f"a drop of at most {job.limits.max_drop} cannot be judged: the outputs hold no answers to compare",
            remedy="pass labels or --metric package.module:function",
        )

    def drop(outputs: Sequence[np.ndarray]) -> float:
        return quick_drop(job.reference, outputs, labels, job.metric) or 0.0

    judge = identity(job.metric)
    key = content_key(
        "allowed",
        ALLOWED_VERSION,
        model=job.model.fingerprint,
        evaluation=None if job.evaluation is None else job.evaluation.sha256,
        metric=judge,
        most=most,
        torch=torch.__version__,
    )
    allowed: float = cached(
        job.cache if judge else Cache(None),
        "allowed",
        key,
        lambda: allowed_damage(job.reference, drop, most, slow=job.metric is not None),
        Entry,
        lambda entry: float(entry.values),
    )
    return allowed


def _tightened(caps: Mapping[str, float], found: Solution, proof: Proof, limits: Limits) -> dict[str, float]:
    """The limits for the next round, where a build missed the user's: a cost is scaled by how far the table was off,
    and the loss by how far the drop was over."""
    result = dict(caps)
    for measure, measured, most in (
        ("size", proof.size, limits.max_size),
        ("latency", proof.latency, limits.max_latency),
    ):
        if measure in result and measured is not None and most is not None and measured > most:
            result[measure] = min(result[measure], most * found.costs[measure] / measured) * 0.999
    if not held(Limits(max_drop=limits.max_drop), proof):
        result["loss"] = min(result["loss"], found.costs["loss"]) * TIGHTER
    return result


def _may_be_better(search: Search, choices: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a plan has to be proved as well: it took less time beside the best plan so far, or nothing held yet."""
    if dict(choices) == dict(other) or check(search.problem, other):
        return False
    _, proof = best_proof(search)
    if not proof.held:
        return True
    if search.minimize != "latency" or proof.latency is None:
        return False
    floats = all(c == FLOAT for c in other.values())
    beside = proof.latency_of.get(search.precision if floats else "preferred")
    return beside is not None and beside < proof.latency
