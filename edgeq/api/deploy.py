"""The main job: load -> calibrate -> quantize -> export -> audit -> validate -> report, readable top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeq.build import judge, write
from edgeq.errors import EdgeqError, UsageError, foreseen
from edgeq.evaluation.alternating import alternating
from edgeq.export.artifact import Exporter, artifact_files
from edgeq.export.emitters import EMITTERS, Proven, emitter
from edgeq.files import scratch_folder, staged_directory
from edgeq.planning.explain.follow import planned_choices, tell_contradictions
from edgeq.plans.plan import FloatPrecision, Plan
from edgeq.prepare import Aim, Job, following, prepare, take_aim
from edgeq.progress import Clock
from edgeq.records.schema import Report
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime
from edgeq.report.build import failed_build
from edgeq.report.conclude import Built, conclude, write_build
from edgeq.request import Request, takes_fields_of


@dataclass(frozen=True, kw_only=True)
class DeployRequest(Request):
    """What a build is made from.

    Attributes:
        out: folder of the build: artefacts, plan, report, lock.
        format: `all` keeps every format of the target.
        io: types at the model's ends, if not the target's.
        emit: what else to write beside the artefact: `c`, `context` (see `edgeq.export.emitters`).
        plan: which choice each layer gets, and what is rewritten; without it, the runtime's preferred kernels. Its
            format is built.
        overwrite: replace an earlier build in `out`.
    """

    out: str | Path
    io: Literal["float", "integer"] | None = None
    emit: str | None = None
    plan: Plan | None = None
    overwrite: bool = False


@takes_fields_of(DeployRequest)
def deploy(request: DeployRequest) -> Report:
    """Takes a trained model to an artefact that is proven on its target.

    The arguments are the fields of `DeployRequest`, `edgeq.request.Request` and `edgeq.case.Case`.

    Returns:
        The report, which is also in `out`. Its verdict says whether every limit held.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model, or every format of it, cannot be handled.
        DeviceError: a device or runtime failed, and no format could be validated.
    """
    plan, keep_all = request.plan, request.format == "all"
    aim = _aim(request) if plan is None else _aim_of(plan, request)
    if request.emit is not None:
        _refuse_unproven(request, aim)
    case = request if plan is None else replace(request, rewrites=plan.rewrites)
    with (
        staged_directory(Path(request.out), overwrite=request.overwrite) as folder,
        scratch_folder() as scratch,
    ):
        (job,) = prepare(case, [aim], Clock(request.progress))
        job = job if plan is None or request.effort is not None else following(job, plan)
        built = _in_turns(job, _builds(job, plan, scratch, folder))
        if request.emit is not None:
            built = [_emitted(job, one, request.emit, folder) for one in built]
        report = conclude(
            job.model,
            aim.target,
            None if aim.profile is None else aim.profile.name,
            [b.build for b in built],
            keep_all=keep_all,
            warnings=job.warnings,
            data=job.data,
            seconds=job.clock.seconds,
        )
        write_build(folder, report, built, job.evaluation, keep_all=keep_all)
        return report


def _refuse_unproven(request: DeployRequest, aim: Aim) -> None:
    """Refuses sources without a golden answer in them, before any work.

    Raises:
        UsageError, MissingExtraError: see `emitter`; or nothing could be run.
    """
    emitter(request.emit or "", aim.runtimes, aim.profile)
    if request.evaluation is None or aim.device is None:
        why, remedy = ("no evaluation data was given", "give --eval")
        if aim.device is None:
            why, _, remedy = aim.no_device_because.partition("; ")
        raise UsageError(f"there is no answer to emit: {why}", where="--emit", remedy=remedy)


def _emitted(job: Job, built: Built, name: str, folder: Path) -> Built:
    """With the sources beside the artefact, if the emitter serves its runtime."""
    one = EMITTERS[name]
    if built.sample is None or built.build.runtime not in one.runtimes:
        return built
    artifact, inputs = built.sample
    path = artifact.path if built.build.npu is None else folder / built.build.npu.file
    outputs = dict(zip(job.model.output_names, (o[:1] for o in built.outputs), strict=True))
    with job.clock.stage(f"emit {name}"), foreseen(f"emit {name}"):
        files = one.emit(Proven(path, inputs, outputs, built.build.arena_bytes, job.profile))
    sources = {file.name: file.stat().st_size for file in files}
    return replace(built, build=built.build.model_copy(update={"sources": sources}))


def _aim(request: DeployRequest) -> Aim:
    return take_aim(
        load_target(request.target),
        request.format,
        io=request.io,
        device=request.device,
        profile=request.profile,
        threads=request.threads,
        limits=request.limits,
    )


def _aim_of(plan: Plan, request: DeployRequest) -> Aim:
    """The aim of a plan.

    Raises:
        UsageError: something else is asked for than what the plan says.
    """
    target = load_target(request.target).name
    if plan.target != target:
        raise UsageError(f"the plan was made for {plan.target}, not for {target}", remedy=f"--target {plan.target}")
    if request.method is not None:
        remedy = "leave --method away, edit the plan, or let --effort choose anew"
        raise UsageError("a plan says itself how weights are rounded", remedy=remedy)
    if request.smooth_quant != "auto" or request.rewrites is not None:
        raise UsageError("a plan says itself what is rewritten", remedy="leave --smooth-quant away, or edit the plan")
    if request.format not in ("auto", plan.format):
        raise UsageError(f"the plan is for {plan.format}, not for {request.format}", remedy="leave --format away")
    aim = _aim(replace(request, format=plan.format))
    if plan.runtime not in [r.name for r in aim.runtimes]:
        raise UsageError(
            f"it is for {plan.runtime}, and {target} has none that runs {plan.format}",
            where="plan",
            remedy="plan anew with edgeq plan",
        )
    return aim


def _builds(job: Job, plan: Plan | None, scratch: Path, folder: Path) -> list[Built]:
    """Every format.

    Raises:
        EdgeqError: all of them failed; the error of the first one.
    """
    exporter = Exporter(job.model, scratch, job.cache)
    choices = None if plan is None else planned_choices(plan, job, job.runtimes[0])
    precision: FloatPrecision = "float32" if plan is None else plan.float_precision
    built = [_build(job, r, exporter, folder, choices, precision) for r in job.runtimes]
    for one in built:
        if plan is not None and isinstance(one.plan, Plan):
            tell_contradictions(plan, one.plan, job)
    if all(b.error for b in built):
        raise next(b.error for b in built if b.error)
    return built


def _in_turns(job: Job, built: list[Built]) -> list[Built]:
    """With what the formats take in turns, where there are several that were timed: which one is kept hangs on it."""
    timed = {b.build.format: b.sample for b in built if b.build.speed is not None and b.sample is not None}
    if len(timed) < 2 or job.device is None:
        return built
    with job.clock.stage("formats in turns") as steps:
        seconds = alternating(job.device, timed, steps, threads=job.threads)
    return [
        replace(b, build=b.build.model_copy(update={"seconds_in_turns": seconds.get(b.build.format)})) for b in built
    ]


def _build(
    job: Job,
    runtime: Runtime,
    exporter: Exporter,
    folder: Path,
    choices: Mapping[str, str] | None,
    precision: FloatPrecision,
) -> Built:
    """One format. What fails for this format alone, in whatever way, is kept as its error."""
    try:
        with foreseen(runtime.format):
            return judge(job, runtime, write(job, runtime, exporter, folder, choices, precision))
    except EdgeqError as error:
        # one format of several may fail: the report says why, and the others go on
        if len(job.runtimes) == 1:
            raise
        job.clock.progress.note(f"{runtime.format}: {error.cause}")
        for file in artifact_files(runtime.format, folder):  # what failed is not what was proven
            file.unlink(missing_ok=True)
        return Built(failed_build(runtime, job.device, error), None, [], [], error)
