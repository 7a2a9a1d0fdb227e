"""A planned fleet becomes artefacts: each is built once, and validated for every target that it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgeq.build import Written, judge, write
from edgeq.case import Case
from edgeq.errors import UsageError
from edgeq.export.artifact import Exporter
from edgeq.files import scratch_folder, staged_directory, write_json
from edgeq.limits import Limits
from edgeq.lock import versions_now, write_lock
from edgeq.planning.explain.follow import planned_choices, tell_contradictions
from edgeq.plans.fleet import Artefact, Fleet, Member
from edgeq.plans.plan import Plan, refuse_other
from edgeq.prepare import Aim, Job, following, prepare, take_aim
from edgeq.progress import Clock
from edgeq.records.schema import Report
from edgeq.registry.load import load_target
from edgeq.report.conclude import VERSIONED, Built, conclude, write_build, write_reports
from edgeq.request import takes_fields_of


class FleetReport(BaseModel):
    """What became of a fleet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fleet: Fleet
    folders: dict[str, str]
    """By target, the folder of its report, relative to that of the build."""
    reports: dict[str, Report]
    """By target."""


@dataclass(frozen=True, kw_only=True)
class FleetDeployRequest(Case):
    """What a fleet is built from.

    Attributes:
        fleet, plans: see `edgeq.plans.fleet.read_fleet`. They say what is rewritten.
        out: folder of the build.
        limits: what the artefacts must hold at every target, or by target; where one does not run here, only the size
            is judged.
        overwrite: replace an earlier build in `out`.
    """

    fleet: Fleet
    plans: Mapping[str, Plan]
    out: str | Path
    limits: Limits | Mapping[str, Limits] | None = None
    overwrite: bool = False


@takes_fields_of(FleetDeployRequest)
def deploy_fleet(request: FleetDeployRequest) -> FleetReport:
    """Builds every artefact of a fleet once, and validates each for every target that it serves and that runs here.

    `out` appears whole or not at all. It holds a folder for each artefact, which is a build as `edgeq.deploy` makes it,
    with the report of the first target that it serves; reports of further targets are in folders of theirs below it.

    The arguments are the fields of `FleetDeployRequest` and `edgeq.case.Case`.

    Raises:
        UsageError: wrong arguments or data, or the fleet was planned for another model.
        UnsupportedError: the model cannot be handled.
        DeviceError: a device or runtime failed.
    """
    fleet, plans = request.fleet, request.plans
    aims = _aims(request)
    makers = {a.name: _aim_of(a, fleet, aims) for a in fleet.artefacts}
    case = replace(request, rewrites=_rewrites(request))
    clock = Clock(request.progress)
    with (
        staged_directory(Path(request.out), overwrite=request.overwrite) as folder,
        scratch_folder() as scratch,
    ):
        every = prepare(case, [*aims.values(), *makers.values()], clock)
        jobs = dict(zip(aims, every[: len(aims)], strict=True))
        made_by = dict(zip(makers, every[len(aims) :], strict=True))
        net = every[0].model
        for plan in plans.values():
            refuse_other(plan, model_hash=net.sha256, layers=[group.name for group in net.groups])
        exporter = Exporter(net, scratch, every[0].cache)
        found: dict[str, tuple[Path, Report]] = {}
        for artefact in fleet.artefacts:
            plan = plans[artefact.name]
            job = following(replace(made_by[artefact.name], clock=clock.copy()), plan)
            found |= _build(artefact, plan, job, jobs, exporter, folder / artefact.name)
        artefacts = [a.model_copy(update={"plan": f"{a.name}/plan.json"}) for a in fleet.artefacts]
        built = fleet.model_copy(update={"artefacts": artefacts})
        _seal(folder, built, every[0])
    places = {target: place.relative_to(folder).as_posix() for target, (place, _) in found.items()}
    return FleetReport(fleet=built, folders=places, reports={target: report for target, (_, report) in found.items()})


def _rewrites(request: FleetDeployRequest) -> Mapping[str, Mapping[str, float]]:
    """What the plans say is rewritten, all of them alike."""
    if request.smooth_quant != "auto" or request.rewrites is not None:
        raise UsageError("a plan says itself what is rewritten", remedy="leave smooth_quant away, or edit the plans")
    first, *others = [plan.rewrites for plan in request.plans.values()]
    if any(other != first for other in others):
        raise UsageError("its plans rewrite different values", remedy="give all of them the same rewrites")
    return first


def _build(
    artefact: Artefact, plan: Plan, job: Job, jobs: Mapping[str, Job], exporter: Exporter, place: Path
) -> dict[str, tuple[Path, Report]]:
    """An artefact, and what became of it at each target that it serves: the folder of the report, and the report.

    Args:
        job: of the target that it was planned for.
        jobs: by target.
    """
    place.mkdir()
    choices = planned_choices(plan, job, job.runtimes[0])
    written = write(job, job.runtimes[0], exporter, place, choices, plan.float_precision)
    tell_contradictions(plan, written.plan, job)
    found: dict[str, tuple[Path, Report]] = {}
    # one that runs here comes first: its answers are kept with the build
    for target in sorted(artefact.serves, key=lambda target: jobs[target].device is None):
        own = place / target if found else place
        there = replace(jobs[target], clock=job.clock.copy(), warnings=[*job.warnings, *jobs[target].warnings])
        found[target] = own, _validated(there, written, own, first=own == place)
    return found


def _aims(request: FleetDeployRequest) -> dict[str, Aim]:
    """By target."""
    members, limits = request.fleet.targets, request.limits
    held = limits if isinstance(limits, Mapping) else dict.fromkeys((m.target for m in members), limits)
    return {
        m.target: _aim_at(m, request.plans[m.artefact].format, held.get(m.target) or Limits(), request.threads)
        for m in members
    }


def _aim_at(member: Member, form: str, limits: Limits, threads: int) -> Aim:
    aim = _aim(member.given, form, limits, threads)
    if aim.target.name != member.target:
        raise UsageError(
            f"{member.given} is the target {aim.target.name}, and the fleet was planned for {member.target}",
            remedy="make the fleet anew with edgeq plan",
        )
    return aim


def _aim(given: str, form: str, limits: Limits, threads: int) -> Aim:
    aim = take_aim(load_target(given), form, threads=threads, limits=limits)
    # nothing but the size is known of what does not run here
    return aim if aim.device is not None else replace(aim, limits=Limits(max_size=limits.max_size))


def _aim_of(artefact: Artefact, fleet: Fleet, aims: Mapping[str, Aim]) -> Aim:
    """The target that an artefact was planned for; the artefact need not serve it."""
    aim = aims[artefact.target]
    if aim.runtimes[0].format == artefact.format:
        return aim
    given = next(member.given for member in fleet.targets if member.target == artefact.target)
    return _aim(given, artefact.format, aim.limits, aim.threads)


def _validated(job: Job, written: Written, place: Path, *, first: bool) -> Report:
    """The report of an artefact at one target, written to a folder; the first one makes that folder a build."""
    runtime = job.runtimes[0]
    built: Built = judge(job, runtime, written)
    report = conclude(
        job.model,
        job.target,
        job.target.default_profile,
        [built.build],
        keep_all=False,
        warnings=job.warnings,
        data=job.data,
        seconds=job.clock.seconds,
    )
    if first:
        write_build(place, report, [built], job.evaluation, keep_all=False)
    else:
        place.mkdir()
        write_reports(place, report)
    return report


def _seal(folder: Path, fleet: Fleet, job: Job) -> None:
    """Writes the fleet file and a lock over everything, which also makes the folder one that may be overwritten."""
    write_json(folder / "fleet.json", fleet)
    data = {role: samples.sha256 for role, samples in job.data.items()}
    recipes = {role: samples.recipe for role, samples in job.data.items() if samples.recipe}
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    write_lock(
        folder,
        model=fleet.model_hash,
        data=data,
        recipes=recipes,
        plans={},
        files=files,
        versions=versions_now(VERSIONED),
        golden=None,
    )
