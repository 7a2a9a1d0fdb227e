"""Chooses the model of a device that cannot be timed here, and says what it is: what Vela estimates where it compiles
for the device, a roofline over the figures of its profile elsewhere, or nothing where the profile knows too little."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgeq.errors import EdgeqError, UnsupportedError
from edgeq.export.onnx_names import layer_of
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.space import Space
from edgeq.model.model import Model
from edgeq.planning.costs.builds import Built
from edgeq.planning.costs.modelled import conversions, table
from edgeq.planning.costs.timing import Timing, attribute
from edgeq.planning.costs.vela import estimate, version
from edgeq.plans.plan import FloatPrecision, ModelledBy
from edgeq.registry.roofline import ENERGY, LATENCY, Roofline, energies, roofline, used_figures
from edgeq.registry.schema import Profile, Runtime, VelaSystem

Tables = dict[FloatPrecision, Timing]
"""By the precision of what stays in float; empty where the profile knows too little."""


def modelled_energy(
    space: Space, profile: Profile | None, wanted: Iterable[FloatPrecision]
) -> tuple[Tables, ModelledBy | None]:
    """Joules, and what computed them."""
    by = None if profile is None else energies(profile)
    if profile is None or by is None:
        return {}, None
    figures = used_figures(profile, ENERGY)
    told = ModelledBy(by="operations and bytes moved", profile=profile.name, figures=figures)
    return {p: table(space, by, p) for p in wanted}, told


def modelled_latency(
    space: Space,
    built: Mapping[str, Built],
    labels: Mapping[str, str],
    profile: Profile | None,
    threads: int,
    wanted: Sequence[FloatPrecision],
) -> tuple[Tables, ModelledBy | None, list[str]]:
    """Seconds on a device without a clock, what computed them, and what a reader of them has to know.

    Args:
        built: see `probing_plans`; what Vela compiles.
        labels: see `Exporter.labels`.
    """
    if profile is None:
        return {}, None, ["the target has no profile to model a latency from: --profile names a device"]
    roof = roofline(profile, threads)
    notes = []
    if space.runtime.name == "vela" and profile.vela is not None:
        try:
            layers = _by_vela(space.model, built, labels, profile.vela)
            # conversions are the CPU's: they take no time where nothing is known of it
            between = conversions(space, roof if isinstance(roof, Roofline) else None, "float32")
            return {"float32": Timing(layers, between)}, _vela(profile, profile.vela), []
        except EdgeqError as error:
            notes.append(f"there is no estimate of Vela's: {error.cause}; {error.remedy}")
    if isinstance(roof, str):
        notes.append(f"latency cannot be modelled for {profile.name}: its profile does not give {roof}")
        return {}, None, notes
    known: Sequence[FloatPrecision] = [p for p in wanted if p in roof.rates] or ["float32"]
    told = ModelledBy(by="a roofline", profile=profile.name, figures=used_figures(profile, LATENCY))
    return {p: table(space, roof, p) for p in known}, told, notes


def asked_of_vela(runtime: Runtime, profile: Profile | None) -> str | None:
    """The version of Vela that estimates for this runtime; None where another model does."""
    return version() if runtime.name == "vela" and profile is not None and profile.vela is not None else None


def _vela(profile: Profile, system: VelaSystem) -> ModelledBy:
    what = f"{system.accelerator}, system {system.system}, memory mode {system.memory} of {system.config}"
    return ModelledBy(by=f"Vela {version()}", profile=profile.name, figures=[what])


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
    for one in (one for name, one in built.items() if name in uniform):
        said = estimate(one.candidate.path, system)
        seconds = attribute(model, said.rows, labels, one.choices, said.seconds).seconds
        by_npu, by_cpu = ({layer_of(r.name, labels) for r in said.rows if r.where == where} for where in ("NPU", "CPU"))
        for group, choice in one.choices.items():
            if choice != FLOAT and group not in by_cpu - by_npu:
                found.setdefault(group, {}).setdefault(choice, seconds[group])
    if not found:
        raise UnsupportedError("it leaves every operator to the CPU", remedy="see vela --supported-ops-report")
    return found
