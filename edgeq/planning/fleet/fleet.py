"""A fleet: the fewest artefacts that serve several targets, each of them planned, built and measured.

prepare once -> candidates of every target, and of what targets have in common -> each of them at each target -> the
smallest set that serves all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeq.cache import Cache, open_cache
from edgeq.case import given
from edgeq.devices import workers_ahead
from edgeq.errors import UsageError
from edgeq.evaluation.measure import fed
from edgeq.export.artifact import Exporter
from edgeq.files import scratch_folder
from edgeq.limits import Limits
from edgeq.planning.fleet.candidates import (
    Candidate,
    Workshop,
    at_device,
    candidates,
    considered,
    judged,
    stored,
    workshop,
)
from edgeq.planning.fleet.cover import cover
from edgeq.planning.proof.proving import PROOF_ROUNDS, PROOF_SECONDS
from edgeq.plans.fleet import Artefact, Fleet, Gain, Member, Verdict
from edgeq.plans.plan import Plan
from edgeq.prepare import Aim, Job, prepare, take_aim
from edgeq.progress import Clock
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime
from edgeq.request import Sought, takes_fields_of

Verdicts = Mapping[str, Mapping[str, Verdict]]
"""By target and candidate."""


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
    with (
        scratch_folder() as scratch,
        workers_ahead([aim.device for aim in aims]),
    ):
        cache = open_cache(clock.progress.note)
        if cache.root is None:  # what targets share is computed once all the same
            cache = Cache(scratch / "results")
        jobs = prepare(request, aims, clock, cache, request.engine)
        shop = workshop(Exporter(jobs[0].model, scratch, cache), scratch)
        found = {one.name: one for one in candidates(jobs, shop, minimize, request.rules)}
        verdicts = {name: judged(one, jobs, shop) for name, one in found.items()}
        at = {job.target.name: {name: verdicts[name][job.target.name] for name in found} for job in jobs}
        serving = cover({target: _serving(at[target], found, minimize) for target in at})
        alone = {job.target.name: _gain(job, serving[job.target.name], found, at, minimize, shop) for job in jobs}
    return _written(request, jobs, found, at, serving, alone)


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


def _serving(verdicts: Mapping[str, Verdict], found: Mapping[str, Candidate], minimize: str) -> dict[str, float]:
    """The candidates that may serve a target, each with what it costs in units of the best one. Where none holds the
    limits, the best of those that were tried."""
    offered = {name: v for name, v in verdicts.items() if v.status != "not offered"}
    able = [name for name, verdict in offered.items() if verdict.status != "missed"]
    able = [name for name in able if not offered[name].doubtful] or able
    if not able:
        ranked = {name: _ranked(verdict, found[name], minimize) for name, verdict in offered.items()}
        able = [name for name in offered if ranked[name] == min(ranked.values())]
    values = _values({name: offered[name] for name in able}, found, minimize)
    best = min(values.values())
    return {name: value / best if best > 0 else value for name, value in values.items()}


def _values(verdicts: Mapping[str, Verdict], found: Mapping[str, Candidate], minimize: str) -> dict[str, float]:
    """What is minimized, 0 or more; size where it was not measured of all of them."""
    proofs = {name: verdict.proof for name, verdict in verdicts.items()}
    measured: dict[str, float | None] = dict.fromkeys(verdicts)
    if minimize == "latency":
        measured = {name: None if proof is None else proof.latency for name, proof in proofs.items()}
    elif minimize == "loss":
        measured = {name: None if p is None or p.drop is None else max(p.drop, 0.0) for name, p in proofs.items()}
    known = {name: value for name, value in measured.items() if value is not None}
    return known if len(known) == len(verdicts) else {name: float(found[name].size) for name in verdicts}


def _ranked(verdict: Verdict, candidate: Candidate, minimize: str) -> tuple[bool, float, float]:
    """Smaller is better at one target: limits held, then the drop where they are not, else what is minimized."""
    proof, size = verdict.proof, float(candidate.size)
    if proof is None:
        return verdict.status == "missed", size, 0.0
    drop = proof.drop or 0.0
    value = {"latency": proof.latency, "loss": drop}.get(minimize)
    return verdict.status == "missed", drop if verdict.status == "missed" else size if value is None else value, drop


def _gain(
    job: Job, serving: str, found: Mapping[str, Candidate], at: Verdicts, minimize: str, shop: Workshop
) -> Gain | None:
    """What a target would gain from the best candidate of its own; None if it has that."""
    target = job.target.name
    own = {n: at[target][n] for n, c in found.items() if c.job.target.name == target and not c.common}
    best = min(own, key=lambda name: _ranked(own[name], found[name], minimize))
    if best == serving or stored(found[best].plan) == stored(found[serving].plan):
        return None
    mine, shared = own[best].proof, at[target][serving].proof
    latency = _in_turns(job, found[serving], found[best], shop)
    in_turns = latency is not None
    if latency is None and mine is not None and shared is not None and mine.latency and shared.latency:
        latency = shared.latency - mine.latency
    drops = (shared.drop, mine.drop) if mine is not None and shared is not None else (None, None)
    return Gain(
        candidate=best,
        latency=latency,
        in_turns=in_turns,
        size=found[serving].size - found[best].size,
        drop=None if drops[0] is None or drops[1] is None else drops[0] - drops[1],
    )


def _in_turns(job: Job, shared: Candidate, own: Candidate, shop: Workshop) -> float | None:
    """Seconds that a target's own artefact takes less than the shared one; None where they cannot take turns."""
    device = job.timed
    if device is None or shared.runtime.format != own.runtime.format:
        return None
    reader: Runtime = next(r for r in job.runtimes if r.format == own.runtime.format)
    assert job.evaluation is not None
    with job.clock.stage(f"shared or own on {device.name}") as steps:
        made = {
            name: at_device(one, job, reader, shop).built(one.choices)
            for name, one in (("shared", shared), ("own", own))
        }
        built = {name: one.candidate for name, one in made.items()}
        sample = job.evaluation.first(1)
        fit = {name: fed(sample, one.ends) for name, one in made.items()}
        runs = device.latency(
            built, {}, steps, own_inputs=fit, rounds=PROOF_ROUNDS, seconds=PROOF_SECONDS, threads=job.threads
        )
    return float(np.median(runs["shared"])) - float(np.median(runs["own"]))


def _written(
    request: FleetRequest,
    jobs: Sequence[Job],
    found: Mapping[str, Candidate],
    at: Verdicts,
    serving: Mapping[str, str],
    alone: Mapping[str, Gain | None],
) -> tuple[Fleet, dict[str, Plan]]:
    names = _names([found[name] for name in dict.fromkeys(serving.values())])
    first = jobs[0]
    made_from = given(request, first.calibration_data)
    artefacts = [
        Artefact(
            name=name,
            plan=f"fleet.{name}.json",
            candidate=candidate,
            target=found[candidate].job.target.name,
            format=found[candidate].runtime.format,
            size=found[candidate].size,
            serves=[target for target, by in serving.items() if by == candidate],
        )
        for candidate, name in names.items()
    ]
    members = [
        Member(
            target=job.target.name,
            given=typed,
            limits=_stated(job.limits),
            artefact=names[serving[job.target.name]],
            verdict=at[job.target.name][serving[job.target.name]],
            alone=alone[job.target.name],
        )
        for job, typed in zip(jobs, request.targets, strict=True)
    ]
    result = Fleet(
        model_hash=first.model.sha256,
        data_hash=first.calibration_data.sha256,
        minimize=request.minimize,
        why=_why(len(artefacts), len(jobs), len(found)),
        artefacts=artefacts,
        targets=members,
        candidates=[considered(one, [at[target][name] for target in at]) for name, one in found.items()],
        given=made_from,
        notes=list(dict.fromkeys(text for job in jobs for text in job.warnings)),
    )
    plans = {
        name: found[candidate].plan.model_copy(update={"given": made_from, "rules": list(request.rules)})
        for candidate, name in names.items()
    }
    return result, plans


def _names(chosen: Sequence[Candidate]) -> dict[str, str]:
    """By candidate, a name after its format: `onnx`, and `onnx-2` for a second one."""
    seen: dict[str, int] = {}
    names = {}
    for one in chosen:
        form = one.runtime.format
        seen[form] = seen.get(form, 0) + 1
        names[one.name] = form if seen[form] == 1 else f"{form}-{seen[form]}"
    return names


def _why(artefacts: int, targets: int, tried: int) -> str:
    files = f"{artefacts} artefact{'s' if artefacts > 1 else ''}"
    if artefacts == 1:
        return f"{files} for {targets} targets, the best of {tried} candidates that serves them all"
    fewer = "no single one" if artefacts == 2 else f"no {artefacts - 1}"
    return f"{files} for {targets} targets: {fewer} of the {tried} candidates could serve them all"


def _stated(limits: Limits) -> dict[str, str]:
    stated = {"max_drop": limits.max_drop, "max_latency": limits.max_latency, "max_size": limits.max_size}
    units = {"max_drop": "", "max_latency": " s", "max_size": " bytes"}
    return {name: f"{value}{units[name]}" for name, value in stated.items() if value is not None}
