"""Everything that a choice costs in one runtime on one device, measured once and kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from edgeq.cache import Entry
from edgeq.devices import Device
from edgeq.errors import UnsupportedError
from edgeq.export.artifact import Exporter
from edgeq.lowering.as_run import as_run
from edgeq.lowering.choices import Ladder
from edgeq.lowering.space import Space
from edgeq.planning.costs.builds import build_all, observe, probing_plans
from edgeq.planning.costs.estimates import by_roofline, by_vela, modelled_energy
from edgeq.planning.costs.size import fit_sizes
from edgeq.planning.costs.source import Bench, Latencies, Source
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


FLOATS: tuple[FloatPrecision, ...] = ("float32",)


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


def by_clock(bench: Bench) -> Latencies | None:
    """What the device's own clock says, of a few builds that take turns."""
    job, space, device = bench.job, bench.space, bench.job.timed
    if device is None:
        return None
    one, tables = job.calibration_data.first(1), dict[FloatPrecision, Timing]()
    for precision in precisions(space.runtime, device):
        with job.clock.stage(f"times in {space.runtime.name}, {precision}") as steps:
            observed = observe(job.model, bench.built, device, one, bench.labels, job.threads, steps, precision)
            ran = [replace(o, choices=as_run(space, o.choices)) for o in observed]
            tables[precision] = fit(job.model, space.edges, ran)
    return Latencies(tables, None)


SOURCES: list[Source] = [by_clock, by_vela, by_roofline]
"""Asked in order, until one knows."""


def sources() -> list[str]:
    """What tells latencies of one list of sources from those of another."""
    return [f"{source.__module__}.{source.__name__}" for source in SOURCES]


def measure_costs(job: Job, runtime: Runtime, exporter: Exporter, folder: Path, options: Ladder) -> Costs:
    """One pass for the losses, a few builds for times and sizes."""
    space = Space(job.model, runtime, options)
    losses = measure_losses(job, space)
    with job.clock.stage(f"builds for {runtime.name}") as steps:
        plans = probing_plans(space)
        built = build_all(job.model, runtime, job.calibration, plans, exporter, folder, steps, job.engine)
    bench, notes = Bench(job, space, built, exporter.labels(runtime.format)), list[str]()
    latency = Latencies({}, None)
    for source in SOURCES:
        told = source(bench)
        if isinstance(told, Latencies):
            latency = told
            if latency.by is None and job.timed is None:
                cause = f"{source.__name__} gives latencies and does not say what modelled them"
                raise UnsupportedError(cause, where="edgeq.planning.costs.table.SOURCES", remedy="give a ModelledBy")
            break
        notes += [told] if told else []
    wanted = FLOATS if job.device else (*FLOATS, *runtime.float_alternatives)  # an emulated device has float32 alone
    energy, energy_by = modelled_energy(space, job.profile, latency.tables or wanted)
    sizes = fit_sizes(space, [(b.choices, b.size) for b in built.values()])
    alone = {(one.layer, one.choice): one.simulated for one in losses.alone}
    problems: dict[FloatPrecision, Problem] = {}
    for precision in latency.tables or energy or FLOATS:
        tables = {"latency": latency.tables, "energy": energy}
        known = {measure: some[precision] for measure, some in tables.items() if precision in some}
        problems[precision] = state(space, losses.sensitivity, known, sizes, alone)
    latency_from: Literal["measured", "modelled"] = "measured" if latency.by is None else "modelled"
    return Costs(problems, losses, latency_from if latency.tables else None, latency.by, energy_by, notes)


def precisions(runtime: Runtime, device: Device) -> list[FloatPrecision]:
    """What a runtime may compute in on this device where layers stay in float."""
    able = runtime_info(runtime.name).baselines(device.environment(runtime.name))
    return ["float32", *(p for p in runtime.float_alternatives if p in able)]
