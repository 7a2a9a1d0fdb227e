"""What comes before any plan or build: a case is loaded and calibrated once, and made a job at each of its aims."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from edgeq.cache import Cache, cached, content_key, from_list, open_cache, to_list
from edgeq.calibration.calibration import Calibration
from edgeq.calibration.impact import Impact
from edgeq.calibration.kept import (
    CALIBRATION_VERSION,
    IMPACT_VERSION,
    pack_calibration,
    pack_impact,
    unpack_calibration,
    unpack_impact,
)
from edgeq.case import Case, Loaded, load_case
from edgeq.data.dataset import Dataset
from edgeq.devices import Device, open_device
from edgeq.devices.likeness import unlike
from edgeq.devices.recalled import ask_once
from edgeq.engine import LOCAL, Engine
from edgeq.errors import DeviceError, GateError, UsageError
from edgeq.evaluation.emulated import for_device
from edgeq.evaluation.measure import DEVICES, Array
from edgeq.evaluation.metric import Metric
from edgeq.export.npu import compiler_for
from edgeq.export.vela import version as compiler
from edgeq.installed import installed
from edgeq.limits import Limits
from edgeq.lowering.assign import assign
from edgeq.methods import method
from edgeq.methods.effort import DEFAULT, EFFORTS, EffortName
from edgeq.model.model import Model
from edgeq.plans.plan import Plan
from edgeq.progress import Clock
from edgeq.records.wording import left_text
from edgeq.registry.load import load_target, profile_of
from edgeq.registry.schema import Profile, Runtime, Target, arithmetic
from edgeq.request import Request
from edgeq.rewrites.rewritten import Given, as_planned, rewritten
from edgeq.runtimes import RUNTIMES


@dataclass(frozen=True)
class Aim:
    """Where a case is to be built for and measured.

    Attributes:
        runtimes: of the target, those to build for, the best first.
        device: where artefacts run; None where they can be run nowhere.
        profile: the device of the target that is modelled where it cannot be timed; None if it has none.
        threads: of the latency runs.
        limits: what an artefact has to hold there.
        no_device_because: why there is none.
    """

    target: Target
    runtimes: list[Runtime]
    device: Device | None
    profile: Profile | None
    threads: int
    limits: Limits
    no_device_because: str = ""

    @property
    def timed(self) -> Device | None:
        """The device, if it has a clock: an emulated one has none."""
        return None if self.device is None or self.device.emulated else self.device


@dataclass(frozen=True, kw_only=True)
class Job(Aim):
    """One case at one of its aims: what every build of the model is made from and judged by.

    Attributes:
        calibration, impact: what the calibration data showed.
        evaluation: the samples to judge by there: fewer on an emulated device.
        reference: the float model's outputs on them; empty where no aim has a device to compare them with.
        cache: of results of earlier runs.
        warnings: what the user should know.
        engine: what builds and sensitivities are spread over.
        methods: by layer, how its weights are rounded, where that is not to nearest; None where the effort decides.
        effort: see `edgeq.methods.effort`.

    The other attributes are those of `Aim` and `edgeq.case.Loaded`.
    """

    model: Model
    calibration: Calibration
    impact: Impact
    calibration_data: Dataset
    evaluation: Dataset | None
    reference: list[Array]
    metric: Metric | None
    clock: Clock
    cache: Cache
    warnings: list[str]
    engine: Engine = LOCAL
    methods: Mapping[str, str] | None = None
    effort: EffortName = DEFAULT

    @property
    def labels(self) -> Array | None:
        return None if self.evaluation is None else self.evaluation.labels

    @property
    def data(self) -> dict[str, Dataset]:
        """The samples by role."""
        return {"calibration": self.calibration_data} | ({"evaluation": self.evaluation} if self.evaluation else {})


def take_aim(
    target: Target,
    form: str = "auto",
    *,
    io: Literal["float", "integer"] | None = None,
    device: str | None = None,
    profile: str | None = None,
    threads: int = 1,
    limits: Limits | None = None,
) -> Aim:
    """A target with those of its runtimes that write a format (see `runtimes_for`), and its device.

    Args:
        device: where to measure, if not where the target says.
        profile: the device to model, if not the target's own.

    Raises:
        UsageError: the target has no such format, or there is no such device or profile.
        DeviceError: the device that was asked for is not set up.
    """
    if threads < 1:
        raise UsageError(f"--threads {threads}", remedy="give 1 or more")
    runtimes, modelled = runtimes_for(target, form, io), profile_of(target, profile)
    where, because = _device(target, runtimes, device)
    return Aim(target, runtimes, where, modelled, threads, limits or Limits(), because)


def aim_of(request: Request) -> Aim:
    """Likewise, for what is asked for; the errors as well."""
    return take_aim(
        load_target(request.target),
        request.format,
        device=request.device,
        profile=request.profile,
        threads=request.threads,
        limits=request.limits,
    )


def prepare(
    case: Case, aims: Sequence[Aim], clock: Clock, cache: Cache | None = None, engine: Engine = LOCAL
) -> list[Job]:
    """Loads and calibrates a case once, and runs the float model where an aim has a device.

    Args:
        cache: where to keep results, if not where the user says.
        engine: what builds and sensitivities are spread over.

    Returns:
        A job for each aim.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model cannot be handled.
        GateError: it is known already that a limit cannot hold.
    """
    cache = cache or open_cache(clock.progress.note)
    with ThreadPoolExecutor(max_workers=2) as beside:
        there = [(aim.device, r.name) for aim in aims for r in aim.runtimes if aim.device is not None]
        for device, runtime in {(device.name, runtime): (device, runtime) for device, runtime in there}.values():
            beside.submit(ask_once, device, runtime, cache)  # it keeps them; what is wrong is told when they are needed
        return _prepared(case, aims, clock, cache, engine)


def _prepared(case: Case, aims: Sequence[Aim], clock: Clock, cache: Cache, engine: Engine) -> list[Job]:
    if case.method is not None:
        method(case.method)  # one that there is not is told before all the work
    if case.effort not in (None, *EFFORTS):
        raise UsageError(f"there is no effort {case.effort!r}", remedy=f"one of {', '.join(EFFORTS)}")
    # of all formats of a target, so that a plan for another one finds it
    every = [r for aim in aims for r in (*aim.runtimes, *aim.target.runtimes)]
    loaded = load_case(case, clock, cache)
    # a plan was made with what is known of its own file
    ahead = _left_to_cpu(loaded, aims, clock, cache) if case.rewrites is None else [[]] * len(aims)
    loaded = _rewritten(case, loaded, every, clock, cache)
    # exporters find the model's values in their files by what they are on real samples
    loaded = replace(loaded, model=loaded.model.with_samples(loaded.calibration))
    calibration, impact = _calibrated(loaded, every, clock, cache)
    methods = None if case.method is None else {group.name: case.method for group in loaded.model.groups}
    references: dict[str, list[Array]] = {}
    jobs = []
    for aim, left in zip(aims, ahead, strict=True):
        other = _of_another_class(aim)
        for text in other:
            clock.progress.note(text)
        evals, warnings = loaded.evaluation, [*loaded.warnings, *left, *other]
        reference: list[Array] = []
        if evals is not None and aim.device is not None:
            evals, remark = for_device(evals, aim.device)
            if remark:
                warnings.append(remark)
                clock.progress.note(remark)
            if evals.sha256 not in references:
                references[evals.sha256] = _answers(loaded.model, evals, clock, cache)
            reference = references[evals.sha256]
        jobs.append(
            Job(
                **vars(aim),
                model=loaded.model,
                calibration=calibration,
                impact=impact,
                calibration_data=loaded.calibration,
                evaluation=evals,
                reference=reference,
                metric=loaded.metric,
                clock=clock,
                cache=cache,
                warnings=warnings,
                engine=engine,
                methods=methods,
                effort=case.effort or DEFAULT,
            )
        )
    # answers that are there anyway serve also those jobs that nothing can be run for
    return [
        replace(job, reference=references.get(job.evaluation.sha256, [])) if job.evaluation is not None else job
        for job in jobs
    ]


def _rewritten(case: Case, loaded: Loaded, runtimes: Sequence[Runtime], clock: Clock, cache: Cache) -> Loaded:
    """What was loaded, its model rewritten as the case says, or where that helps; one with integers stays as it is.

    Raises:
        UsageError: these are to be chosen anew.
    """
    if loaded.model.grids is not None:
        if case.method is not None or case.effort is not None:
            raise UsageError(
                "the model came with its integers, and they stay as they are",
                remedy="leave --method and --effort away, or give the float model",
            )
        return loaded
    distinct = {content_key("runtime", 1, **arithmetic(runtime)): runtime for runtime in runtimes}
    given = Given(loaded.calibration, [distinct[key] for key in sorted(distinct)], clock, cache)
    if case.rewrites is not None:
        return replace(loaded, model=as_planned(loaded.model, given, case.rewrites))
    names = EFFORTS[case.effort or DEFAULT].rewrites
    tried = [name for name in names if name != "smooth_quant" or case.smooth_quant == "auto"]
    model, remarks = rewritten(loaded.model, given, tried)
    return replace(loaded, model=model, warnings=[*loaded.warnings, *remarks])


def _left_to_cpu(loaded: Loaded, aims: Sequence[Aim], clock: Clock, cache: Cache) -> list[list[str]]:
    """For each aim, what its NPU will leave to the CPU.

    Raises:
        GateError: that is more than the aim's limit allows.
        UnsupportedError: the NPU's compiler cannot take the network.
    """
    model, found = loaded.model.with_samples(loaded.calibration), []
    for aim in aims:
        texts: list[str] = []
        for runtime in aim.runtimes:
            system = compiler_for(runtime, aim.profile)
            if system is None or compiler() is None or aim.profile is None:
                continue
            from edgeq.export.npu_ahead import on_npu_ahead

            with clock.stage(f"ask Vela for {aim.profile.name}"):
                left = on_npu_ahead(model, runtime, system, cache).left_to_cpu
            most = aim.limits.max_fallback
            told = f"{aim.profile.name} leaves {len(left)} operators to the CPU: {'; '.join(map(left_text, left))}"
            remedy = "replace these layers in the network, or choose another --profile"
            if most is not None and len(left) > most:
                raise GateError(told, where=f"--max-fallback {most}", remedy=f"{remedy}, or raise the limit")
            if left:
                texts.append(f"{told}; {remedy}")
                clock.progress.note(texts[-1])
        found.append(texts)
    return found


def _of_another_class(aim: Aim) -> list[str]:
    """Says of the aim's device that its CPU is not of the target's class, where that is so."""
    if aim.device is not None:
        for runtime in aim.runtimes:
            with contextlib.suppress(DeviceError):  # a runtime that is missing is told when it is needed
                text = unlike(aim.target, aim.device, aim.device.environment(runtime.name))
                return [text] if text else []
    return []


def following(job: Job, plan: Plan) -> Job:
    """The job with layers rounded as a plan says."""
    return replace(job, methods=plan.methods, effort=plan.effort)


def answered(job: Job) -> Job:
    """The job with the float model's answers, also where nothing can be run to be compared with them."""
    if job.reference or job.evaluation is None:
        return job
    return replace(job, reference=_answers(job.model, job.evaluation, job.clock, job.cache))


def runtimes_for(target: Target, form: str, io: Literal["float", "integer"] | None = None) -> list[Runtime]:
    """The runtimes of the target to build for; those whose format is asked for, or all, the best first."""
    found = [r for r in target.runtimes if form in ("all", r.format) or (form == "auto" and not r.on_request)]
    if not found:
        there = ", ".join(dict.fromkeys(r.format for r in target.runtimes))
        raise UsageError(f"{target.name} has no format {form!r}", remedy=f"choose auto, all or one of: {there}")
    # two runtimes of one format would write the same file: the better one speaks for it
    first = {r.format: r for r in reversed(found)}
    return [r if io is None else r.model_copy(update={"io": io}) for r in found if first[r.format] is r]


def _calibrated(loaded: Loaded, runtimes: Sequence[Runtime], clock: Clock, cache: Cache) -> tuple[Calibration, Impact]:
    """What the calibration data shows of every tensor that one of the runtimes stores. No tensor's share of it depends
    on which others are looked at."""
    net, calib = loaded.model, loaded.calibration

    # what runs the model is imported where nothing was kept: PyTorch takes seconds
    def observed() -> Calibration:
        from edgeq.calibration.calibrate import calibrate

        return calibrate(net, calib.inputs, steps, skip=skip)

    def measured() -> Impact:
        from edgeq.calibration.gradients import measure_impact

        return measure_impact(net, calib.inputs, seen.histograms, tensors, steps)

    with clock.stage("calibrate") as steps:
        skip = sorted(_never_stored(net, runtimes))
        key = content_key(
            "calibration",
            CALIBRATION_VERSION,
            model=net.fingerprint,
            data=calib.sha256,
            skip=skip,
            **installed("torch"),
        )
        seen = cached(
            cache,
            "calibration",
            key,
            observed,
            pack_calibration,
            unpack_calibration,
        )
        tensors = sorted({n for r in runtimes for n in assign(net, r, seen.histograms).tensors})
        impact = cached(
            cache,
            "impact",
            content_key("impact", IMPACT_VERSION, calibration=key, tensors=tensors),
            measured,
            pack_impact,
            unpack_impact,
        )
    return seen, impact


def _answers(model: Model, evals: Dataset, clock: Clock, cache: Cache) -> list[Array]:
    """The float model's outputs."""

    def answered() -> list[Array]:
        from edgeq.evaluation.reference import reference_outputs

        return reference_outputs(model, evals, steps)

    with clock.stage("float model") as steps:
        return cached(
            cache,
            "reference",
            content_key(
                "reference",
                2,
                model=model.fingerprint,
                data=evals.sha256,
                source=model.sha256,
                **installed("torch"),
            ),
            answered,
            from_list,
            to_list,
        )


def _device(target: Target, runtimes: Sequence[Runtime], asked: str | None) -> tuple[Device | None, str]:
    """The device to measure on, or why there is none. A device that was asked for must be there."""
    if asked is not None:
        return open_device(asked), ""
    unknown = [r.name for r in runtimes if r.name not in RUNTIMES]
    if target.execution == "none" or unknown:
        return None, f"{target.name} cannot be executed from this machine"
    try:
        return open_device(DEVICES[target.execution]), ""
    except DeviceError as error:
        return None, f"{error.cause}; {error.remedy}"


def _never_stored(model: Model, runtimes: Sequence[Runtime]) -> set[str]:
    """Values between an operator and the activation that every runtime computes in the same kernel."""
    return {
        g.root for g in model.groups if g.activation and all(g.activation_op in r.fused_activations for r in runtimes)
    }
