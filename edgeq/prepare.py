"""What comes before any plan or build: the model, its data, what calibration sees, the device, the float answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from edgeq.cache import Cache, Entry, cached, content_key, open_cache
from edgeq.calibration.calibrate import Calibration, calibrate
from edgeq.calibration.impact import Impact, measure_impact
from edgeq.calibration.kept import (
    CALIBRATION_VERSION,
    IMPACT_VERSION,
    pack_calibration,
    pack_impact,
    unpack_calibration,
    unpack_impact,
)
from edgeq.data.dataset import Dataset, make_dataset, overlap
from edgeq.data.load import load_data
from edgeq.devices import Device, open_device
from edgeq.errors import DeviceError, UsageError
from edgeq.model.kept import load_kept
from edgeq.model.model import Model, load
from edgeq.planning.assign import assign
from edgeq.progress import Clock, Progress
from edgeq.registry.schema import Runtime, Target
from edgeq.runtimes import RUNTIMES
from edgeq.validation.accuracy import check_labels
from edgeq.validation.gates import Limits
from edgeq.validation.measure import DEVICES, Array, reference_outputs
from edgeq.validation.metric import Metric, load_metric

EMULATED_SAMPLES = 100
"""Evaluation samples on an emulated device, which runs a hundred times slower than a real one."""

FEW_SAMPLES = 32


@dataclass(frozen=True)
class Job:
    """What every build of a model is made from and judged by.

    Attributes:
        runtimes: of the target, those to build for, the best first.
        cache: of results of earlier runs.
        calibration, impact: what the calibration data showed.
        reference: the float model's outputs on the evaluation data.
        device: where to measure, or why there is no such place.
        warnings: what the user should know.
    """

    model: Model
    target: Target
    runtimes: list[Runtime]
    calibration: Calibration
    impact: Impact
    calibration_data: Dataset
    evaluation: Dataset | None
    reference: list[Array]
    metric: Metric | None
    limits: Limits
    device: Device | str
    threads: int
    clock: Clock
    cache: Cache
    warnings: list[str]


def prepare(
    model: str | Path | torch.nn.Module | Model,
    target: Target,
    runtimes: list[Runtime],
    clock: Clock,
    *,
    calibration: str | Path | Dataset,
    evaluation: str | Path | Dataset | None,
    preprocess: str | None,
    metric: str | Metric | None,
    limits: Limits,
    device: str | None,
    threads: int,
    inputs: Sequence[str],
    arch: str | None,
    trust_pickle: bool,
) -> Job:
    """Loads, calibrates, finds the device and runs the float model; the arguments are those of `edgeq.deploy`.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model cannot be handled.
        DeviceError: the device that was asked for is not there.
    """
    if threads < 1:
        raise UsageError(f"--threads {threads}", remedy="give 1 or more")
    cache = open_cache(clock.progress.note)
    judge_by = load_metric(metric) if isinstance(metric, str) else metric
    with clock.stage("load"):
        net = _model(model, inputs, arch, trust_pickle, cache)
        calib = _data(calibration, net, preprocess, "calibration")
        evals = None if evaluation is None else _data(evaluation, net, preprocess, "evaluation")
        warnings = _warnings(net, calib, evals)
        if evals is not None and evals.labels is not None and judge_by is None:
            first = net.nodes[net.output_nodes[0]].meta["val"]
            check_labels(evals.labels, (len(evals), *first.shape[1:]))
        for text in warnings:
            clock.progress.note(text)
    with clock.stage("calibrate") as steps:
        skip = sorted(_never_stored(net, runtimes))
        key = content_key(
            "calibration",
            CALIBRATION_VERSION,
            model=net.fingerprint,
            data=calib.sha256,
            skip=skip,
            torch=torch.__version__,
        )
        seen = cached(
            cache,
            "calibration",
            key,
            lambda: calibrate(net, calib.inputs, steps, skip=skip),
            pack_calibration,
            unpack_calibration,
        )
        tensors = sorted({n for r in runtimes for n in assign(net, r, seen.histograms).tensors})
        impact = cached(
            cache,
            "impact",
            content_key("impact", IMPACT_VERSION, calibration=key, tensors=tensors),
            lambda: measure_impact(net, calib.inputs, seen.histograms, tensors, steps),
            pack_impact,
            unpack_impact,
        )
    where = _device(target, runtimes, device)
    reference: list[Array] = []
    if evals is not None and isinstance(where, Device):
        if where.emulated and len(evals) > EMULATED_SAMPLES:
            warnings.append(
                f"{where.name} is emulated: judged on {EMULATED_SAMPLES} of {len(evals)} evaluation samples"
            )
            evals = _thinned(evals)
            clock.progress.note(warnings[-1])
        with clock.stage("float model") as steps:
            reference = float_answers(net, evals, cache, steps)
    return Job(
        net,
        target,
        runtimes,
        seen,
        impact,
        calib,
        evals,
        reference,
        judge_by,
        limits,
        where,
        threads,
        clock,
        cache,
        warnings,
    )


def float_answers(model: Model, data: Dataset, cache: Cache, progress: Progress) -> list[Array]:
    """The float model's outputs on evaluation data, [N, ...] each."""
    key = content_key(
        "reference", 1, model=model.fingerprint, data=data.sha256, source=model.sha256, torch=torch.__version__
    )
    return cached(
        cache,
        "reference",
        key,
        lambda: reference_outputs(model, data, progress),
        lambda outputs: Entry(len(outputs), {str(i): o for i, o in enumerate(outputs)}),
        lambda entry: [entry.arrays[str(i)] for i in range(entry.values)],
    )


def runtimes_for(target: Target, form: str, io: Literal["float", "integer"] | None = None) -> list[Runtime]:
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


def _model(
    model: str | Path | torch.nn.Module | Model,
    inputs: Sequence[str],
    arch: str | None,
    trust_pickle: bool,
    cache: Cache,
) -> Model:
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path) and arch is None and not trust_pickle:
        return load_kept(Path(model), inputs, cache)
    return load(model, inputs=inputs, arch=arch, trust_pickle=trust_pickle)


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
