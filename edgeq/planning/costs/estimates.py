"""Chooses the model of a device that cannot be timed here, and says what it is: what Vela estimates where it compiles
for the device, a roofline over the figures of its profile elsewhere, or nothing where the profile knows too little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeq.errors import EdgeqError, UnsupportedError
from edgeq.export.onnx_names import layer_of
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.boundaries import Edge, Kind
from edgeq.lowering.choices import Ladder
from edgeq.model.model import Model
from edgeq.planning.costs.builds import Built
from edgeq.planning.costs.modelled import (
    ENERGY,
    LATENCY,
    Roofline,
    conversion_table,
    energies,
    roofline,
    table,
    used_figures,
)
from edgeq.planning.costs.timing import Timing, attribute
from edgeq.planning.costs.vela import estimate, version
from edgeq.plans.plan import FloatPrecision, ModelledBy
from edgeq.registry.schema import Profile, Runtime, VelaSystem


@dataclass(frozen=True)
class Estimates:
    """What was modelled.

    Attributes:
        latency, energy: by the precision of what stays in float; empty where the profile knows too little.
        latency_by, energy_by: what computed them.
        notes: what a reader of the numbers has to know.
    """

    latency: dict[FloatPrecision, Timing] = field(default_factory=dict)
    energy: dict[FloatPrecision, Timing] = field(default_factory=dict)
    latency_by: ModelledBy | None = None
    energy_by: ModelledBy | None = None
    notes: tuple[str, ...] = ()


def modelled_energy(
    model: Model,
    runtime: Runtime,
    options: Ladder,
    edges: Sequence[Edge],
    profile: Profile | None,
    precisions: Sequence[FloatPrecision],
) -> Estimates:
    """Energies alone, for a device whose latency is measured."""
    by = "profile" if profile is None else energies(profile)
    if profile is None or isinstance(by, str):
        return Estimates()
    found = {p: table(model, runtime, options, edges, by, p) for p in precisions}
    return Estimates(energy=found, energy_by=_by("operations and bytes moved", profile, ENERGY))


def modelled(
    model: Model,
    runtime: Runtime,
    options: Ladder,
    edges: Sequence[Edge],
    built: Mapping[str, Built],
    labels: Mapping[str, str],
    profile: Profile | None,
    threads: int,
    *,
    reduced: bool,
) -> Estimates:
    """Latencies and energies of a device without a clock.

    Args:
        built: see `probing_plans`; what Vela compiles.
        labels: see `Exporter.labels`.
        reduced: try the float types of the runtime besides float32 as well.
    """
    if profile is None:
        return Estimates(notes=("the target has no profile to model a latency from: --profile names a device",))
    roof = roofline(profile, threads)
    wanted: list[FloatPrecision] = ["float32", *(runtime.float_alternatives if reduced else ())]
    if isinstance(roof, Roofline):
        wanted = [p for p in wanted if p in roof.rates] or ["float32"]
    energy = modelled_energy(model, runtime, options, edges, profile, wanted)
    latency: dict[FloatPrecision, Timing] = {}
    by: ModelledBy | None = None
    notes = []
    if runtime.name == "vela" and profile.vela is not None:
        try:
            layers = _by_vela(model, built, labels, profile.vela)
            latency, by = {"float32": Timing(layers, _between(edges, runtime, roof))}, _vela(profile, profile.vela)
        except EdgeqError as error:
            notes.append(f"there is no estimate of Vela's: {error.cause}; {error.remedy}")
    if by is None and isinstance(roof, Roofline):
        latency = {p: table(model, runtime, options, edges, roof, p) for p in wanted}
        by = _by("a roofline", profile, LATENCY)
    elif by is None:
        notes.append(f"latency cannot be modelled for {profile.name}: its profile does not give {roof}")
    return Estimates(latency, energy.energy, by, energy.energy_by, tuple(notes))


def asked_of_vela(runtime: Runtime, profile: Profile | None) -> str | None:
    """The version of Vela that estimates for this runtime; None where another model does."""
    return version() if runtime.name == "vela" and profile is not None and profile.vela is not None else None


def _by(what: str, profile: Profile, heads: tuple[str, ...]) -> ModelledBy:
    return ModelledBy(by=what, profile=profile.name, figures=used_figures(profile, heads))


def _vela(profile: Profile, system: VelaSystem) -> ModelledBy:
    what = f"{system.accelerator}, system {system.system}, memory mode {system.memory} of {system.config}"
    return ModelledBy(by=f"Vela {version()}", profile=profile.name, figures=[what])


def _between(edges: Sequence[Edge], runtime: Runtime, roof: Roofline | str) -> dict[str, dict[Kind, float]]:
    """Seconds of conversions, which are the CPU's; 0 where nothing is known."""
    if isinstance(roof, Roofline):
        return conversion_table(edges, runtime, roof, "float32")
    return {edge.tensor: {"quantize": 0.0, "dequantize": 0.0, "requantize": 0.0} for edge in edges}


def _by_vela(
    model: Model, built: Mapping[str, Built], labels: Mapping[str, str], system: VelaSystem
) -> dict[str, dict[str, float]]:
    """Seconds by group and kernel, from the builds in which no neighbours differ. What is in float is the CPU's, whose
    time is not known.

    Raises:
        UnsupportedError, MissingExtraError: see `estimate`.
    """
    uniform = {"preferred", *(choice for one in built.values() for choice in one.choices.values())} - {FLOAT}
    found: dict[str, dict[str, float]] = {}
    for name, one in built.items():
        if name not in uniform:
            continue
        said = estimate(one.candidate.path, system)
        seconds = attribute(model, said.rows, labels, one.choices, said.seconds).seconds
        by_npu = {layer_of(row.name, labels) for row in said.rows if row.where == "NPU"}
        by_cpu = {layer_of(row.name, labels) for row in said.rows if row.where == "CPU"} - by_npu
        for group, choice in one.choices.items():
            if choice != FLOAT and group not in by_cpu:
                found.setdefault(group, {}).setdefault(choice, seconds[group])
    if not found:
        raise UnsupportedError("it leaves every operator to the CPU", remedy="see vela --supported-ops-report")
    return found
