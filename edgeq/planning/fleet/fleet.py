"""A fleet: the fewest artefacts that serve several targets, each of them planned, built and measured.

prepare once -> candidates of every target, and of what all offer -> each at each target -> the fewest that serve all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from edgeq.cache import Cache, open_cache
from edgeq.case import given
from edgeq.devices import workers_ahead
from edgeq.errors import UsageError
from edgeq.evaluation.measure import fed
from edgeq.export.artifact import Exporter
from edgeq.files import scratch_folder
from edgeq.limits import Limits
from edgeq.planning.fleet.candidates import Candidate, candidates, reader
from edgeq.planning.fleet.cover import cover
from edgeq.planning.fleet.verdicts import at_device, judged
from edgeq.planning.proof.outcome import Rank, proof_rank
from edgeq.planning.proof.proving import PROOF_ROUNDS, PROOF_SECONDS
from edgeq.plans.fleet import Artefact, Considered, Fleet, Gain, Member, Verdict
from edgeq.plans.plan import Plan, Proof
from edgeq.prepare import Aim, Job, prepare, take_aim
from edgeq.progress import Clock
from edgeq.registry.load import load_target
from edgeq.request import Sought, takes_fields_of

Verdicts = Mapping[tuple[str, str], Verdict]
"""By candidate and target."""


@dataclass(frozen=True, kw_only=True)
class FleetRequest(Sought):
    """What a fleet is planned from.

    Attributes:
        targets: names or target files.
        format: of every artefact, if not whatever is best.
        minimize: `latency`, `size` or `loss`; where a target has no clock, size stands for latency.
        limits: of every target, or of each by the target's name.
    """

    targets: Sequence[str]
    format: str = "auto"
    limits: Limits | Mapping[str, Limits] | None = None


@takes_fields_of(FleetRequest)
def fleet(request: FleetRequest) -> tuple[Fleet, dict[str, Plan]]:
    """The fewest artefacts that serve all of several targets, and among equally few those that cost the targets least.

    An artefact serves a target if the target's own file offers every kernel that it was made for, and if it holds the
    target's limits when it is measured on the target's device. A target whose device is not here is served by what its
    file offers, and is `not validated`. A target whose limits nothing holds gets what comes closest.

    The arguments are the fields of `FleetRequest`, `edgeq.request.Sought` and `edgeq.case.Case`.

    Returns:
        The fleet, for `edgeq.plans.fleet.write_fleet`, and the plan of each of its artefacts by name.

    Raises:
        UsageError: wrong arguments or data, or no target's device is here.
        UnsupportedError: the model cannot be handled, or not for one of the targets.
        DeviceError: a device or runtime failed.
    """
    minimize = request.minimize
    if minimize not in ("latency", "size", "loss"):
        raise UsageError(f"cannot minimize {minimize!r} for several targets", remedy="choose latency, size or loss")
    aims = _aims(request)
    clock = Clock(request.progress)
    with scratch_folder() as scratch, workers_ahead([aim.device for aim in aims]):
        cache = open_cache(clock.progress.note)
        if cache.root is None:  # what targets share is computed once all the same
            cache = Cache(scratch / "results")
        jobs = prepare(request, aims, clock, cache, request.engine)
        every = candidates(jobs, Exporter(jobs[0].model, scratch, cache), minimize, request.rules)
        return _covered(request, jobs, {one.name: one for one in every})


def _aims(request: FleetRequest) -> list[Aim]:
    loaded, limits = [load_target(name) for name in request.targets], request.limits
    names = [target.name for target in loaded]
    if not names:
        raise UsageError("a fleet has targets", remedy="give --target once for each")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"the target {twice} is given twice", remedy="give it once, or rename one of the files")
    by_target = limits if isinstance(limits, Mapping) else dict.fromkeys(names, limits or Limits())
    if unknown := sorted(by_target.keys() - set(names)):
        raise UsageError(f"limits for {unknown[0]}, which is no target here", remedy=f"one of: {', '.join(names)}")
    aims = [take_aim(t, request.format, threads=request.threads, limits=by_target.get(t.name)) for t in loaded]
    if all(aim.device is None for aim in aims):
        why = "; ".join(aim.no_device_because for aim in aims)
        raise UsageError(f"nothing can be measured for these targets: {why}", remedy="add a target that can run here")
    return aims


def _covered(
    request: FleetRequest, jobs: Sequence[Job], found: Mapping[str, Candidate]
) -> tuple[Fleet, dict[str, Plan]]:
    """The fewest of the candidates, and what became of all of them at each target."""
    minimize = request.minimize
    at = {(name, target): v for name, one in found.items() for target, v in judged(one, jobs).items()}
    serving = cover({job.target.name: _serving(job, found, at, minimize) for job in jobs})
    names = _names([found[name] for name in dict.fromkeys(serving.values())])
    members = [
        Member(
            target=job.target.name,
            given=typed,
            limits=_stated(job.limits),
            artefact=names[by],
            verdict=at[by, job.target.name],
            alone=_gain(job, found[by], found, at, minimize),
        )
        for job, typed, by in zip(jobs, request.targets, serving.values(), strict=True)
    ]
    made_from, first = given(request, jobs[0].calibration_data), jobs[0]
    result = Fleet(
        model_hash=first.model.sha256,
        data_hash=first.calibration_data.sha256,
        minimize=minimize,
        why=_why(len(names), len(jobs), len(found)),
        artefacts=[
            Artefact(
                name=called,
                plan=f"fleet.{called}.json",
                candidate=name,
                serves=[target for target, by in serving.items() if by == name],
                **found[name].told,
            )
            for name, called in names.items()
        ],
        targets=members,
        candidates=[
            Considered(
                name=name,
                runtime=one.plan.runtime,
                common=one.common,
                verdicts=[at[name, target] for target in serving],
                **one.told,
            )
            for name, one in found.items()
        ],
        given=made_from,
        notes=list(dict.fromkeys(text for job in jobs for text in job.warnings)),
    )
    told = {"given": made_from, "rules": list(request.rules)}
    return result, {names[name]: found[name].plan.model_copy(update=told) for name in names}


def _serving(job: Job, found: Mapping[str, Candidate], at: Verdicts, minimize: str) -> dict[str, float]:
    """The candidates that may serve a target, each with what it costs in units of the best one. Where none holds the
    limits, the best of those that were tried."""
    offered = {name: v for name in found if (v := at[name, job.target.name]).status != "not offered"}
    able = [name for name, verdict in offered.items() if verdict.status != "missed"]
    able = [name for name in able if not offered[name].doubtful] or able
    if not able:
        ranked = {name: _rank(verdict, found[name], job.limits, minimize) for name, verdict in offered.items()}
        able = [name for name in offered if ranked[name] == min(ranked.values())]
    measured = {name: _measured(offered[name].proof, minimize) for name in able}
    known = {name: value for name, value in measured.items() if value is not None}
    values = known if len(known) == len(able) else {name: float(found[name].found.size) for name in able}
    best = min(values.values())
    return {name: value / best if best > 0 else value for name, value in values.items()}


def _measured(proof: Proof | None, minimize: str) -> float | None:
    """What is minimized, 0 or more; None for size, and where it was not measured."""
    if proof is None:
        return None
    return {"latency": proof.latency, "loss": None if proof.drop is None else max(proof.drop, 0.0)}.get(minimize)


def _rank(verdict: Verdict, one: Candidate, limits: Limits, minimize: str) -> Rank:
    """Smaller is better at one target; by size where nothing was measured."""
    if verdict.proof is not None:
        return proof_rank(verdict.proof, minimize, one.found.predicted, limits)
    missed = verdict.status == "missed"
    return missed, (inf if missed else 0.0, float(one.found.size))


def _gain(job: Job, shared: Candidate, found: Mapping[str, Candidate], at: Verdicts, minimize: str) -> Gain | None:
    """What a target would gain from the best candidate of its own; None if it has that."""
    target = job.target.name
    own = [one for one in found.values() if one.plan.target == target and not one.common]
    best = min(own, key=lambda one: _rank(at[one.name, target], one, job.limits, minimize))
    if best is shared or best.plan.stored == shared.plan.stored:
        return None
    proofs = [at[one.name, target].proof for one in (shared, best)]
    latency = _in_turns(job, shared, best)
    return Gain(
        candidate=best.name,
        latency=_less(None if p is None else p.latency for p in proofs) if latency is None else latency,
        in_turns=latency is not None,
        size=shared.found.size - best.found.size,
        drop=_less(None if p is None else p.drop for p in proofs),
    )


def _less(pair: Iterable[float | None]) -> float | None:
    one, other = pair
    return None if one is None or other is None else one - other


def _in_turns(job: Job, shared: Candidate, own: Candidate) -> float | None:
    """Seconds that a target's own artefact takes less than the shared one; None where they cannot take turns."""
    device, runtime = job.timed, reader(own.plan.format, job)
    if device is None or shared.plan.format != own.plan.format or runtime is None:
        return None
    assert job.evaluation is not None
    with job.clock.stage(f"shared or own on {device.name}") as steps:
        made = [at_device(one, job, device, runtime).built(one.found.choices) for one in (shared, own)]
        sample = job.evaluation.first(1)
        runs = device.latency(
            {str(number): one.candidate for number, one in enumerate(made)},
            {},
            steps,
            own_inputs={str(number): fed(sample, one.ends) for number, one in enumerate(made)},
            rounds=PROOF_ROUNDS,
            seconds=PROOF_SECONDS,
            threads=job.threads,
        )
    return float(np.median(runs["0"])) - float(np.median(runs["1"]))


def _names(chosen: Sequence[Candidate]) -> dict[str, str]:
    """By candidate, a name after its format: `onnx`, and `onnx-2` for a second one."""
    names: dict[str, str] = {}
    for one in chosen:
        form = one.plan.format
        before = sum(name.split("-")[0] == form for name in names.values())
        names[one.name] = f"{form}-{before + 1}" if before else form
    return names


def _why(artefacts: int, targets: int, tried: int) -> str:
    if artefacts == 1:
        return f"1 artefact for {targets} targets, the best of {tried} candidates that serves them all"
    fewer = "no single one" if artefacts == 2 else f"no {artefacts - 1}"
    return f"{artefacts} artefacts for {targets} targets: {fewer} of the {tried} candidates could serve them all"


def _stated(limits: Limits) -> dict[str, str]:
    units = {"max_drop": "", "max_latency": " s", "max_size": " bytes"}
    return {name: f"{most}{unit}" for name, unit in units.items() if (most := getattr(limits, name)) is not None}
