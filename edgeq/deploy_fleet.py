"""A planned fleet becomes artefacts: each is built once, and validated for every target that it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from edgeq.build import Written, judge, write
from edgeq.case import Case
from edgeq.data.dataset import Dataset
from edgeq.devices import Device
from edgeq.errors import UsageError
from edgeq.evaluation.metric import Metric
from edgeq.export.artifact import Exporter
from edgeq.files import scratch_folder, staged_directory, write_json
from edgeq.limits import Limits
from edgeq.lock import versions_now, write_lock
from edgeq.model.model import Model
from edgeq.planning.explain.follow import planned_choices, tell_contradictions
from edgeq.plans.fleet import Artefact, Fleet, Member
from edgeq.plans.plan import Plan, refuse_other
from edgeq.prepare import Aim, Job, prepare, take_aim
from edgeq.progress import Clock, Progress, Silent
from edgeq.records.schema import Report
from edgeq.registry.load import load_target
from edgeq.report.conclude import VERSIONED, Built, conclude, write_build, write_reports


class FleetReport(BaseModel):
    """What became of a fleet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fleet: Fleet
    folders: dict[str, str]
    """By target, the folder of its report, relative to that of the build."""
    reports: dict[str, Report]
    """By target."""


def deploy_fleet(
    model: str | Path | torch.nn.Module | Model,
    *,
    fleet: Fleet,
    plans: Mapping[str, Plan],
    calibration: str | Path | Dataset,
    evaluation: str | Path | Dataset | None = None,
    out: str | Path,
    preprocess: str | None = None,
    metric: str | Metric | None = None,
    limits: Limits | Mapping[str, Limits] | None = None,
    threads: int = 1,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FleetReport:
    """Builds every artefact of a fleet once, and validates each for every target that it serves and that runs here.

    `out` appears whole or not at all. It holds a folder for each artefact, which is a build as `edgeq.deploy` makes it,
    with the report of the first target that it serves; reports of further targets are in folders of theirs below it.

    Args:
        fleet, plans: see `edgeq.plans.fleet.read_fleet`.
        limits: what the artefacts must hold at every target, or by target; where one does not run here, only the size
            is judged.

    The other arguments are those of `edgeq.deploy`.

    Raises:
        UsageError: wrong arguments or data, or the fleet was planned for another model.
        UnsupportedError: the model cannot be handled.
        DeviceError: a device or runtime failed.
    """
    held = limits if isinstance(limits, Mapping) else dict.fromkeys((m.target for m in fleet.targets), limits)
    aims = {
        m.target: _aim_at(m, plans[m.artefact].format, held.get(m.target) or Limits(), threads) for m in fleet.targets
    }
    makers = {a.name: _aim_of(a, fleet, aims) for a in fleet.artefacts}
    smooth = next(iter(plans.values())).smooth_quant
    if any(plan.smooth_quant != smooth for plan in plans.values()):
        raise UsageError("its plans smooth different values", remedy="give all of them the same smooth_quant")
    case = Case(model, calibration, evaluation, preprocess, metric, inputs, arch, trust_pickle, smooth)
    clock = Clock(progress or Silent())
    with (
        staged_directory(Path(out), overwrite=overwrite) as folder,
        scratch_folder() as scratch,
    ):
        every = prepare(case, [*aims.values(), *makers.values()], clock)
        jobs = dict(zip(aims, every[: len(aims)], strict=True))
        made_by = dict(zip(makers, every[len(aims) :], strict=True))
        net = every[0].model
        for plan in plans.values():
            refuse_other(plan, model_hash=net.sha256, layers=[group.name for group in net.groups])
        exporter = Exporter(net, scratch, every[0].cache)
        reports: dict[str, Report] = {}
        places: dict[str, str] = {}
        for artefact in fleet.artefacts:
            place = folder / artefact.name
            place.mkdir()
            job = replace(made_by[artefact.name], clock=Clock(clock.progress))
            plan = plans[artefact.name]
            choices = planned_choices(plan, job, job.runtimes[0])
            written = write(job, job.runtimes[0], exporter, place, choices, plan.float_precision)
            tell_contradictions(plan, written.plan, job)
            # one that runs here comes first: its answers are kept with the build
            serves = sorted(artefact.serves, key=lambda target: not isinstance(jobs[target].device, Device))
            for target in serves:
                own = place if target == serves[0] else place / target
                there = replace(jobs[target], clock=Clock(clock.progress))
                before = clock.seconds | job.clock.seconds
                reports[target] = _validated(there, job.warnings, before, written, own, first=own == place)
                places[target] = own.relative_to(folder).as_posix()
        artefacts = [a.model_copy(update={"plan": f"{a.name}/plan.json"}) for a in fleet.artefacts]
        built = fleet.model_copy(update={"artefacts": artefacts})
        _seal(folder, built, every[0])
    return FleetReport(fleet=built, folders=places, reports=reports)


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
    return aim if isinstance(aim.device, Device) else replace(aim, limits=Limits(max_size=limits.max_size))


def _aim_of(artefact: Artefact, fleet: Fleet, aims: Mapping[str, Aim]) -> Aim:
    """The target that an artefact was planned for; the artefact need not serve it."""
    aim = aims[artefact.target]
    if aim.runtimes[0].format == artefact.format:
        return aim
    given = next(member.given for member in fleet.targets if member.target == artefact.target)
    return _aim(given, artefact.format, aim.limits, aim.threads)


def _validated(
    job: Job, warnings: Sequence[str], before: Mapping[str, float], written: Written, place: Path, *, first: bool
) -> Report:
    """The report of an artefact at one target, written to a folder; the first one makes that folder a build.

    Args:
        warnings, before: what there was to warn of until now, and what took how long.
    """
    runtime = job.runtimes[0]
    built: Built = judge(job, runtime, written)
    data = {"calibration": job.calibration_data} | ({"evaluation": job.evaluation} if job.evaluation else {})
    report = conclude(
        job.model,
        job.target,
        job.target.default_profile,
        [built.build],
        keep_all=False,
        warnings=[*warnings, *job.warnings],
        data=data,
        seconds={**before, **job.clock.seconds},
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
    data = {"calibration": job.calibration_data.sha256}
    if job.evaluation is not None:
        data["evaluation"] = job.evaluation.sha256
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    write_lock(
        folder, model=fleet.model_hash, data=data, plans={}, files=files, versions=versions_now(VERSIONED), golden=None
    )
