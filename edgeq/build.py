"""One artefact: written and audited for one runtime, then judged on a device. What `deploy` does for each format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeq.devices import Candidate
from edgeq.evaluation.measure import ends_of, fed, measure
from edgeq.export.artifact import Exporter
from edgeq.export.audit import confirm
from edgeq.export.npu import compiled, compiler_for
from edgeq.export.vela import version
from edgeq.plans.describe import describe
from edgeq.plans.plan import FloatPrecision, Plan, run_options
from edgeq.prepare import Job
from edgeq.quantization.quantized import Quantized
from edgeq.quantized import quantize_job
from edgeq.records.schema import Audit, Layer, OnNpu
from edgeq.registry.schema import Runtime
from edgeq.report.build import describe_build
from edgeq.report.conclude import Built
from edgeq.report.layers import layer_table


@dataclass(frozen=True)
class Written:
    """An artefact that nobody has run yet.

    Attributes:
        files: the one that a runtime opens first, then its companions.
        baseline: the files of the float model in the same format.
        audit: the files against what was to be written.
        npu: what goes to the device in their place; None where they do so themselves, or nothing here compiles them.
    """

    quantized: Quantized
    files: list[Path]
    baseline: list[Path]
    audit: Audit
    layers: list[Layer]
    plan: Plan
    npu: OnNpu | None = None


def write(
    job: Job,
    runtime: Runtime,
    exporter: Exporter,
    folder: Path,
    choices: Mapping[str, str] | None,
    precision: FloatPrecision,
) -> Written:
    """Quantizes, writes and audits one format.

    Args:
        choices: by layer; the runtime's preferred kernels if None.
        precision: what the runtime is to compute in where layers are in float.

    Raises:
        UnsupportedError: the format cannot hold the model, or its runtime would refuse the file by its documentation.
        AuditError: the file is not what was planned.
    """
    net = job.model
    quantized = quantize_job(job, runtime, choices)
    job.warnings.extend(quantized.remarks)
    with job.clock.stage(f"export {runtime.format}"):
        files = exporter.write(quantized, folder)
        audited = exporter.audit(quantized, files[0])
        baseline = exporter.float_model(runtime.format)
    with job.clock.stage("layer errors (simulated)"):
        layers = layer_table(net, quantized, job.calibration_data)
    data = job.calibration_data.sha256
    plan = describe(net, quantized, target=job.target.name, data_hash=data, precision=precision, effort=job.effort)
    npu = _on_npu(job, runtime, exporter, files[0])
    return Written(quantized, files, baseline, audited, layers, plan, npu)


def _on_npu(job: Job, runtime: Runtime, exporter: Exporter, path: Path) -> OnNpu | None:
    system = compiler_for(runtime, job.profile)
    if system is None or job.profile is None:
        return None
    if version() is None:
        job.warnings.append(f"{path.name} is not compiled for {job.profile.name}: pip install 'edgeq[ethos-u]'")
        return None
    with job.clock.stage(f"compile for {job.profile.name}"):
        return compiled(job.model, exporter.labels(runtime.format), path, system)


def judge(job: Job, runtime: Runtime, written: Written) -> Built:
    """Measures an artefact where the job's device is, if there is one, and holds it against the job's limits.

    Args:
        runtime: what runs it there.

    Raises:
        DeviceError: the device or the runtime failed.
        AuditError: the runtime did not run on integers what the file holds as integers.
    """
    net, quantized, audited, measured, sample = job.model, written.quantized, written.audit, None, None
    if job.device is not None and job.evaluation is not None:
        artifact = Candidate(written.files[0], runtime.name, run_options(written.plan.float_precision))
        sample = artifact, fed(job.evaluation.first(1), ends_of(net, quantized))
        with job.clock.stage(f"validate in {runtime.name}") as steps:
            measured = measure(
                artifact,
                written.baseline[0],
                job.device,
                job.evaluation,
                job.reference,
                ends_of(net, quantized),
                heads=net.heads,
                metric=job.metric,
                threads=job.threads,
                progress=steps,
            )
        audited = confirm(net, quantized, audited, measured.placements)
    build = describe_build(
        runtime,
        job.device,
        written.files,
        measured,
        job.limits,
        float_files=written.baseline,
        audit=audited,
        layers=written.layers,
        precision=written.plan.float_precision,
        quantized=bool(quantized.weights or quantized.activations),
        no_device_because=job.no_device_because,
        npu=written.npu,
        profile=job.profile,
    )
    rounded = quantized.rounded
    outputs = [rounded[n].q if n in rounded else None for n in net.output_nodes]
    steps_of = [None if q is None else float(q.scale) for q in outputs]
    return Built(build, written.plan, measured.outputs if measured else [], steps_of, sample=sample)
