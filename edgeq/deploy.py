"""The main job: load -> calibrate -> quantize -> export -> audit -> validate -> report, readable top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeq.build import judge, write
from edgeq.case import Case, Smooth
from edgeq.data.dataset import Dataset
from edgeq.devices import Device
from edgeq.errors import EdgeqError, UsageError, foreseen
from edgeq.evaluation.alternating import alternating
from edgeq.evaluation.metric import Metric
from edgeq.export.artifact import Exporter, artifact_files
from edgeq.files import scratch_folder, staged_directory
from edgeq.limits import Limits
from edgeq.model.model import Model
from edgeq.planning.explain.follow import planned_choices, tell_contradictions
from edgeq.plans.plan import FloatPrecision, Plan
from edgeq.prepare import Job, prepare, take_aim
from edgeq.progress import Clock, Progress, Silent
from edgeq.records.schema import Report
from edgeq.registry.load import load_profile, load_target
from edgeq.registry.schema import Runtime
from edgeq.report.build import failed_build
from edgeq.report.conclude import Built, conclude, write_build

if TYPE_CHECKING:
    import torch


def deploy(
    model: str | Path | torch.nn.Module | Model,
    *,
    target: str,
    calibration: str | Path | Dataset,
    evaluation: str | Path | Dataset | None = None,
    out: str | Path,
    format: str = "auto",
    preprocess: str | None = None,
    metric: str | Metric | None = None,
    limits: Limits | None = None,
    device: str | None = None,
    profile: str | None = None,
    threads: int = 1,
    io: Literal["float", "integer"] | None = None,
    plan: Plan | None = None,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    smooth_quant: Smooth = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Takes a trained model to an artefact that is proven on its target.

    Args:
        model: a file, a module or a loaded model.
        target: name of a target, or a target file.
        calibration: samples that set the ranges (see `edgeq.data.load_data`).
        evaluation: samples, with labels where there are any, that the artefact is judged on.
        out: folder of the build: artefacts, plan, report, lock.
        format: `auto` builds and measures every format of the target and keeps the best; `all` keeps them all;
            or one of `onnx`, `openvino`, `tflite`.
        preprocess: how images become inputs: a preset or a TOML file.
        metric: `package.module:function` or a loaded metric; top-1 where there are labels.
        limits: what the artefact must hold.
        device: where to run it, if not where the target says: `local`, `arm64`, ...
        profile: the concrete device, for the report.
        threads: threads of the latency runs.
        io: types at the model's ends, if not the target's.
        plan: which choice each layer gets; without it, the runtime's preferred kernels. Its format is built.
        inputs, arch, trust_pickle: see `edgeq.load`.
        smooth_quant: `off` leaves every value as it is; `auto` smooths those of transformers where that helps (see
            `edgeq.quantization.smooth_quant`); a plan says itself what is smoothed.
        overwrite: replace an earlier build in `out`.
        progress: hears of stages and steps.

    Returns:
        The report, which is also in `out`. Its verdict says whether every limit held.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model, or every format of it, cannot be handled.
        DeviceError: a device or runtime failed, and no format could be validated.
    """
    aim = load_target(target)
    if plan is not None and plan.target != aim.name:
        raise UsageError(f"the plan was made for {plan.target}, not for {aim.name}", remedy=f"--target {plan.target}")
    if plan is not None and smooth_quant != "auto":
        raise UsageError("a plan says itself what is smoothed", remedy="leave --smooth-quant away, or edit the plan")
    if plan is not None and format not in ("auto", plan.format):
        raise UsageError(f"the plan is for {plan.format}, not for {format}", remedy="leave --format away")
    where = take_aim(aim, plan.format if plan else format, io=io, device=device, threads=threads, limits=limits)
    if plan is not None and plan.runtime not in [r.name for r in where.runtimes]:
        raise UsageError(
            f"it is for {plan.runtime}, and {aim.name} has none that runs {plan.format}",
            where="plan",
            remedy="plan anew with edgeq plan",
        )
    device_profile = load_profile(profile) if profile else None
    smooth = smooth_quant if plan is None else plan.smooth_quant
    case = Case(model, calibration, evaluation, preprocess, metric, inputs, arch, trust_pickle, smooth)
    with (
        staged_directory(Path(out), overwrite=overwrite) as folder,
        scratch_folder() as tmp,
    ):
        (job,) = prepare(case, [where], Clock(progress or Silent()))
        exporter = Exporter(job.model, tmp, job.cache)
        choices = None if plan is None else planned_choices(plan, job, job.runtimes[0])
        precision: FloatPrecision = "float32" if plan is None else plan.float_precision
        built = [_build(job, r, exporter, folder, choices, precision) for r in job.runtimes]
        for one in built:
            if plan is not None and one.plan is not None:
                tell_contradictions(plan, one.plan, job)
        if all(b.error for b in built):
            raise next(b.error for b in built if b.error)
        built = _in_turns(job, built)
        data = {"calibration": job.calibration_data} | ({"evaluation": job.evaluation} if job.evaluation else {})
        report = conclude(
            job.model,
            aim,
            device_profile.name if device_profile else aim.default_profile,
            [b.build for b in built],
            keep_all=format == "all",
            warnings=job.warnings,
            data=data,
            seconds=job.clock.seconds,
        )
        write_build(folder, report, built, job.evaluation, keep_all=format == "all")
        return report


def _in_turns(job: Job, built: list[Built]) -> list[Built]:
    """With what the formats take in turns, where there are several that were timed: which one is kept hangs on it."""
    timed = {b.build.format: b.sample for b in built if b.build.speed is not None and b.sample is not None}
    if len(timed) < 2 or not isinstance(job.device, Device):
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
