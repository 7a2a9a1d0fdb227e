"""Measures one artefact on its device: accuracy beside the float model, latency beside the float artefact."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.data.dataset import Dataset, show_shape
from edgeq.devices import Candidate, Device, Files, Port
from edgeq.engine import LOCAL, Engine
from edgeq.errors import DeviceError, UnsupportedError
from edgeq.evaluation.accuracy import compare
from edgeq.evaluation.decided import Decisive
from edgeq.evaluation.latency import speed
from edgeq.evaluation.metric import Metric
from edgeq.model.heads import Head
from edgeq.model.model import Model
from edgeq.numerics import QParams, Scheme, dequantize, per_tensor, quantize
from edgeq.progress import Progress
from edgeq.quantization.quantized import Quantized
from edgeq.records.schema import Accuracy, Placement, Speed
from edgeq.runtimes import runtime

Array = np.ndarray[Any, np.dtype[Any]]

DEVICES = {
    "local": "local",
    "qemu-aarch64": "arm64",
    "qemu-x86_64": "x86_64",
    "qnn-emulator": "hexagon",
    "tflite-micro": "micro",
}
"""The device for each way in which a target says it can be executed from here."""

TIMING_SECONDS = 6.0
"""What the interleaved latency runs may take, all candidates together."""

ROUNDS = 200
"""No more of them, however short."""


@dataclass(frozen=True)
class Ends:
    """Quantization of an artefact's inputs and outputs.

    Attributes:
        inputs: by input name, where the artefact takes integers.
        outputs: per output, where the artefact writes integers.
        limits: per output, the real values of the ends of its quantized type, None where it is computed in float.
        order: for each output of the model, which one of the artefact it is; empty if they come in the same order.
        names: of the model's outputs, for messages.
    """

    inputs: Mapping[str, QParams]
    outputs: Sequence[QParams | None]
    limits: Sequence[tuple[float, float] | None]
    order: Sequence[int] = ()
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Measured:
    """What was measured on one artefact."""

    outputs: list[Array]
    accuracy: Accuracy
    placements: list[Placement]
    speed: Speed | None
    no_speed_because: str | None
    peak_memory_bytes: int | None
    cold_start_seconds: float | None
    arena_bytes: int | None = None


def measure(
    artifact: Candidate,
    baseline: Path | None,
    device: Device,
    data: Dataset,
    reference: list[Array],
    ends: Ends,
    *,
    heads: Sequence[Head],
    metric: Metric | None,
    threads: int,
    progress: Progress,
) -> Measured:
    """Runs everything that the device allows.

    Args:
        artifact: the quantized artefact.
        baseline: the float model in the same format; None to measure accuracy alone.
        data: evaluation samples.
        reference: the float model's outputs on them, [N, ...] each.
        ends: how the artefact's inputs and outputs are quantized.
        heads: what the model's graph tells of its outputs.

    Raises:
        DeviceError: the runtime refused the artefact, crashed, or computed NaN.
        UnsupportedError: an output of the artefact has another shape than the float model's.
    """
    feed = fed(data.inputs, ends)
    raw = device.outputs(artifact, feed, progress)
    outputs = real_outputs(raw, reference, ends)
    accuracy = compare(reference, outputs, data.labels, metric, ends.limits, heads)
    one = {name: array[:1] for name, array in feed.items()}
    placements = device.placement(artifact, one, threads=threads)
    arena = device.arena(artifact, one) if runtime(artifact.runtime).arena else None
    if device.emulated or baseline is None:
        why = (
            "the device is emulated: its time is no latency"
            if device.emulated
            else "there is no float model to compare with"
        )
        return Measured(raw, accuracy, placements, None, why, None, None, arena)
    cold = device.cold_start(artifact, one, threads=threads)
    timed = _time(
        artifact,
        baseline,
        device,
        one,
        data.first(1),
        threads,
        progress,
    )
    return Measured(raw, accuracy, placements, timed, None, cold.artifact_bytes, cold.seconds, arena)


def answers(
    artifact: Candidate,
    device: Device,
    data: Dataset,
    reference: list[Array],
    ends: Ends,
    progress: Progress,
    engine: Engine = LOCAL,
    files: Files | None = None,
    within: Decisive | None = None,
) -> list[Array] | None:
    """The artefact's outputs as real numbers, in the shapes of the float model's.

    Args:
        engine: shares out the samples where its workers and the device are on this machine.
        files: the inputs of `data`, if they lie in files already.
        within: None is returned as soon as it is certain that the artefact loses more; samples that are shared out are
            run in any case.
    """
    parts = min(engine.workers or 1, len(data)) if engine.here and device.shares_host else 1
    if parts > 1:
        whole = fed(data.inputs, ends)
        cuts = np.linspace(0, len(data), parts + 1).round().astype(int)
        given = [(artifact, device, {n: a[i:j] for n, a in whole.items()}) for i, j in itertools.pairwise(cuts)]
        found = engine.map(_answer, given, progress=progress)
        return real_outputs([np.concatenate(column) for column in zip(*found, strict=True)], reference, ends)
    feed = files if files is not None and not ends.inputs else fed(data.inputs, ends)
    raw: list[Array] | None
    if within is None:
        raw = device.outputs(artifact, feed, progress)
    else:
        raw = device.outputs_within(artifact, feed, within.wanted, within.most, within.order, progress)
    return None if raw is None else real_outputs(raw, reference, ends)


def _answer(given: tuple[Candidate, Device, dict[str, Array]]) -> list[Array]:
    artifact, device, feed = given
    return device.outputs(artifact, feed, threads=1)


def fed(inputs: Mapping[str, Array], ends: Ends) -> dict[str, Array]:
    """What an artefact is given for real inputs: integers where it takes integers."""
    return {n: quantize(a, ends.inputs[n]) if n in ends.inputs else a for n, a in inputs.items()}


def real_outputs(raw: Sequence[Array], reference: Sequence[Array], ends: Ends) -> list[Array]:
    """What a runtime gave as real numbers, with an entry for each sample as the float model's outputs have it.

    Raises:
        UnsupportedError: an output has another shape.
    """
    raw = [raw[i] for i in ends.order] if ends.order and len(ends.order) == len(raw) else raw
    real = [dequantize(array, q) if q is not None else array for array, q in zip(raw, ends.outputs, strict=True)]
    names = ends.names or [str(place) for place in range(len(real))]
    return [_by_sample(n, a, r) for n, a, r in zip(names, real, reference, strict=True)]


def _by_sample(name: str, found: Array, reference: Array) -> Array:
    # a device puts what the samples give one behind the other, also where the first axis is not that of samples
    behind = (len(reference) * reference.shape[1], *reference.shape[2:]) if reference.ndim > 1 else reference.shape
    if found.shape not in (reference.shape, behind):
        raise UnsupportedError(
            f"the file gives it the shape {show_shape(found.shape)}, the float model {show_shape(reference.shape)}",
            where=f"output {name}",
            remedy="end the model with a reshape of this output to its sizes, or choose another format",
        )
    by_sample: Array = found.reshape(reference.shape)
    return by_sample


def _time(
    artifact: Candidate,
    baseline: Path,
    device: Device,
    own: Mapping[str, Array],
    floats: Mapping[str, Array],
    threads: int,
    progress: Progress,
) -> Speed:
    info = runtime(artifact.runtime)
    variants = info.baselines(device.environment(artifact.runtime))
    candidates = {"artifact": artifact} | {
        name: Candidate(baseline, artifact.runtime, options) for name, options in variants.items()
    }
    runs = device.latency(
        candidates,
        floats,
        progress,
        own_inputs={"artifact": own},
        rounds=ROUNDS,
        seconds=TIMING_SECONDS,
        threads=threads,
    )
    files = [baseline, *(f for f in info.companions(baseline) if f.is_file())]
    size = sum(file.stat().st_size for file in files)
    return speed(runs, threads=threads, sizes=dict.fromkeys(variants, size))


def ends_of(model: Model, quantized: Quantized) -> Ends:
    """How the ends of a quantized model's artefact are quantized."""
    rounded = quantized.rounded
    scales = [rounded[n].q if n in rounded else None for n in model.output_nodes]
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
        names=model.output_names,
    )


def scales_of(port: Port) -> QParams | None:
    """How an end of an artefact is quantized, as its file says; None where it is not, or does not say."""
    if port.scale is None or port.zero_point is None or port.dtype not in ("int8", "uint8", "int16", "uint16"):
        return None
    return per_tensor(Scheme(port.dtype), port.scale, port.zero_point)  # type: ignore[arg-type]


def fed_as_told(inputs: Mapping[str, Array], ports: Sequence[Port]) -> dict[str, Array]:
    """What an artefact is given for real inputs, by what its file says of its own."""
    told = {name: q for port in ports if (q := scales_of(port)) is not None for name in port.names}
    return fed(inputs, Ends({n: told[n] for n, a in inputs.items() if n in told and a.dtype == np.float32}, [], []))


def integer_ends(name: str) -> DeviceError:
    """The error for an artefact whose integer inputs carry no scale."""
    return DeviceError(
        f"input {name!r} takes integers, and the file does not say what they stand for",
        remedy="export it with float inputs, or with quantization parameters on its inputs",
    )
