"""Runs an artefact on the CPUs of its family: which answers differ, from which layer on, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.api.validate import artifact_runtime, find_artifact
from edgeq.data.dataset import InputSpec
from edgeq.data.load import load_data
from edgeq.devices import Candidate, Device, Port, open_device
from edgeq.errors import DeviceError, UnsupportedError, UsageError
from edgeq.files import scratch_folder
from edgeq.lock import read_golden, read_lock
from edgeq.plans.plan import Plan
from edgeq.preflight.cause import cause_of, saturates
from edgeq.preflight.members import Member, members_of
from edgeq.preflight.watch import WATCH, Layer
from edgeq.progress import Clock, Progress, Silent
from edgeq.records.preflight import Difference, OnMember, Preflight
from edgeq.registry.load import load_target

Array = NDArray[Any]

NARROW = "w7a8"
"""The choice whose sums of two products fit into 16 bits."""

WATCHED = 8
"""Samples whose layers are looked at: those whose outputs moved most."""


def preflight(
    artifact: str | Path,
    *,
    samples: str | Path | None = None,
    preprocess: str | None = None,
    most: int = 200,
    target: str | None = None,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
) -> Preflight:
    """What an artefact answers on every CPU of its target's family.

    Args:
        artifact: a file, or the folder of a build.
        samples, preprocess: as evaluation data of `deploy`; the build's golden inputs if not given.
        most: samples that are run, evenly spread.
        target: that of the build if not given.
        devices: what to compare instead of the family; the first is the reference.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the target has no family that can be run.
        DeviceError: fewer than two members could be reached.
    """
    path, aim = find_artifact(artifact, target)
    chosen = artifact_runtime(aim, path)
    members = [Member(name, name, "as named") for name in devices] or members_of(aim, chosen.name)
    if len(devices) == 1:
        raise UsageError("one device alone is compared with nothing", remedy="name a second one with --device")
    if len(members) < 2:
        raise UnsupportedError(f"{aim.name} has no family that runs here", remedy="name two with --device")
    inputs: dict[str, Array] = {}
    clock = Clock(progress or Silent())
    answers: dict[str, list[Array]] = {}
    found: dict[str, OnMember] = {}
    there: dict[str, tuple[Device, Candidate]] = {}
    failed: list[DeviceError] = []
    for member in members:
        own = OnMember(device=member.device, about=member.about)
        try:
            device, candidate = open_device(member.device), Candidate(path, chosen.name, dict(member.options))
            inputs = inputs or _inputs(Path(artifact), samples, preprocess, most, device.interface(candidate).inputs)
            with clock.stage(f"run on {member.name}") as steps:
                answers[member.name] = device.outputs(candidate, inputs, steps)
            there[member.name] = device, candidate
        except DeviceError as error:
            failed.append(error)
            own = own.model_copy(update={"unreached": f"{error.cause}; {error.remedy}"})
        found[member.name] = own
    if not answers:
        raise failed[0]
    if len(answers) < 2:
        cause = f"there is nothing to compare {next(iter(answers))} with: {failed[0].cause}"
        raise DeviceError(cause, where=aim.name, remedy=failed[0].remedy)
    reference = next(iter(answers))
    saturating: dict[str, None] = {}
    with scratch_folder() as scratch:
        for name in list(answers)[1:]:
            moved = _moved(answers[reference], answers[name])
            own = found[name].model_copy(
                update={"moved": float(moved.max()), "differing": _differing(answers[reference], answers[name])}
            )
            if own.moved and chosen.format in WATCH:
                at = moved.argsort(kind="stable")[::-1][:WATCHED]
                few = {key: array[at] for key, array in inputs.items()}
                with clock.stage(f"layers on {name}"):
                    difference = _difference(WATCH[chosen.format], path, few, (there[reference], there[name]), scratch)
                own = own.model_copy(update={"difference": difference})
            if own.difference is not None and own.difference.saturating:
                saturating |= dict.fromkeys(own.difference.saturating)
                own = own.model_copy(update={"remedy": "weights of 7 bits in the layers that saturate"})
            found[name] = own
    return Preflight(
        artifact=path.name,
        target=aim.name,
        samples=len(next(iter(inputs.values()))),
        reference=reference,
        members=found,
        layers=list(saturating),
    )


def remedied(plan: Plan, layers: Collection[str]) -> Plan:
    """A plan with weights of 7 bits in some layers, whose sums of two products then fit into 16 bits.

    Raises:
        UsageError: its runtime has no such kernel for one of them.
    """
    (runtime,) = [one for one in load_target(plan.target).runtimes if one.name == plan.runtime]
    changed = []
    for layer in plan.layers:
        if layer.name in layers:
            if runtime.kernel(layer.op.split()[0], NARROW) is None:
                where, remedy = f"layer {layer.name}", "plan for x86-avx2, whose weights have 7 bits everywhere"
                raise UsageError(f"{runtime.name} has no {NARROW} for {layer.op}", where=where, remedy=remedy)
            layer = layer.model_copy(update={"choice": NARROW})
        changed.append(layer)
    return plan.model_copy(update={"layers": changed})


def _inputs(
    artifact: Path, samples: str | Path | None, preprocess: str | None, most: int, ports: Sequence[Port]
) -> dict[str, Array]:
    """What is run everywhere, as the artefact takes it."""
    if samples is None:
        if not artifact.is_dir():
            raise UsageError("a file has no samples of its own", where=str(artifact), remedy="give some with --eval")
        golden = read_golden(artifact, read_lock(artifact))
        if golden is None:
            raise UsageError("the build has no golden inputs", where=str(artifact), remedy="give some with --eval")
        return {name: array[:most] for name, array in golden.inputs.items()}
    whole = [port.names[0] for port in ports if "int" in port.dtype and port.scale is not None]
    if whole:
        raise UsageError(f"its input {whole[0]} takes integers", where=str(artifact), remedy="leave --eval away")
    specs = [InputSpec(p.names[0], tuple(None if d < 0 else d for d in p.shape), p.dtype) for p in ports]
    return dict(load_data(samples, specs, preprocess=preprocess, role="evaluation", limit=most).inputs)


def _moved(reference: Sequence[Array], other: Sequence[Array]) -> Array:
    """[samples], the largest difference in any output."""
    gaps = [np.abs(a.astype(np.float64) - b.astype(np.float64)) for a, b in zip(reference, other, strict=True)]
    found: Array = np.max([gap.reshape(len(gap), -1).max(1, initial=0.0) for gap in gaps], axis=0)
    return found


def _differing(reference: Sequence[Array], other: Sequence[Array]) -> list[int]:
    """Samples whose first output has its largest value elsewhere."""
    first, second = (answers[0].reshape(len(answers[0]), -1).argmax(1) for answers in (reference, other))
    found: list[int] = np.flatnonzero(first != second).tolist()
    return found


def _difference(
    watch: Callable[[Path, Path], list[Layer]],
    path: Path,
    inputs: Mapping[str, Array],
    pair: tuple[tuple[Device, Candidate], tuple[Device, Candidate]],
    scratch: Path,
) -> Difference | None:
    """The first layer that writes other integers, and those that saturate."""
    copy = scratch / f"watched{path.suffix}"
    layers = watch(path, copy)
    written = [_written(device, Candidate(copy, one.runtime, one.options), inputs) for device, one in pair]
    first: tuple[Layer, int] | None = None
    saturating: list[str] = []
    for layer in layers:
        one, other = (answers[layer.writes].astype(np.int64) for answers in written)
        steps = int(np.abs(one - other).max(initial=0))
        if steps and first is None:
            first = layer, steps
        if layer.reads in written[0] and saturates(layer, written[0][layer.reads]):
            saturating.append(layer.name)
    if first is None:
        return None
    layer, steps = first
    cause = cause_of(layer, written[0].get(layer.reads or ""), steps)
    return Difference(
        layer=layer.name, steps=steps, cause=cause, saturating=saturating if layer.name in saturating else []
    )


def _written(device: Device, candidate: Candidate, inputs: Mapping[str, Array]) -> dict[str, Array]:
    names = [port.names[0] for port in device.interface(candidate).outputs]
    return dict(zip(names, device.outputs(candidate, inputs), strict=True))
