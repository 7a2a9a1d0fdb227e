"""Everything that a choice costs in one runtime on one device, measured once and kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from edgeq.cache import Entry
from edgeq.devices import Device
from edgeq.export.artifact import Exporter
from edgeq.lowering.as_run import as_run
from edgeq.lowering.choices import Ladder
from edgeq.lowering.space import Space
from edgeq.planning.costs.builds import build_all, observe, probing_plans
from edgeq.planning.costs.estimates import modelled_energy, modelled_latency
from edgeq.planning.costs.size import fit_sizes
from edgeq.planning.costs.state import state
from edgeq.planning.costs.timing import Timing, fit
from edgeq.planning.sensitivity.losses import Losses, measure_losses
from edgeq.planning.solver.solve import Problem
from edgeq.plans.plan import FloatPrecision, ModelledBy
from edgeq.prepare import Job
from edgeq.registry.schema import Runtime
from edgeq.runtimes import runtime as runtime_info

COSTS_VERSION = 19
"""To be raised whenever what is measured, or how it is kept, changes."""


@dataclass(frozen=True)
class Costs:
    """What a search needs to know.

    Attributes:
        problems: by the precision of what stays in float, every choice of every layer with its loss, size and, where
            they are known, latency and energy.
        latency_from: `measured` on the device's own clock, `modelled` where it has none, None where neither can be.
        latency_by, energy_by: what modelled them.
        notes: what a reader of the numbers has to know.
    """

    problems: dict[FloatPrecision, Problem]
    losses: Losses
    latency_from: Literal["measured", "modelled"] | None
    latency_by: ModelledBy | None
    energy_by: ModelledBy | None
    notes: list[str]


_KEPT = TypeAdapter(Costs)


def pack_costs(found: Costs) -> Entry:
    return Entry(_KEPT.dump_python(found, mode="json"))


def unpack_costs(entry: Entry) -> Costs:
    return _KEPT.validate_python(entry.values)


def measure_costs(job: Job, runtime: Runtime, exporter: Exporter, folder: Path, options: Ladder) -> Costs:
    """One pass for the losses, a few builds for times and sizes; what cannot be timed is modelled."""
    clock, model, device, profile = job.clock, job.model, job.timed, job.profile
    space = Space(model, runtime, options)
    losses = measure_losses(job, space)
    with clock.stage(f"builds for {runtime.name}") as steps:
        plans = probing_plans(space)
        built = build_all(model, runtime, job.calibration, plans, exporter, folder, steps, job.engine)
    labels = exporter.labels(runtime.format)
    latency, latency_by, notes = dict[FloatPrecision, Timing](), None, list[str]()
    wanted: list[FloatPrecision] = ["float32", *runtime.float_alternatives]
    if device is not None:
        one = job.calibration_data.first(1)
        for precision in precisions(runtime, device):
            with clock.stage(f"times in {runtime.name}, {precision}") as steps:
                observed = observe(model, built, device, one, labels, job.threads, steps, precision)
                ran = [replace(o, choices=as_run(model, runtime, space.edges, options, o.choices)) for o in observed]
                latency[precision] = fit(model, space.edges, ran)
    else:
        wanted = wanted[:1] if job.device else wanted  # an emulated device computes in float32
        with clock.stage(f"model of {profile.name}" if profile else "model of the device"):
            latency, latency_by, notes = modelled_latency(space, built, labels, profile, job.threads, wanted)
    energy, energy_by = modelled_energy(space, profile, latency or wanted)
    sizes = fit_sizes(space, [(b.choices, b.size) for b in built.values()])
    alone = {(one.layer, one.choice): one.simulated for one in losses.alone}
    problems: dict[FloatPrecision, Problem] = {}
    for precision in latency or energy or wanted[:1]:
        measured = {"latency": latency, "energy": energy}
        known = {measure: tables[precision] for measure, tables in measured.items() if precision in tables}
        problems[precision] = state(space, losses.sensitivity, known, sizes, alone)
    latency_from: Literal["measured", "modelled"] = "modelled" if device is None else "measured"
    return Costs(problems, losses, latency_from if latency else None, latency_by, energy_by, notes)


def precisions(runtime: Runtime, device: Device) -> list[FloatPrecision]:
    """What a runtime may compute in on this device where layers stay in float."""
    able = runtime_info(runtime.name).baselines(device.environment(runtime.name))
    return ["float32", *(p for p in runtime.float_alternatives if p in able)]
