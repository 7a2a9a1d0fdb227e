"""Measures an artefact that already exists against the float model that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgeq.case import check_classes, own_tokenizer
from edgeq.data.dataset import Dataset
from edgeq.data.load import load_data
from edgeq.devices import Candidate, Device, Port, open_device
from edgeq.devices.likeness import unlike
from edgeq.errors import UnsupportedError, UsageError
from edgeq.evaluation.emulated import for_device
from edgeq.evaluation.measure import DEVICES, Ends, fed, integer_ends, measure, scales_of
from edgeq.evaluation.metric import Metric, load_metric
from edgeq.evaluation.reference import reference_outputs
from edgeq.export.artifact import Exporter
from edgeq.files import scratch_folder
from edgeq.formats import FORMATS
from edgeq.frontends.load import load
from edgeq.limits import Limits
from edgeq.lock import Array
from edgeq.model.model import Model
from edgeq.plans.plan import read_plan
from edgeq.progress import Clock, Progress, Silent
from edgeq.records.schema import Report
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime, Target
from edgeq.report.build import describe_build
from edgeq.report.conclude import conclude
from edgeq.request import takes_fields_of
from edgeq.runtimes import NOT_RUN, RUNTIMES, runtime

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ValidateRequest:
    """What is judged, and by what.

    Attributes:
        artifact: a `.onnx`, `.xml` or `.tflite` file, or the folder of a build.
        model: the float model, as for `deploy`.
        evaluation: samples that both are judged on.
        target: that of the build if not given.
        device: where it runs, if not where the target says.
        sustain: seconds for which it is called without a rest, to see whether the device slows down.
        preprocess, inputs, arch, trust_pickle: as for `deploy`.
    """

    artifact: str | Path
    _: KW_ONLY
    model: str | Path | torch.nn.Module | Model
    evaluation: str | Path | Dataset
    target: str | None = None
    device: str | None = None
    preprocess: str | None = None
    metric: str | Metric | None = None
    limits: Limits | None = None
    threads: int = 1
    sustain: float | None = None
    inputs: Sequence[str] = ()
    arch: str | None = None
    trust_pickle: bool = False
    progress: Progress | None = None


@dataclass(frozen=True)
class Subject:
    """An artefact, and all that it is judged by.

    Attributes:
        runtime: the one of the target that runs it.
        exporter: of the float model.
    """

    path: Path
    target: Target
    runtime: Runtime
    model: Model
    exporter: Exporter
    data: Dataset
    metric: Metric | None
    limits: Limits
    threads: int
    sustain: float | None


@takes_fields_of(ValidateRequest)
def validate(request: ValidateRequest) -> Report:
    """Accuracy and latency of an artefact, whoever made it.

    The arguments are the fields of `ValidateRequest`.

    Returns:
        A report with one build; nothing is written.

    Raises:
        UsageError: wrong arguments or data.
        DeviceError: the device or the runtime failed.
    """
    clock = Clock(request.progress or Silent())
    path, target = find_artifact(request.artifact, request.target)
    where = open_device(request.device or default_device(target))
    with scratch_folder() as scratch:
        subject = read_subject(request, path, target, scratch, clock)
        return judge_on(where, subject, float_for(where, subject, {}, clock), clock)


def find_artifact(artifact: str | Path, target: str | None) -> tuple[Path, Target]:
    """The file, and the target that it is for.

    Args:
        artifact: the file, or the folder of a build.
        target: that of the build if None.

    Raises:
        UsageError: there is none, or nobody knows for what it is.
    """
    path = Path(artifact)
    if path.is_dir():
        plan = read_plan(path / "plan.json")
        path, target = path / FORMATS[plan.format].files[0], target or plan.target
    if not path.is_file():
        remedy = "give a .onnx, .xml or .tflite file, or the folder of a build"
        raise UsageError("there is no such artefact", where=str(path), remedy=remedy)
    if target is None:
        raise UsageError("a file does not say what it is for", where=str(path), remedy="name it with --target")
    return path, load_target(target)


def default_device(target: Target) -> str:
    """The device on which a target is executed here.

    Raises:
        UsageError: there is none.
    """
    if target.execution not in DEVICES:
        ruled = any(one.name in NOT_RUN for one in target.runtimes)
        remedy = f"edgeq inspect FILE --target {target.name}" if ruled else "name a device with --device"
        raise UsageError(f"{target.name} cannot be executed from this machine", remedy=remedy)
    return DEVICES[target.execution]


def read_subject(request: ValidateRequest, path: Path, target: Target, scratch: Path, clock: Clock) -> Subject:
    """Reads all that an artefact is judged by.

    Args:
        scratch: folder for what is made meanwhile.

    Raises:
        UsageError: wrong arguments or data.
    """
    chosen, model, data, metric = artifact_runtime(target, path), request.model, request.evaluation, request.metric
    judge_by = load_metric(metric) if isinstance(metric, str) else metric
    with clock.stage("load"):
        tokenizer = own_tokenizer(model)
        if not isinstance(model, Model):
            model = load(model, inputs=request.inputs, arch=request.arch, trust_pickle=request.trust_pickle)
        if not isinstance(data, Dataset):
            data = load_data(data, model.inputs, preprocess=request.preprocess, role="evaluation", tokenizer=tokenizer)
        if judge_by is None:
            check_classes(model, data)
    exporter = Exporter(model.with_samples(data), scratch)
    return Subject(
        path,
        target,
        chosen,
        model,
        exporter,
        data,
        judge_by,
        request.limits or Limits(),
        request.threads,
        request.sustain,
    )


class Float(NamedTuple):
    """The float model as a device is compared with it.

    Attributes:
        data: what the device is judged on, and what there is to say of that.
        reference: the answers to it.
        files: the model in the artefact's format; empty where nothing can be timed.
    """

    data: Dataset
    remark: str
    reference: list[Array]
    files: list[Path]


def float_for(where: Device, subject: Subject, answers: dict[str, list[Array]], clock: Clock) -> Float:
    """The float model's part, which no device takes part in.

    Args:
        answers: by the hash of samples, what is known already; what is found is added.
    """
    data, remark = for_device(subject.data, where)
    if data.sha256 not in answers:
        with clock.stage("float model") as steps:
            answers[data.sha256] = reference_outputs(subject.exporter.model, data, steps)
    if where.emulated:
        return Float(data, remark, answers[data.sha256], [])
    with clock.stage(f"export float {subject.runtime.format}"):
        files = subject.exporter.float_model(subject.runtime.format)
    return Float(data, remark, answers[data.sha256], files)


def judge_on(where: Device, subject: Subject, beside: Float, clock: Clock) -> Report:
    """The report of an artefact on a device.

    Raises:
        DeviceError: the device or the runtime failed.
    """
    chosen, path, baseline = subject.runtime, subject.path, beside.files
    ends = ends_of_file(where, Candidate(path, chosen.name), subject.model)
    with clock.stage(f"validate in {chosen.name}") as steps:
        found = measure(
            Candidate(path, chosen.name),
            baseline[0] if baseline else None,
            where,
            beside.data,
            beside.reference,
            ends,
            heads=subject.model.heads,
            metric=subject.metric,
            threads=subject.threads,
            progress=steps,
        )
    sustained = None
    if subject.sustain and not where.emulated:
        few = fed(beside.data.first(1), ends)
        with clock.stage(f"sustain in {chosen.name}") as steps:
            candidate = Candidate(path, chosen.name)
            sustained = where.sustained(candidate, few, subject.sustain, steps, threads=subject.threads)
    files = [path, *(f for f in runtime(chosen.name).companions(path) if f.is_file())]
    build = describe_build(chosen, where, files, found, subject.limits, float_files=baseline)
    build = build.model_copy(update={"sustained": sustained})
    other = unlike(subject.target, where, where.environment(chosen.name))
    warnings = [*subject.model.notes, *subject.data.notes, *filter(None, (beside.remark, other))]
    return conclude(
        subject.model,
        subject.target,
        None,
        [build],
        keep_all=False,
        warnings=warnings,
        data={"evaluation": beside.data},
        seconds=clock.seconds,
    )


def artifact_runtime(target: Target, path: Path) -> Runtime:
    """The runtime of a target that reads a file.

    Raises:
        UsageError: none does.
    """
    able = [r for r in target.runtimes if r.name in RUNTIMES and path.suffix in runtime(r.name).suffixes]
    if able:  # the one whose own format this is before one that reads it too
        return min(able, key=lambda r: runtime(r.name).suffixes.index(path.suffix))
    there = ", ".join(f"{r.name} ({r.format})" for r in target.runtimes)
    raise UsageError(
        f"no runtime of {target.name} reads {path.suffix or 'this'} files", where=path.name, remedy=f"it has: {there}"
    )


def ends_of_file(where: Device, artifact: Candidate, model: Model) -> Ends:
    """How an artefact's ends are quantized, as the artefact itself says.

    Raises:
        UnsupportedError: it has other inputs or outputs than the model.
        DeviceError: integers of it carry no scale.
    """
    interface = where.interface(artifact)
    if len(interface.inputs) != len(model.inputs) or len(interface.outputs) != len(model.output_nodes):
        raise UnsupportedError(
            f"the artefact has {len(interface.inputs)} inputs and {len(interface.outputs)} outputs, "
            f"the model {len(model.inputs)} and {len(model.output_nodes)}",
            remedy="give the float model that this artefact was made from",
        )
    inputs = {}
    for spec, port in zip(model.inputs, interface.inputs, strict=True):
        if port.dtype != spec.dtype:
            scales = scales_of(port)
            if scales is None:
                raise integer_ends(spec.name)
            inputs[spec.name] = scales
    order = _order(model.output_names, interface.outputs)
    ports = [interface.outputs[i] for i in order]
    outputs = [scales_of(port) if "int" in port.dtype else None for port in ports]
    limits = [None if q is None else (q.low, q.high) for q in outputs]
    return Ends(inputs, outputs, limits, order, model.output_names)


def _order(names: Sequence[str], ports: Sequence[Port]) -> list[int]:
    """For each output of the model, which one of the artefact it is: by name if all names are there, else in order."""
    found = [[i for i, port in enumerate(ports) if name in port.names] for name in names]
    told = [places[0] for places in found if len(places) == 1]
    return told if len(set(told)) == len(ports) else list(range(len(ports)))
