"""Measures an artefact that already exists against the float model that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.case import check_classes
from edgeq.data.dataset import Dataset
from edgeq.data.load import load_data
from edgeq.devices import Candidate, Device, Port, open_device
from edgeq.devices.likeness import unlike
from edgeq.errors import UnsupportedError, UsageError
from edgeq.evaluation.measure import DEVICES, Ends, Measured, integer_ends, measure
from edgeq.evaluation.metric import Metric, load_metric
from edgeq.evaluation.reference import reference_outputs
from edgeq.export.artifact import Exporter
from edgeq.files import scratch_folder
from edgeq.frontends.load import load
from edgeq.limits import Limits
from edgeq.model.model import Model
from edgeq.numerics import QParams, Scheme, per_tensor
from edgeq.progress import Clock, Progress, Silent
from edgeq.records.schema import Report
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime, Target
from edgeq.report.build import describe_build
from edgeq.report.conclude import conclude
from edgeq.runtimes import RUNTIMES, runtime

if TYPE_CHECKING:
    import torch


def validate(
    artifact: str | Path,
    *,
    model: str | Path | torch.nn.Module | Model,
    target: str,
    evaluation: str | Path | Dataset,
    preprocess: str | None = None,
    metric: str | Metric | None = None,
    limits: Limits | None = None,
    device: str | None = None,
    threads: int = 1,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Accuracy and latency of an artefact, whoever made it.

    Args:
        artifact: a `.onnx`, `.xml` or `.tflite` file.
        model: the float model, as for `deploy`.
        evaluation: samples that both are judged on.

    Returns:
        A report with one build; nothing is written.

    Raises:
        UsageError: wrong arguments or data.
        DeviceError: the device or the runtime failed.
    """
    path = Path(artifact)
    if not path.is_file():
        raise UsageError("there is no such artefact", where=str(path), remedy="give a .onnx, .xml or .tflite file")
    clock, limits = Clock(progress or Silent()), limits or Limits()
    aim = load_target(target)
    chosen = _runtime(aim, path)
    if device is None and aim.execution not in DEVICES:
        raise UsageError(f"{aim.name} cannot be executed from this machine", remedy="name a device with --device")
    judge_by = load_metric(metric) if isinstance(metric, str) else metric
    where = open_device(device or DEVICES[aim.execution])
    with scratch_folder() as scratch:
        with clock.stage("load"):
            net = (
                model if isinstance(model, Model) else load(model, inputs=inputs, arch=arch, trust_pickle=trust_pickle)
            )
            data = evaluation
            if not isinstance(data, Dataset):
                data = load_data(data, net.inputs, preprocess=preprocess, role="evaluation")
            if judge_by is None:
                check_classes(net, data)
            ends = ends_of_file(where, Candidate(path, chosen.name), net)
        exporter = Exporter(net.with_samples(data), scratch)
        found, baseline = _measured(path, chosen, where, exporter, data, ends, judge_by, threads, clock)
        files = [path, *(f for f in runtime(chosen.name).companions(path) if f.is_file())]
        build = describe_build(chosen, where, files, found, limits, float_files=baseline)
    other = unlike(aim, where, where.environment(chosen.name))
    warnings = [*net.notes, *data.notes, *([other] if other else [])]
    return conclude(
        net, aim, None, [build], keep_all=False, warnings=warnings, data={"evaluation": data}, seconds=clock.seconds
    )


def _measured(
    path: Path,
    chosen: Runtime,
    where: Device,
    exporter: Exporter,
    data: Dataset,
    ends: Ends,
    metric: Metric | None,
    threads: int,
    clock: Clock,
) -> tuple[Measured, list[Path]]:
    """What was measured, and the files of the float model that it was measured beside, if anything can be timed."""
    with clock.stage("float model") as steps:
        reference = reference_outputs(exporter.model, data, steps)
    with clock.stage(f"export float {chosen.format}"):
        baseline = [] if where.emulated else exporter.float_model(chosen.format)
    with clock.stage(f"validate in {chosen.name}") as steps:
        found = measure(
            Candidate(path, chosen.name),
            baseline[0] if baseline else None,
            where,
            data,
            reference,
            ends,
            heads=exporter.model.heads,
            metric=metric,
            threads=threads,
            progress=steps,
        )
    return found, baseline


def _runtime(target: Target, path: Path) -> Runtime:
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
            scales = _scales(port)
            if scales is None:
                raise integer_ends(spec.name)
            inputs[spec.name] = scales
    order = _order(model.output_names, interface.outputs)
    ports = [interface.outputs[i] for i in order]
    outputs = [_scales(port) if "int" in port.dtype else None for port in ports]
    limits = [None if q is None else (q.low, q.high) for q in outputs]
    return Ends(inputs, outputs, limits, order, model.output_names)


def _order(names: Sequence[str], ports: Sequence[Port]) -> list[int]:
    """For each output of the model, which one of the artefact it is: by name if all names are there, else in order."""
    found = [[i for i, port in enumerate(ports) if name in port.names] for name in names]
    told = [places[0] for places in found if len(places) == 1]
    return told if len(set(told)) == len(ports) else list(range(len(ports)))


def _scales(port: Port) -> QParams | None:
    if port.scale is None or port.zero_point is None or port.dtype not in ("int8", "uint8", "int16", "uint16"):
        return None
    return per_tensor(Scheme(port.dtype), port.scale, port.zero_point)  # type: ignore[arg-type]
