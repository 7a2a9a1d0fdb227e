"""Everything that a choice costs in one runtime on one device, measured once and kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeq.cache import Entry
from edgeq.devices import Device
from edgeq.export.artifact import Exporter
from edgeq.lowering.as_run import as_run
from edgeq.lowering.boundaries import edges
from edgeq.lowering.choices import Ladder
from edgeq.planning.costs.builds import build_all, observe, probing_plans
from edgeq.planning.costs.estimates import modelled, modelled_energy
from edgeq.planning.costs.size import fit_sizes
from edgeq.planning.costs.state import state
from edgeq.planning.costs.timing import Timing, fit
from edgeq.planning.sensitivity.losses import measure_losses, pack_ranges, unpack_ranges
from edgeq.planning.solver.solve import Boundary, Need, Problem
from edgeq.plans.plan import AloneLoss, FloatPrecision, ModelledBy
from edgeq.prepare import Job
from edgeq.quantization.activations import Ranges
from edgeq.registry.schema import Runtime
from edgeq.runtimes import runtime as runtime_info

COSTS_VERSION = 18
"""To be raised whenever what is measured, or how it is kept, changes."""


FLOATS: list[FloatPrecision] = ["float32"]


@dataclass(frozen=True)
class Costs:
    """What a search needs to know.

    Attributes:
        problems: by the precision of what stays in float, every choice of every layer with its loss, size and, where
            they are known, latency and energy.
        latency_from: `measured` on the device's own clock, `modelled` where it has none, None where neither can be.
        latency_by, energy_by: what modelled them.
        notes: what a reader of the numbers has to know.
        ranges: of the activations, which every plan of this runtime shares.
        alone: losses that were simulated, one layer quantized alone; the others are predicted.
        correlation: of the ranks of predicted and simulated losses, over those in `alone`.
    """

    problems: dict[FloatPrecision, Problem]
    latency_from: Literal["measured", "modelled"] | None
    latency_by: ModelledBy | None
    energy_by: ModelledBy | None
    notes: tuple[str, ...]
    ranges: Ranges
    alone: list[AloneLoss]
    correlation: float | None


def measure_costs(job: Job, runtime: Runtime, exporter: Exporter, folder: Path, options: Ladder) -> Costs:
    """One pass for the losses, a few builds for times and sizes; what cannot be timed is modelled."""
    clock, model, device, profile = job.clock, job.model, job.timed, job.profile
    found_edges = edges(model, runtime)
    losses = measure_losses(job, runtime, options)
    with clock.stage(f"builds for {runtime.name}") as steps:
        plans = probing_plans(model.groups, runtime, options, found_edges)
        built = build_all(model, runtime, job.calibration, plans, exporter, folder, steps, job.engine)
    labels = exporter.labels(runtime.format)
    timings: dict[FloatPrecision, Timing] = {}
    if device is not None:
        one = job.calibration_data.first(1)
        for precision in precisions(runtime, device):
            with clock.stage(f"times in {runtime.name}, {precision}") as steps:
                observed = observe(model, built, device, one, labels, job.threads, steps, precision)
                ran = [replace(o, choices=as_run(model, runtime, found_edges, options, o.choices)) for o in observed]
                timings[precision] = fit(model, found_edges, ran)
        estimates = modelled_energy(model, runtime, options, found_edges, profile, list(timings))
    else:
        reduced = job.device is None  # an emulated device computes in float32
        with clock.stage(f"model of {profile.name}" if profile else "model of the device"):
            estimates = modelled(
                model, runtime, options, found_edges, built, labels, profile, job.threads, reduced=reduced
            )
    sizes = fit_sizes(model, runtime, options, found_edges, [(b.choices, b.size) for b in built.values()])
    latencies = timings or estimates.latency
    problems = {
        precision: state(
            model,
            runtime,
            options,
            found_edges,
            losses.sensitivity,
            {
                measure: tables[precision]
                for measure, tables in (("latency", latencies), ("energy", estimates.energy))
                if precision in tables
            },
            sizes,
            {(one.layer, one.choice): one.simulated for one in losses.alone},
        )
        for precision in (list(latencies or estimates.energy) or FLOATS)
    }
    return Costs(
        problems,
        "measured" if timings else "modelled" if estimates.latency else None,
        estimates.latency_by,
        estimates.energy_by,
        estimates.notes,
        losses.ranges,
        losses.alone,
        losses.correlation,
    )


def precisions(runtime: Runtime, device: Device) -> list[FloatPrecision]:
    """What a runtime may compute in on this device where layers stay in float."""
    able = runtime_info(runtime.name).baselines(device.environment(runtime.name))
    return ["float32", *(p for p in runtime.float_alternatives if p in able)]


def pack_costs(found: Costs) -> Entry:
    return Entry(
        {
            "problems": {precision: _pack_problem(problem) for precision, problem in found.problems.items()},
            "latency_from": found.latency_from,
            "latency_by": None if found.latency_by is None else found.latency_by.model_dump(),
            "energy_by": None if found.energy_by is None else found.energy_by.model_dump(),
            "notes": list(found.notes),
            "alone": [one.model_dump() for one in found.alone],
            "correlation": found.correlation,
            "ranges": pack_ranges(found.ranges),
        }
    )


def unpack_costs(entry: Entry) -> Costs:
    values = entry.values
    problems = {precision: _unpack_problem(kept) for precision, kept in values["problems"].items()}
    latency_by, energy_by = (
        None if (kept := values[name]) is None else ModelledBy.model_validate(kept)
        for name in ("latency_by", "energy_by")
    )
    return Costs(
        problems,
        values["latency_from"],
        latency_by,
        energy_by,
        tuple(values["notes"]),
        unpack_ranges(values["ranges"]),
        [AloneLoss.model_validate(one) for one in values["alone"]],
        values["correlation"],
    )


def _pack_problem(problem: Problem) -> dict[str, Any]:
    return {
        "options": {g: {c: dict(costs) for c, costs in offered.items()} for g, offered in problem.options.items()},
        "boundaries": [
            [b.producer, sorted(b.leaves), {r: sorted(v) for r, v in b.readers.items()}, dict(b.costs)]
            for b in problem.boundaries
        ],
        "needs": [[n.group, sorted(n.choices), [[o, sorted(v)] for o, v in n.any_of]] for n in problem.needs],
        "fixed": dict(problem.fixed),
    }


def _unpack_problem(kept: dict[str, Any]) -> Problem:
    return Problem(
        kept["options"],
        [
            Boundary(producer, frozenset(leaves), {r: frozenset(v) for r, v in readers.items()}, costs)
            for producer, leaves, readers, costs in kept["boundaries"]
        ],
        [
            Need(group, frozenset(choices), tuple((o, frozenset(v)) for o, v in any_of))
            for group, choices, any_of in kept["needs"]
        ],
        kept["fixed"],
    )
