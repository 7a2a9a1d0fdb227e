"""Runs an artefact on the CPUs of its family: which answers differ, from which layer on, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.api.validate import artifact_runtime, find_artifact
from edgeq.data.dataset import InputSpec
from edgeq.data.load import load_data
from edgeq.devices import Candidate, Device, Port, open_device
from edgeq.devices.likeness import unlike
from edgeq.errors import DeviceError, UnsupportedError, UsageError
from edgeq.files import scratch_folder
from edgeq.lock import read_golden, read_lock
from edgeq.plans.plan import Plan
from edgeq.preflight.cause import cause_of, saturates
from edgeq.preflight.compare import differing, moved
from edgeq.preflight.members import Member, members_of
from edgeq.preflight.watch import WATCH, Layer
from edgeq.progress import Clock, Progress, Silent
from edgeq.records.preflight import Difference, OnMember, Preflight
from edgeq.registry.load import load_target
from edgeq.registry.schema import Target

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
    if len(set(devices)) < len(devices):
        raise UsageError("a device is named twice", remedy="name two different ones with --device")
    if len(devices) == 1:
        raise UsageError("one device alone is compared with nothing", remedy="name a second one with --device")
    if len(members) < 2:
        raise UnsupportedError(f"{aim.name} has no family that runs here", remedy="name two with --device")
    clock = Clock(progress or Silent())
    ran = _run_on(members, path, chosen.name, partial(_inputs, Path(artifact), samples, preprocess, most), clock)
    if not devices and members[0].name not in ran.answers:
        cause = f"{members[0].name}, which the others are compared with, could not be run: {ran.failed[0].cause}"
        remedy = "compare two devices without it: --device local --device x86_64"
        raise DeviceError(cause, where=aim.name, remedy=remedy if ran.answers else ran.failed[0].remedy)
    if len(ran.answers) < 2:
        alone = f"there is nothing to compare {next(iter(ran.answers))} with: " if ran.answers else ""
        raise DeviceError(alone + ran.failed[0].cause, where=aim.name, remedy=ran.failed[0].remedy)
    found = _compared(ran, path, WATCH.get(chosen.format), clock)
    saturating = [one.difference.saturating for one in found.values() if one.difference is not None]
    return Preflight(
        artifact=path.name,
        target=aim.name,
        samples=len(next(iter(ran.inputs.values()))),
        reference=next(iter(ran.answers)),
        members=found,
        layers=list(dict.fromkeys(layer for layers in saturating for layer in layers)),
        warnings=_doubts(aim, *next(iter(ran.there.values()))),
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


def _doubts(target: Target, device: Device, candidate: Candidate) -> list[str]:
    """Of the reference: on another CPU than the target's it may be off as the others are."""
    if candidate.options or device.emulated:
        return []
    other = unlike(target, device, device.environment(candidate.runtime))
    return [f"{other}; what is wrong on it as well is not seen"] if other else []


InputsOf = Callable[[Sequence[Port]], dict[str, Array]]
"""Samples as an artefact with these inputs takes them."""


class _Ran(NamedTuple):
    """What was run.

    Attributes:
        there: those that could be reached, in order, and the artefact as they ran it; `answers`: their outputs.
        members: all of them, with why a member was not reached.
    """

    inputs: dict[str, Array]
    answers: dict[str, list[Array]]
    there: dict[str, tuple[Device, Candidate]]
    members: dict[str, OnMember]
    failed: list[DeviceError]


def _run_on(members: Sequence[Member], path: Path, runtime: str, inputs_of: InputsOf, clock: Clock) -> _Ran:
    ran = _Ran({}, {}, {}, {}, [])
    for member in members:
        own = OnMember(device=member.device, about=member.about)
        try:
            device, candidate = open_device(member.device), Candidate(path, runtime, dict(member.options))
            if not ran.inputs:
                ran.inputs.update(inputs_of(device.interface(candidate).inputs))
            with clock.stage(f"run on {member.name}") as steps:
                ran.answers[member.name] = device.outputs(candidate, ran.inputs, steps)
            ran.there[member.name] = device, candidate
        except DeviceError as error:
            ran.failed.append(error)
            own = own.model_copy(update={"unreached": f"{error.cause}; {error.remedy}"})
        ran.members[member.name] = own
    return ran


def _compared(
    ran: _Ran, path: Path, watch: Callable[[Path, Path], list[Layer]] | None, clock: Clock
) -> dict[str, OnMember]:
    """Each member beside the first that was reached."""
    found = dict(ran.members)
    (reference, expected), *others = ran.answers.items()
    with scratch_folder() as scratch:
        for name, answers in others:
            samples = len(next(iter(ran.inputs.values())))
            gaps = moved(expected, answers, samples)
            told: dict[str, Any] = {
                "moved": float(gaps.max()) if np.isfinite(gaps).all() else None,
                "differing": differing(expected, answers, samples),
            }
            if gaps.any() and watch is not None:
                at = gaps.argsort(kind="stable")[::-1][:WATCHED]
                few = {key: array[at] for key, array in ran.inputs.items()}
                with clock.stage(f"layers on {name}"):
                    told["difference"] = _difference(watch, path, few, (ran.there[reference], ran.there[name]), scratch)
                if told["difference"] is not None and told["difference"].saturating:
                    told["remedy"] = "weights of 7 bits in the layers that saturate"
            found[name] = found[name].model_copy(update=told)
    return found


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
        if any(array.ndim == 0 for array in golden.inputs.values()):
            raise UsageError("the build's golden inputs are damaged", where=str(artifact), remedy="build again")
        return {name: array[:most] for name, array in golden.inputs.items()}
    whole = [port.names[0] for port in ports if "int" in port.dtype and port.scale is not None]
    if whole:
        raise UsageError(f"its input {whole[0]} takes integers", where=str(artifact), remedy="leave --eval away")
    specs = [InputSpec(p.names[0], tuple(None if d < 0 else d for d in p.shape), p.dtype) for p in ports]
    return dict(load_data(samples, specs, preprocess=preprocess, role="evaluation", limit=most).inputs)


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
