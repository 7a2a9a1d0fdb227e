"""Candidates for a fleet: the plans that its targets find, each for itself and with what all of them offer; and what
each of these is at each target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from edgeq.cache import content_key
from edgeq.devices import Device
from edgeq.errors import EdgeqError, GateError, UsageError
from edgeq.export.artifact import Exporter
from edgeq.limits import Limits, exceeded
from edgeq.planning.fleet.offered import offered_too, refusal
from edgeq.planning.proof.allowed import allowed_loss
from edgeq.planning.proof.loop import find
from edgeq.planning.proof.outcome import Outcome, rank
from edgeq.planning.proof.proving import prove
from edgeq.planning.proof.record import written
from edgeq.planning.proof.search import Search, searches
from edgeq.planning.proof.wider import in_kinds, why_wider
from edgeq.planning.sensitivity.losses import arithmetic
from edgeq.plans.fleet import Considered, Verdict
from edgeq.plans.plan import Plan, Proof, TensorPlan
from edgeq.plans.rules import Rule
from edgeq.prepare import Job, answered
from edgeq.registry.schema import Runtime


@dataclass(frozen=True)
class Candidate:
    """A plan that may serve several targets.

    Attributes:
        job: of the target whose kernels it was planned for; `runtime` is that target's.
        search: where it was found, and proved if that target's device is here.
        common: whether it was solved with what all targets of its format offer.
    """

    name: str
    job: Job
    runtime: Runtime
    plan: Plan
    search: Search
    common: bool

    @property
    def choices(self) -> dict[str, str]:
        return {layer.name: layer.choice for layer in self.plan.layers}

    @property
    def size(self) -> int:
        """Bytes of its files."""
        assert self.plan.planned is not None and self.plan.planned.size is not None
        return self.plan.planned.size

    @property
    def proof(self) -> Proof | None:
        return None if self.plan.planned is None else self.plan.planned.proof


@dataclass(frozen=True)
class Workshop:
    """What all builds of a fleet share: the exporter of the model, and folders that nobody else writes to."""

    exporter: Exporter
    folders: Iterator[Path]


def workshop(exporter: Exporter, scratch: Path) -> Workshop:
    def folders() -> Iterator[Path]:
        for number in count(1):
            folder = scratch / f"part{number}"
            folder.mkdir()
            yield folder

    return Workshop(exporter, folders())


def candidates(jobs: Sequence[Job], shop: Workshop, minimize: str, rules: Sequence[Rule]) -> list[Candidate]:
    """The best plan of every runtime of every target, and beside it the best one of what every target offers that has
    its format; with activations of more bits where those of the preferred type cost too much accuracy.

    A target whose device is not here is planned for as `edgeq plan` does it, with what can be modelled.

    Raises:
        EdgeqError: a target has no candidate of its own, and why.
    """
    found: list[Candidate] = []
    for job in jobs:
        errors: list[EdgeqError] = []
        with job.clock.stage(f"plan for {job.target.name}"):
            for runtime in job.runtimes:
                try:
                    found += _of_runtime(job, runtime, jobs, shop, minimize, rules)
                except EdgeqError as error:
                    job.clock.progress.note(f"{job.target.name}, {runtime.format}: {error.cause}")
                    errors.append(error)
        if len(errors) == len(job.runtimes):
            raise errors[0]
    return found


def judged(candidate: Candidate, jobs: Sequence[Job], shop: Workshop) -> dict[str, Verdict]:
    """By target, what a candidate is there: measured if the target's device is here, and else what its file says and
    what was measured on the others."""
    found: dict[str, Verdict] = {}
    for job in sorted(jobs, key=lambda job: job.device is None):
        name, runtime = job.target.name, _reader(candidate.runtime, job)
        because = _not_offered(candidate, job, runtime)
        if runtime is None or because:
            found[name] = Verdict(target=name, status="not offered", because=because, runtime=None, device=None)
        elif job.device is not None:
            found[name] = _measured(candidate, job, job.device, runtime, shop)
        else:
            found[name] = _away(candidate, job, runtime, [v.proof for v in found.values() if v.proof is not None])
    return found


def _measured(candidate: Candidate, job: Job, device: Device, runtime: Runtime, shop: Workshop) -> Verdict:
    try:
        proof = _proved_at(candidate, job, device, runtime, shop)
    except EdgeqError as error:
        return Verdict(
            target=job.target.name, status="missed", because=error.cause, runtime=runtime.name, device=device.name
        )
    untimed = device.emulated and job.limits.max_latency is not None
    missed = misses(replace(job.limits, max_latency=None) if untimed else job.limits, proof)
    told = f"measured on {device.name}" + (", which has no clock for the limit on latency" if untimed else "")
    return Verdict(
        target=job.target.name,
        status="missed" if missed else "not validated" if untimed else "held",
        because=missed or told,
        runtime=runtime.name,
        device=device.name,
        emulated=device.emulated,
        proof=proof.model_copy(update={"held": not missed}),
    )


def _away(candidate: Candidate, job: Job, runtime: Runtime, elsewhere: Sequence[Proof]) -> Verdict:
    lost = (misses(replace(job.limits, max_latency=None, max_size=None), proof) for proof in elsewhere)
    unknown = "" if job.limits.max_latency is None else "; nobody measured its latency"
    most = job.limits.max_size
    large = "" if most is None or candidate.size <= most else _over("size in bytes", candidate.size, most)
    missed = large or next(filter(None, lost), "")
    doubtful = not elsewhere and _predicted_too_lossy(candidate, job)
    told = missed or ("its loss is predicted to be too large" if doubtful else "its target file has every kernel")
    return Verdict(
        target=job.target.name,
        status="missed" if missed else "not validated",
        because=f"{job.no_device_because}; {told}{unknown}",
        runtime=runtime.name,
        device=None,
        doubtful=doubtful,
    )


def _predicted_too_lossy(candidate: Candidate, job: Job) -> bool:
    allowed, planned = allowed_loss(answered(job)) if job.limits.max_drop is not None else None, candidate.plan.planned
    return allowed is not None and planned is not None and planned.predicted["loss"] > allowed


def considered(candidate: Candidate, verdicts: Sequence[Verdict]) -> Considered:
    return Considered(
        name=candidate.name,
        target=candidate.job.target.name,
        runtime=candidate.runtime.name,
        format=candidate.runtime.format,
        common=candidate.common,
        size=candidate.size,
        verdicts=list(verdicts),
    )


def at_device(candidate: Candidate, job: Job, runtime: Runtime, shop: Workshop) -> Search:
    """The candidate's search, moved to another job's device: the same artefacts, run there."""
    assert job.device is not None
    key = content_key(
        "elsewhere",
        1,
        model=job.model.fingerprint,
        calibration=job.calibration_data.sha256,
        stored=stored(candidate.plan),
        guarded=candidate.runtime.rounds_float_layers,
        # beside the artefact, the preferred kernels of its own runtime are timed
        preferred=None if job.timed is None else arithmetic(candidate.runtime),
        runtime=runtime.name,
        device=job.device.name,
        environment=job.device.environment(runtime.name),
        threads=job.threads,
    )
    return replace(
        candidate.search,
        job=job,
        runtime=candidate.search.runtime.model_copy(update={"name": runtime.name}),
        folder=next(shop.folders),
        key=key,
        made={},
        proofs={},
    )


def stored(plan: Plan) -> list[Any]:
    """What a plan's artefact holds: equal for plans of one artefact, whatever led to them."""

    def grid(tensor: TensorPlan | None) -> list[Any]:
        return [] if tensor is None else [tensor.dtype, tensor.scale, tensor.zero_point]

    layers = [
        [layer.choice, layer.weight and layer.weight.model_dump(mode="json"), grid(layer.output)]
        for layer in plan.layers
    ]
    return [plan.format, plan.float_precision, {name: grid(t) for name, t in plan.inputs.items()}, layers]


def misses(limits: Limits, proof: Proof) -> str:
    """The limits that a build misses, or that could not be measured; empty if all held."""
    told = {
        "recognizable": f"beyond recognition: {proof.unrecognizable}",
        "drop": _over(f"drop of {proof.metric}", proof.drop, str(limits.max_drop)),
        "latency": _over("latency in seconds", proof.latency, limits.max_latency),
        "size": _over("size in bytes", proof.size, limits.max_size),
    }
    return "; ".join(told[limit] for limit in exceeded(limits, proof.measured))


def _over(what: str, value: float | None, most: object) -> str:
    return f"{what}: {'not measured' if value is None else f'{value:.4g}'}, at most {most}"


def _of_runtime(
    job: Job, runtime: Runtime, jobs: Sequence[Job], shop: Workshop, minimize: str, rules: Sequence[Rule]
) -> list[Candidate]:
    others = [other for other in jobs if other is not job]
    own: list[Outcome] = []
    common: list[Outcome] = []
    note = job.clock.progress.note

    def opened(typed: Runtime) -> list[Search]:
        return _searches(_plannable(job), typed, shop, minimize, rules)

    def why() -> str:
        return next(filter(None, (why_wider(min(group, key=rank)) for group in (own, common) if group)), "")

    for _, _, searched in in_kinds(runtime, opened, why, note):
        try:
            own += map(_found, searched)
            common += [_found(left) for one in searched if (left := _of_all(one, runtime, others, shop)) is not None]
        except EdgeqError as error:
            if not own:
                raise
            note(f"{job.target.name}, {runtime.format}: {error.cause}")  # what was found without these stands
            break
    found = []
    for group, is_common in ((own, False), (common, True)):
        if group:
            best = min(group, key=rank)
            name = f"{job.target.name}/{runtime.format}" + ("/common" if is_common else "")
            found.append(Candidate(name, job, runtime, written(best), best.search, is_common))
    return found


def _searches(job: Job, runtime: Runtime, shop: Workshop, minimize: str, rules: Sequence[Rule]) -> list[Search]:
    """The searches of a runtime; without a limit on latency where nobody knows that of the device, which then is not
    validated in any case."""
    try:
        return searches(job, runtime, shop.exporter, minimize, rules)
    except UsageError as error:
        if job.timed is not None or job.limits.max_latency is None:
            raise
        job.clock.progress.note(f"{error.cause}; planned without that limit")
        untimed = replace(job, limits=replace(job.limits, max_latency=None))
        return searches(untimed, runtime, shop.exporter, minimize, rules)


def _plannable(job: Job) -> Job:
    """The job of a target whose emulator is not set up as that of one that nothing can run."""
    if job.device is not None:
        return job
    away = replace(job, target=job.target.model_copy(update={"execution": "none"}))
    return answered(away) if job.limits.max_drop is not None else away


def _found(search: Search) -> Outcome:
    """The best plan of a search; the preferred kernels everywhere where none is expected to hold the limits."""
    try:
        return find(search)
    except GateError as refused:
        choices, notes = search.usual, [*search.notes, refused.cause]
        proof = None if search.job.device is None else prove(search, choices)
        return Outcome(search, choices, proof, search.built(choices).size if proof is None else proof.size, notes=notes)


def _of_all(search: Search, runtime: Runtime, others: Sequence[Job], shop: Workshop) -> Search | None:
    """The search among the choices that every target offers which reads its artefacts; None where these are all that it
    has, where they leave a layer with none, or where no other target reads them."""
    readers = [
        (other, reader)
        for other in others
        if (reader := _reader(runtime, other)) is not None and not refusal(runtime, reader, search.precision)
    ]
    left = search.allowed
    for _, reader in readers:
        left = offered_too(search.job.model, runtime, reader, left)
    if left == search.allowed or not all(left.values()):
        return None
    problem = search.problem
    options = {name: {choice: problem.options[name][choice] for choice in left[name]} for name in problem.options}
    limits = [search.job.limits, *(other.limits for other, _ in readers)]
    return replace(
        search,
        job=replace(search.job, limits=_tightest(limits)),
        problem=replace(problem, options=options),
        folder=next(shop.folders),
        made={},
        proofs={},
        notes=(*search.notes, f"only what {', '.join(other.target.name for other, _ in readers)} also offers"),
    )


def _tightest(limits: Sequence[Limits]) -> Limits:
    """The first limits, with the least drop and size that any of them allows. A latency is one device's own, and drops
    are compared where they are in one unit."""
    first = limits[0]
    drops = [one.max_drop for one in limits if one.max_drop is not None]
    sizes = [one.max_size for one in limits if one.max_size is not None]
    alike = drops and all(drop.percent == drops[0].percent for drop in drops)
    return replace(
        first,
        max_drop=min(drops, key=lambda drop: drop.value) if alike else first.max_drop,
        max_size=min(sizes, default=None),
    )


def _reader(runtime: Runtime, job: Job) -> Runtime | None:
    """The runtime of a target that reads another one's artefacts."""
    return next((r for r in job.runtimes if r.format == runtime.format), None)


def _not_offered(candidate: Candidate, job: Job, reader: Runtime | None) -> str:
    if candidate.job.target.name == job.target.name:
        return ""
    if reader is None:
        return f"it has no runtime that reads {candidate.runtime.format}"
    if because := refusal(candidate.runtime, reader, candidate.plan.float_precision):
        return because
    options = {name: (choice,) for name, choice in candidate.choices.items()}
    offered = offered_too(job.model, candidate.runtime, reader, options)
    lacking = [name for name, left in offered.items() if not left]
    if not lacking:
        return ""
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    first = candidate.choices[lacking[0]]
    return f"{reader.name} there has no kernel for {lacking[0]}{more} as stored ({first})"


def _proved_at(candidate: Candidate, job: Job, device: Device, reader: Runtime, shop: Workshop) -> Proof:
    search, proof = candidate.search, candidate.proof
    there = search.job.device
    if there is not None and (there.name, search.runtime.name) == (device.name, reader.name) and proof is not None:
        return proof
    with job.clock.stage(f"{candidate.name} on {device.name}"):
        return prove(at_device(candidate, job, reader, shop), candidate.choices)
