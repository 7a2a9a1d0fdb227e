"""The main job: load -> calibrate -> quantize -> export -> audit -> validate -> report, readable top to bottom."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from edgeq.calibration.calibrate import Calibration, calibrate
from edgeq.calibration.impact import Impact, measure_impact
from edgeq.data.dataset import Dataset, make_dataset, overlap
from edgeq.data.load import load_data
from edgeq.devices import Candidate, Device, open_device
from edgeq.errors import DeviceError, EdgeqError, UsageError
from edgeq.export.artifact import Exporter
from edgeq.export.audit import AuditError, audit, confirm
from edgeq.files import staged_directory
from edgeq.model.model import Model, load
from edgeq.planning.assign import assign
from edgeq.planning.describe import describe
from edgeq.progress import Clock, Progress, Silent
from edgeq.quantization.quantize import Quantized, quantize_model
from edgeq.registry.load import load_profile, load_target
from edgeq.registry.schema import Runtime, Target
from edgeq.report.build import describe_build, failed_build
from edgeq.report.conclude import Built, conclude, write_build
from edgeq.report.layers import layer_table
from edgeq.report.schema import Report
from edgeq.runtimes import RUNTIMES
from edgeq.validation.accuracy import check_labels
from edgeq.validation.gates import Limits
from edgeq.validation.measure import DEVICES, Array, Ends, measure, reference_outputs
from edgeq.validation.metric import Metric, load_metric

EMULATED_SAMPLES = 100
"""Evaluation samples on an emulated device, which runs a hundred times slower than a real one."""

FEW_SAMPLES = 32


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
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
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
        inputs, arch, trust_pickle: see `edgeq.load`.
        overwrite: replace an earlier build in `out`.
        progress: hears of stages and steps.

    Returns:
        The report, which is also in `out`. Its verdict says whether every limit held.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model, or every format of it, cannot be handled.
        DeviceError: a device or runtime failed, and no format could be validated.
    """
    clock = Clock(progress or Silent())
    limits = limits or Limits()
    aim = load_target(target)
    runtimes = _runtimes(aim, format, io)
    if threads < 1:
        raise UsageError(f"--threads {threads}", remedy="give 1 or more")
    device_profile = load_profile(profile) if profile else None
    judge_by = load_metric(metric) if isinstance(metric, str) else metric
    with (
        staged_directory(Path(out), overwrite=overwrite) as folder,
        tempfile.TemporaryDirectory(prefix="edgeq-") as tmp,
    ):
        with clock.stage("load"):
            net = (
                model if isinstance(model, Model) else load(model, inputs=inputs, arch=arch, trust_pickle=trust_pickle)
            )
            calib = _data(calibration, net, preprocess, "calibration")
            evals = None if evaluation is None else _data(evaluation, net, preprocess, "evaluation")
            warnings = _warnings(net, calib, evals)
            if evals is not None and evals.labels is not None and judge_by is None:
                first = net.nodes[net.output_nodes[0]].meta["val"]
                check_labels(evals.labels, (len(evals), *first.shape[1:]))
            for text in warnings:
                clock.progress.note(text)
        with clock.stage("calibrate") as steps:
            seen = calibrate(net, calib.inputs, steps, skip=_never_stored(net, runtimes))
            tensors = {n for r in runtimes for n in assign(net, r, seen.histograms).tensors}
            impact = measure_impact(net, calib.inputs, seen.histograms, tensors, steps)
        where = _device(aim, runtimes, device)
        reference: list[Array] = []
        judged = evals
        if judged is not None and isinstance(where, Device):
            if where.emulated and len(judged) > EMULATED_SAMPLES:
                warnings.append(
                    f"{where.name} is emulated: judged on {EMULATED_SAMPLES} of {len(judged)} evaluation samples"
                )
                judged = _thinned(judged)
                clock.progress.note(warnings[-1])
            with clock.stage("float model") as steps:
                reference = reference_outputs(net, judged, steps)
        exporter = Exporter(net, Path(tmp))
        work = _Work(
            net,
            aim,
            seen,
            impact,
            calib,
            judged,
            reference,
            judge_by,
            limits,
            where,
            threads,
            clock,
            len(runtimes) == 1,
        )
        built = [_build(work, r, exporter, folder) for r in runtimes]
        if all(b.error for b in built):
            raise next(b.error for b in built if b.error)
        report = conclude(
            net,
            aim,
            device_profile.name if device_profile else aim.default_profile,
            [b.build for b in built],
            keep_all=format == "all",
            warnings=warnings,
            data={"calibration": calib} | ({"evaluation": judged} if judged else {}),
            seconds=clock.seconds,
        )
        write_build(folder, report, built, judged, keep_all=format == "all")
        return report


@dataclass(frozen=True)
class _Work:
    """What every format is built from and judged by."""

    model: Model
    target: Target
    calibration: Calibration
    impact: Impact
    calibration_data: Dataset
    evaluation: Dataset | None
    reference: list[Array]
    metric: Metric | None
    limits: Limits
    device: Device | str
    """The device, or why there is none."""
    threads: int
    clock: Clock
    only: bool
    """One format alone is built: what fails for it fails the run."""


def _build(work: _Work, chosen: Runtime, exporter: Exporter, folder: Path) -> Built:
    """Quantizes, writes, audits and measures one format. What fails for this format alone is kept as its error."""
    clock, net = work.clock, work.model
    try:
        with clock.stage(f"quantize for {chosen.name}"):
            quantized = quantize_model(net, chosen, work.calibration, work.impact)
        with clock.stage(f"export {chosen.format}"):
            files = exporter.write(quantized, folder)
            written = audit(net, quantized, exporter.read_back(quantized, files[0]))
            baseline = exporter.float_model(chosen.format)
        measured = None
        if isinstance(work.device, Device) and work.evaluation is not None:
            with clock.stage(f"validate in {chosen.name}") as steps:
                measured = measure(
                    Candidate(files[0], chosen.name),
                    baseline[0],
                    work.device,
                    work.evaluation,
                    work.reference,
                    _ends(net, quantized),
                    metric=work.metric,
                    threads=work.threads,
                    progress=steps,
                )
            written = confirm(net, quantized, written, measured.placements)
        with clock.stage("layer errors (simulated)"):
            layers = layer_table(net, quantized, work.calibration_data)
    except AuditError:
        raise
    except EdgeqError as error:
        # one format of several may fail: the report says why, and the others go on
        if work.only:
            raise
        clock.progress.note(f"{chosen.format}: {error.cause}")
        return Built(failed_build(chosen, work.device, error), None, [], [], error)
    build = describe_build(
        chosen,
        work.device,
        files,
        measured,
        work.limits,
        float_files=baseline,
        audit=written,
        layers=layers,
    )
    plan = describe(net, quantized, target=work.target.name, data_hash=work.calibration_data.sha256)
    outputs = [quantized.activations[n].q if n in quantized.activations else None for n in net.output_nodes]
    return Built(
        build, plan, measured.outputs if measured else [], [None if q is None else float(q.scale) for q in outputs]
    )


def _ends(model: Model, quantized: Quantized) -> Ends:
    scales = [quantized.activations[n].q if n in quantized.activations else None for n in model.output_nodes]
    integer = quantized.runtime.io == "integer"
    # a float output that was rounded on its way still has the ends of its integer type
    return Ends(
        inputs={
            spec.name: quantized.activations[node].q
            for spec, node in zip(model.inputs, model.input_nodes, strict=True)
            if integer and node in quantized.activations
        },
        outputs=[q if integer else None for q in scales],
        limits=[None if q is None else (q.low, q.high) for q in scales],
    )


def _runtimes(target: Target, form: str, io: Literal["float", "integer"] | None) -> list[Runtime]:
    """The runtimes of the target to build for; those whose format is asked for, or all, the best first."""
    found = [r for r in target.runtimes if form in ("auto", "all", r.format)]
    if not found:
        there = ", ".join(dict.fromkeys(r.format for r in target.runtimes))
        raise UsageError(f"{target.name} has no format {form!r}", remedy=f"choose auto, all or one of: {there}")
    # two runtimes of one format would write the same file: the better one speaks for it
    first = {r.format: r for r in reversed(found)}
    return [r if io is None else r.model_copy(update={"io": io}) for r in found if first[r.format] is r]


def _device(target: Target, runtimes: Sequence[Runtime], asked: str | None) -> Device | str:
    """The device to measure on, or why there is none. A device that was asked for must be there."""
    if asked is not None:
        return open_device(asked)
    unknown = [r.name for r in runtimes if r.name not in RUNTIMES]
    if target.execution == "none" or unknown:
        return f"{target.name} cannot be executed from this machine"
    try:
        return open_device(DEVICES[target.execution])
    except DeviceError as error:
        return f"{error.cause}; {error.remedy}"


def _never_stored(model: Model, runtimes: Sequence[Runtime]) -> set[str]:
    """Values between an operator and the activation that every runtime computes in the same kernel."""
    return {
        g.root for g in model.groups if g.activation and all(g.activation_op in r.fused_activations for r in runtimes)
    }


def _data(
    given: str | Path | Dataset, model: Model, preprocess: str | None, role: Literal["calibration", "evaluation"]
) -> Dataset:
    return given if isinstance(given, Dataset) else load_data(given, model.inputs, preprocess=preprocess, role=role)


def _warnings(model: Model, calib: Dataset, evals: Dataset | None) -> list[str]:
    found = [*model.notes, *calib.notes, *(evals.notes if evals else ())]
    if evals is not None and (shared := overlap(calib, evals)):
        found.append(
            f"{shared} of {len(evals)} evaluation samples are also calibration samples: "
            "the accuracy is not that of unseen data"
        )
    if len(calib) < FEW_SAMPLES:
        found.append(f"only {len(calib)} calibration samples: ranges may miss what other inputs reach")
    return found


def _thinned(data: Dataset) -> Dataset:
    """Evenly spread samples, few enough for an emulated device."""
    kept = np.linspace(0, len(data) - 1, EMULATED_SAMPLES).round().astype(int)
    return make_dataset(
        {name: array[kept] for name, array in data.inputs.items()},
        data.specs,
        labels=None if data.labels is None else data.labels[kept],
        source=data.source,
    )
