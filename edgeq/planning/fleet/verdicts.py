"""What a candidate is at each target of a fleet: measured if the target's device is here, and else what its file says
and what was measured on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgeq.cache import content_key
from edgeq.devices import Device
from edgeq.errors import EdgeqError
from edgeq.limits import Limits, exceeded
from edgeq.planning.fleet.candidates import Candidate, new_folder, reader
from edgeq.planning.fleet.offered import offered_too, refusal
from edgeq.planning.proof.allowed import allowed_loss
from edgeq.planning.proof.proving import prove
from edgeq.planning.proof.search import Search
from edgeq.plans.fleet import Verdict
from edgeq.plans.plan import Proof
from edgeq.prepare import Job, answered
from edgeq.registry.schema import Runtime, arithmetic


def judged(candidate: Candidate, jobs: Sequence[Job]) -> dict[str, Verdict]:
    """By target, what a candidate is there."""
    found: dict[str, Verdict] = {}
    for job in sorted(jobs, key=lambda job: job.device is None):
        name, runtime = job.target.name, reader(candidate.plan.format, job)
        because = _not_offered(candidate, job, runtime)
        if runtime is None or because:
            found[name] = Verdict(target=name, status="not offered", because=because, runtime=None, device=None)
        elif job.device is not None:
            found[name] = _measured(candidate, job, job.device, runtime)
        else:
            found[name] = _away(candidate, job, runtime, [v.proof for v in found.values() if v.proof is not None])
    return found


def at_device(candidate: Candidate, job: Job, device: Device, runtime: Runtime) -> Search:
    """The candidate's search, moved to another device: the same artefacts, run there."""
    own = candidate.found.search
    key = content_key(
        "elsewhere",
        2,
        model=job.model.fingerprint,
        calibration=job.calibration_data.sha256,
        stored=candidate.plan.stored,
        guarded=own.runtime.rounds_float_layers,
        # beside the artefact, the preferred kernels of its own runtime are timed
        preferred=None if device.emulated else arithmetic(own.runtime),
        runtime=runtime.name,
        device=device.name,
        environment=device.environment(runtime.name),
        threads=job.threads,
    )
    return replace(
        own,
        job=job,
        runtime=own.runtime.model_copy(update={"name": runtime.name}),
        folder=new_folder(own.exporter),
        key=key,
        made={},
        proofs={},
    )


def _measured(candidate: Candidate, job: Job, device: Device, runtime: Runtime) -> Verdict:
    search, proof = candidate.found.search, candidate.found.proof
    there = Verdict(target=job.target.name, status="missed", because="", runtime=runtime.name, device=device.name)
    here = search.job.device
    if proof is None or here is None or (here.name, search.runtime.name) != (device.name, runtime.name):
        try:
            with job.clock.stage(f"{candidate.name} on {device.name}"):
                proof = prove(at_device(candidate, job, device, runtime), candidate.found.choices)
        except EdgeqError as error:
            return there.model_copy(update={"because": error.cause})
    untimed = device.emulated and job.limits.max_latency is not None
    missed = _misses(replace(job.limits, max_latency=None) if untimed else job.limits, proof)
    told = f"measured on {device.name}" + (", which has no clock for the limit on latency" if untimed else "")
    return there.model_copy(
        update={
            "status": "missed" if missed else "not validated" if untimed else "held",
            "because": missed or told,
            "emulated": device.emulated,
            "proof": proof.model_copy(update={"held": not missed}),
        }
    )


def _away(candidate: Candidate, job: Job, runtime: Runtime, elsewhere: Sequence[Proof]) -> Verdict:
    most, size = job.limits.max_size, candidate.found.size
    lost = (_misses(replace(job.limits, max_latency=None, max_size=None), proof) for proof in elsewhere)
    missed = _over("size in bytes", size, most) if most is not None and size > most else next(filter(None, lost), "")
    allowed = None if elsewhere or job.limits.max_drop is None else allowed_loss(answered(job))
    doubtful = allowed is not None and candidate.found.predicted["loss"] > allowed
    told = missed or ("its loss is predicted to be too large" if doubtful else "its target file has every kernel")
    unknown = "" if job.limits.max_latency is None else "; nobody measured its latency"
    return Verdict(
        target=job.target.name,
        status="missed" if missed else "not validated",
        because=f"{job.no_device_because}; {told}{unknown}",
        runtime=runtime.name,
        device=None,
        doubtful=doubtful,
    )


def _not_offered(candidate: Candidate, job: Job, there: Runtime | None) -> str:
    plan, own, choices = candidate.plan, candidate.found.search.runtime, candidate.found.choices
    if plan.target == job.target.name:
        return ""
    if there is None:
        return f"it has no runtime that reads {plan.format}"
    if because := refusal(own, there, plan.float_precision):
        return because
    offered = offered_too(job.model, own, there, {name: (choice,) for name, choice in choices.items()})
    lacking = [name for name, left in offered.items() if not left]
    if not lacking:
        return ""
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return f"{there.name} there has no kernel for {lacking[0]}{more} as stored ({choices[lacking[0]]})"


def _misses(limits: Limits, proof: Proof) -> str:
    """The limits that a build misses, or that could not be measured; empty if all held."""
    told = {
        "recognizable": f"beyond recognition: {proof.unrecognizable}",
        "drop": _over(f"drop of {proof.metric}", proof.drop, limits.max_drop),
        "latency": _over("latency in seconds", proof.latency, limits.max_latency),
        "size": _over("size in bytes", proof.size, limits.max_size),
    }
    return "; ".join(told[limit] for limit in exceeded(limits, proof.measured))


def _over(what: str, value: float | None, most: object) -> str:
    return f"{what}: {'not measured' if value is None else f'{value:.4g}'}, at most {most}"
