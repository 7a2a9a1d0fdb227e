"""Capability by evidence: for every cell of a target's table a network of one operator, built and run as any model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.devices import Candidate, Device, Inputs
from edgeq.devices.likeness import unlike
from edgeq.errors import DeviceError, EdgeqError, MissingExtraError, UnsupportedError, UsageError
from edgeq.evaluation.measure import Array
from edgeq.export.artifact import Exporter
from edgeq.frontends.load import load
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.numerics import Scheme, dequantize, quantize
from edgeq.probing.evidence import Cell, Evidence, Speed, cells_of, claim_of
from edgeq.probing.operators import OPERATORS, Tensor, samples, seeded
from edgeq.progress import Clock, Progress, Silent
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate
from edgeq.records.schema import Placement
from edgeq.registry.schema import Kernel, OpClass, Runtime, Target
from edgeq.runtimes import RUNTIMES

CALIBRATION_SAMPLES = 16
SAMPLES = 8
WIDER = 1.25
"""The samples that are run spread wider than those that set the ranges, so that the ends of the ranges are met too."""

ROUNDS = 50
WARMUP = 10

ALLOWED = 1
"""Quantization steps of the output by which one operator may differ: a kernel multiplies in fixed point where the
simulation multiplies in float32, and where a value lies half-way between two integers either may be taken."""

ALLOWED_BETWEEN = 2
"""Likewise for curves on 16 bits: no kernel has a table of 65536 entries, so that it takes what lies between those of a
smaller one from a straight line."""

ALLOWED_DYNAMIC = 16
"""Likewise where the input is rounded in every call: a value half-way between two of its integers moves a float output
by a dozen of 65535 steps. A kernel that computes in float is off by hundreds."""

FLOAT_STEPS = 65535
"""Steps from the smallest to the largest output of a network that computes in float."""

_CURVES = frozenset({"gelu", "sigmoid", "tanh", "softmax", "silu", "hardswish"})

_MACHINES = {"qemu-aarch64": ("aarch64", "arm64"), "qemu-x86_64": ("x86_64", "AMD64")}
"""What a device has to call itself to speak for targets of these kinds."""

_CONVERSIONS = frozenset({"QuantizeLinear", "DEQUANTIZE", "FakeQuantize", "Convert"})
"""A network with integers at both ends needs one of these to compute in float in between. QUANTIZE is absent: LiteRT
goes from one scale to another with it. So is DequantizeLinear: without a QuantizeLinear behind it nobody reads it."""


@dataclass(frozen=True)
class _Prepared:
    """A network of one operator, and what every cell of that operator is made from."""

    model: Model
    calibration: Calibration
    exporter: Exporter
    inputs: list[Tensor]


_Ready = dict[tuple[OpClass, bool], _Prepared]
"""What was prepared, by operator, and by whether its inputs are never negative."""


def probe(
    target: Target,
    device: Device,
    runtimes: Sequence[Runtime],
    ops: Collection[str] = (),
    progress: Progress | None = None,
) -> list[Evidence]:
    """Tries every cell of the tables of these runtimes on the device.

    What goes wrong in one cell is what is found of it, and does not end the run.

    Args:
        ops: only cells of these operator classes; all if empty.

    Returns:
        The evidence by runtime, in the order given.

    Raises:
        DeviceError: a runtime is not installed on the device, or a converter not here.
        UsageError: the device is no silicon of this target.
    """
    clock = Clock(progress or Silent())
    found = []
    with tempfile.TemporaryDirectory(prefix="edgeq-probe-") as scratch:
        prepared: _Ready = {}
        for runtime in runtimes:
            environment = device.environment(runtime.name)
            _refuse_other_silicon(target, device, environment["machine"])
            if other := unlike(target, device, environment):
                clock.progress.note(other)
            tried = [(op, kernel) for op, kernel in cells_of(runtime) if not ops or op in ops]
            cells = []
            with clock.stage(f"probe {runtime.name}") as steps:
                for done, (op, kernel) in enumerate(tried, start=1):
                    cells.append(_cell(runtime, op, kernel, device, prepared, Path(scratch)))
                    steps.step(done, len(tried))
            found.append(
                Evidence(
                    schema=1,
                    target=target.name,
                    runtime=runtime.name,
                    version=environment["runtime_version"],
                    device=device.name,
                    emulated=device.emulated,
                    cpu=environment["cpu"],
                    cells=cells,
                )
            )
    return found


def runtimes_on(
    target: Target, device: Device, only: str | None = None, progress: Progress | None = None
) -> list[Runtime]:
    """The target's runtimes that the device has, or the one that is asked for. The others are told as notes.

    Raises:
        UsageError: the target has no such runtime, or artefacts for it cannot be run by edgeq at all.
        DeviceError: the one that is asked for, or all of them, are missing on the device.
    """
    known = [r for r in target.runtimes if r.name in RUNTIMES and only in (None, r.name)]
    if not known:
        names = ", ".join(r.name for r in target.runtimes)
        asked = f"{only} of {target.name}" if only else target.name
        raise UsageError(f"there is no runtime to probe for {asked}", remedy=f"{target.name} has {names}")
    there: list[Runtime] = []
    for runtime in known:
        try:
            device.environment(runtime.name)
            there.append(runtime)
        except DeviceError as error:
            if runtime is known[-1] and not there:
                raise
            (progress or Silent()).note(f"{runtime.name} is not probed: {error.cause}")
    return there


def _refuse_other_silicon(target: Target, device: Device, machine: str) -> None:
    wanted = _MACHINES.get(target.execution)
    if wanted is not None and machine not in wanted:
        raise UsageError(
            f"{device.name} is {machine}: what it shows is no evidence for {target.name}",
            remedy=f"probe on a device that is {wanted[0]}",
        )


def _cell(runtime: Runtime, op: OpClass, kernel: Kernel, device: Device, prepared: _Ready, scratch: Path) -> Cell:
    seen: dict[str, object] = {"converts": False}
    # Integers at both ends: nothing but the operator lies in between, and its answers are seen as it gave them.
    bare = runtime.model_copy(update={"io": "float" if kernel.float_ends else "integer"})
    try:
        net = _prepare(op, kernel.activation_scheme, prepared, scratch)
        quantized = _quantize(net, bare, op, kernel)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            files = net.exporter.write(quantized, Path(folder))
            net.exporter.audit(quantized, files[0])
            baseline = net.exporter.float_model(runtime.format)
            seen["converts"] = True
            trial = _trial(
                net, kernel, quantized, Candidate(files[0], runtime.name), Candidate(baseline[0], runtime.name)
            )
            for look in (_answers, _account, _timed):
                seen |= look(trial, device)
    except MissingExtraError:
        raise  # it says something about this installation and nothing about the cell
    except Exception as error:
        seen["error"] = _told(error)
    said = {"op": op, "kernel": kernel.name, "claim": claim_of(runtime, op, kernel), "allowed": allowed(op, kernel)}
    return Cell.model_validate(said | seen)


def _prepare(op: OpClass, scheme: Scheme, prepared: _Ready, scratch: Path) -> _Prepared:
    # An unsigned kernel that wants zero point 0 takes signed values only as signed integers, which an input is not.
    positive = scheme.symmetry == "symmetric" and scheme.integer and not scheme.signed
    if (op, positive) in prepared:
        return prepared[op, positive]
    if op not in OPERATORS:
        raise UnsupportedError("there is no probe for this operator")
    operator = OPERATORS[op]
    model = load(torch.export.export(seeded(operator), tuple(samples(operator, 1, seed=0))))
    seen = samples(operator, CALIBRATION_SAMPLES, seed=1, positive=positive)
    arrays = {spec.name: values.numpy() for spec, values in zip(model.inputs, seen, strict=True)}
    folder = scratch / f"{op}-{positive}"
    folder.mkdir()
    given = samples(operator, SAMPLES, seed=2, width=WIDER, positive=positive)
    ready = _Prepared(model, calibrate(model, arrays), Exporter(model, folder), given)
    return prepared.setdefault((op, positive), ready)


def _quantize(net: _Prepared, runtime: Runtime, op: OpClass, kernel: Kernel) -> Quantized:
    """The network with exactly this kernel; what stands beside the operator gets one of the same activations."""
    (name,) = (group.name for group in net.model.groups if group.op == op)
    alike = [k for k in runtime.kernels if k.activation_scheme == kernel.activation_scheme]
    beside = {group.name: next((k.name for k in alike if group.op in k.ops), kernel.name) for group in net.model.groups}
    quantized = quantize_model(
        net.model,
        runtime,
        net.calibration,
        choices=beside | {name: kernel.name},
        estimator="min-max",
        correct_bias=False,
    )
    if quantized.assignment.choice(name) != kernel.name:
        raise UnsupportedError(f"edgeq leaves it in float: {quantized.assignment.reasons[name]}")
    return quantized


@dataclass(frozen=True)
class _Trial:
    """One artefact with what it is fed.

    Attributes:
        kernel: what is tried.
        integers: by input name, what the artefact takes, [N, ...]: floats where the kernel takes them.
        floats: the same values as the float model takes them.
    """

    net: _Prepared
    kernel: Kernel
    quantized: Quantized
    artifact: Candidate
    baseline: Candidate
    integers: dict[str, Array]
    floats: dict[str, Array]


def _trial(net: _Prepared, kernel: Kernel, quantized: Quantized, artifact: Candidate, baseline: Candidate) -> _Trial:
    ends = list(zip(net.model.inputs, net.model.input_nodes, net.inputs, strict=True))
    if kernel.float_ends:
        given = {spec.name: values.numpy() for spec, _, values in ends}
        return _Trial(net, kernel, quantized, artifact, baseline, given, given)
    scales = {spec.name: (quantized.activations[node].q, values.numpy()) for spec, node, values in ends}
    integers = {name: quantize(values, q) for name, (q, values) in scales.items()}
    floats = {name: dequantize(integers[name], q) for name, (q, _) in scales.items()}
    return _Trial(net, kernel, quantized, artifact, baseline, integers, floats)


def _answers(trial: _Trial, device: Device) -> dict[str, object]:
    """The largest difference from the simulation, in steps: both lie on the grid of the output. Where the output is
    float, in steps of a 16-bit grid: rounding the input to 8 bits would be off by hundreds."""
    model, quantized = trial.net.model, trial.quantized
    (raw,) = device.outputs(trial.artifact, _arrays(trial.integers))
    alone = ([torch.from_numpy(x[i : i + 1]) for x in trial.floats.values()] for i in range(SAMPLES))
    expected = np.concatenate([simulate(model, quantized, batch)[0].numpy() for batch in alone])
    if raw.size != expected.size:
        raise DeviceError(f"it gave {raw.size} values where {expected.size} were expected")
    if trial.kernel.float_ends:
        step = (expected.max() - expected.min()) / FLOAT_STEPS
        moved = np.abs(raw.reshape(expected.shape) - expected).max()
        return {"runs": True, "steps": round(float(moved / step))}
    q = quantized.activations[model.output_nodes[0]].q
    given = dequantize(raw, q).reshape(expected.shape)
    return {"runs": True, "steps": round(float(np.abs(given - expected).max() / q.scale))}


def _account(trial: _Trial, device: Device) -> dict[str, object]:
    rows = device.placement(trial.artifact, _arrays(trial.integers, 1))
    integer = on_any_integers(rows) if trial.kernel.float_ends else on_integers(rows)
    return {"integer": integer, "ran_as": list(dict.fromkeys(f"{row.op}, {row.where}" for row in rows))}


def _timed(trial: _Trial, device: Device) -> dict[str, object]:
    if device.emulated:
        return {}
    runs = device.latency(
        {"integer": trial.artifact, "float": trial.baseline},
        _arrays(trial.floats, 1),
        own_inputs={"integer": _arrays(trial.integers, 1)},
        rounds=ROUNDS,
        warmup=WARMUP,
    )
    medians = {name: round(1e6 * float(np.median(seconds)), 1) for name, seconds in runs.items()}
    return {"speed": Speed(integer_us=medians["integer"], float_us=medians["float"])}


def _arrays(arrays: Mapping[str, Array], count: int = SAMPLES) -> Inputs:
    return {name: array[:count] for name, array in arrays.items()}


def on_integers(rows: Sequence[Placement]) -> bool | None:
    """Whether a network with integers at both ends stayed on integers, by the runtime's own account of it.

    Operators that only move values tell nothing of themselves; but without a conversion they moved integers. None where
    the runtime listed no operator.
    """
    if not rows:
        return None
    return not any(row.integer is False or row.op in _CONVERSIONS for row in rows)


def on_any_integers(rows: Sequence[Placement]) -> bool | None:
    """Whether a network with floats at both ends computed anything on integers; None where the runtime does not say."""
    said = {row.integer for row in rows} - {None}
    return any(said) if said else None


def allowed(op: OpClass, kernel: Kernel) -> int:
    """By how many steps the answers of this cell may differ from the simulation."""
    if kernel.steps is not None:
        return kernel.steps
    if kernel.dynamic is not None:
        return ALLOWED_DYNAMIC
    return ALLOWED_BETWEEN if op in _CURVES and kernel.activations in ("int16", "uint16") else ALLOWED


def _told(error: Exception) -> str:
    """An error in one line, without the places of this machine."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, EdgeqError):
        text = f"{error.where}: {error.cause}" if error.where else error.cause
    line = " ".join(re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)*", "", text).split())
    return line[:300]
