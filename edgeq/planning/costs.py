"""Everything that a choice costs in one runtime on one device, measured once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from edgeq.cache import Entry
from edgeq.devices import Device
from edgeq.export.artifact import Exporter
from edgeq.numerics import QParams, Scheme
from edgeq.planning.assign import FLOAT
from edgeq.planning.boundaries import edges
from edgeq.planning.builds import build_all, observe, probing_plans
from edgeq.planning.estimates import modelled, modelled_energy
from edgeq.planning.ladder import Ladder, uniform
from edgeq.planning.plan import FloatPrecision, ModelledBy
from edgeq.planning.problem import predicted_losses, state
from edgeq.planning.sensitivity import contenders, measure_alone, measure_sensitivity
from edgeq.planning.size import fit_sizes
from edgeq.planning.solver import Boundary, Need, Problem
from edgeq.planning.timing import Timing, fit
from edgeq.prepare import Job
from edgeq.quantization.activations import QuantizedTensor, Ranges
from edgeq.quantization.quantize import quantize_model
from edgeq.registry.schema import Profile, Runtime
from edgeq.runtimes import runtime as runtime_info

COSTS_VERSION = 6
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
        correlation: of the ranks of predicted and measured losses, over those that were measured.
        measured: how many losses were measured, by quantizing one layer alone; the others are predicted.
    """

    problems: dict[FloatPrecision, Problem]
    latency_from: Literal["measured", "modelled"] | None
    latency_by: ModelledBy | None
    energy_by: ModelledBy | None
    notes: tuple[str, ...]
    ranges: Ranges
    correlation: float | None
    measured: int


def measure_costs(
    job: Job, runtime: Runtime, exporter: Exporter, folder: Path, options: Ladder, profile: Profile | None = None
) -> Costs:
    """One pass for the losses, a few builds for times and sizes; what cannot be timed is modelled.

    Args:
        profile: the device to model, where there is one.
    """
    clock, model, device = job.clock, job.model, job.device
    found_edges = edges(model, runtime)
    ranges: Ranges = {}
    with clock.stage(f"sensitivity for {runtime.name}") as steps:
        kernels = dict.fromkeys(c for offered in options.values() for c in offered if c != FLOAT)
        alternatives = {
            name: quantize_model(
                model, runtime, job.calibration, job.impact, choices=uniform(options, name), ranges=ranges
            )
            for name in kernels
        }
        sensitivity = measure_sensitivity(model, job.calibration_data.inputs, alternatives, steps)
        predicted = predicted_losses(model, runtime, options, sensitivity)
        # a layer without weights has one and the same rounding whatever the other layers choose
        able = {
            (name, choice): value
            for (name, choice), value in predicted.items()
            if name in alternatives[choice].assignment.kernels
        }
        measured = measure_alone(model, job.calibration_data.inputs, alternatives, contenders(able))
    with clock.stage(f"builds for {runtime.name}") as steps:
        plans = probing_plans(model.groups, options, found_edges)
        built = build_all(model, runtime, job.calibration, plans, exporter, folder, steps)
    labels = exporter.labels(runtime.format)
    timings: dict[FloatPrecision, Timing] = {}
    if isinstance(device, Device) and not device.emulated:
        one = {name: array[:1] for name, array in job.calibration_data.inputs.items()}
        for precision in precisions(runtime, device):
            with clock.stage(f"times in {runtime.name}, {precision}") as steps:
                observed = observe(model, built, device, one, labels, job.threads, steps, precision)
                timings[precision] = fit(model, found_edges, observed)
        estimates = modelled_energy(model, runtime, options, found_edges, profile, list(timings))
    else:
        reduced = not isinstance(device, Device)  # an emulated device computes in float32
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
            sensitivity,
            {
                measure: tables[precision]
                for measure, tables in (("latency", latencies), ("energy", estimates.energy))
                if precision in tables
            },
            sizes,
            measured,
        )
        for precision in (list(latencies or estimates.energy) or FLOATS)
    }
    correlation = rank_correlation([predicted[key] for key in measured], list(measured.values()))
    return Costs(
        problems,
        "measured" if timings else "modelled" if estimates.latency else None,
        estimates.latency_by,
        estimates.energy_by,
        estimates.notes,
        ranges,
        correlation,
        len(measured),
    )


def precisions(runtime: Runtime, device: Device) -> list[FloatPrecision]:
    """What a runtime may compute in on this device where layers stay in float."""
    able = runtime_info(runtime.name).baselines(device.environment(runtime.name))
    return ["float32", *(p for p in runtime.float_alternatives if p in able)]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, the correlation of the ranks; None for fewer than three pairs."""
    if len(first) < 3:
        return None
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def pack_costs(found: Costs) -> Entry:
    return Entry(
        {
            "problems": {precision: _pack_problem(problem) for precision, problem in found.problems.items()},
            "latency_from": found.latency_from,
            "latency_by": None if found.latency_by is None else found.latency_by.model_dump(),
            "energy_by": None if found.energy_by is None else found.energy_by.model_dump(),
            "notes": list(found.notes),
            "correlation": found.correlation,
            "measured": found.measured,
            "ranges": [
                [estimator, asdict(scheme), fixed, list(names), _pack_tensor(tensor)]
                for (estimator, scheme, fixed, names), tensor in found.ranges.items()
            ],
        }
    )


def unpack_costs(entry: Entry) -> Costs:
    values = entry.values
    ranges = {
        (estimator, Scheme(**scheme), fixed, tuple(names)): _unpack_tensor(tensor)
        for estimator, scheme, fixed, names, tensor in values["ranges"]
    }
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
        ranges,
        values["correlation"],
        values["measured"],
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
        (),
        kept["fixed"],
    )


def _pack_tensor(tensor: QuantizedTensor) -> list[object]:
    q = tensor.q
    grid = [asdict(q.scheme), float(q.scale), int(q.zero_point)]
    return [*grid, tensor.low, tensor.high, tensor.estimator, tensor.share, tensor.reason]


def _unpack_tensor(kept: list[object]) -> QuantizedTensor:
    scheme, scale, zero_point, low, high, estimator, share, reason = kept
    q = QParams(
        Scheme(**scheme),  # type: ignore[arg-type]
        torch.tensor(scale, dtype=torch.float32),
        torch.tensor(zero_point, dtype=torch.int32),
    )
    return QuantizedTensor(q, low, high, estimator, share, reason)  # type: ignore[arg-type]
