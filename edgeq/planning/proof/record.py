"""A plan as it is written down: its layers with their alternatives and reasons, and all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping

from edgeq.errors import UnsupportedError
from edgeq.export.vela import estimate
from edgeq.planning.costs.estimates import asked_of_vela
from edgeq.planning.proof.outcome import Outcome
from edgeq.planning.proof.search import Search
from edgeq.planning.solver.problem import Change, changes_of
from edgeq.plans.describe import describe
from edgeq.plans.memory import peak_memory
from edgeq.plans.plan import Compiled, Condition, Conversion, Plan, Planned


def written(found: Outcome) -> Plan:
    """The plan with everything that is known of it."""
    search, choices, solution = found.search, found.choices, found.solution
    job, problem, costs = search.job, search.problem, search.costs
    quantized = search.quantize(choices)
    predicted = found.predicted
    basis = describe(
        job.model,
        quantized,
        target=job.target.name,
        data_hash=job.calibration_data.sha256,
        precision=search.precision,
        effort=job.effort,
    )
    every = search.costs.problems[search.precision].options
    changes, lost = changes_of(problem, choices), predicted["loss"]
    compiled, told = _compiled(search, choices)
    if found.proof is None:
        told.append("not validated: no accuracy, latency or energy of this plan was measured")
    layers = [
        layer.model_copy(
            update={
                "alternatives": _priced(every[layer.name], problem.options[layer.name]),
                "reason": _reason(search, choices, layer.name, changes.get(layer.name, {}), lost) or layer.reason,
            }
        )
        for layer in basis.layers
    ]
    planned = Planned(
        minimize=search.minimize,
        limits=dict(found.caps),
        predicted=predicted,
        latency_from=costs.latency_from,
        latency_by=costs.latency_by,
        energy_by=costs.energy_by,
        losses_alone=search.costs.losses.alone,
        rank_correlation=search.costs.losses.correlation,
        method=solution.method if solution is not None else "given",
        gap=solution.gap if solution is not None else None,
        fixed=dict(problem.fixed),
        attempts=list(found.attempts),
        proof=found.proof,
        size=found.size,
        held=found.held,
        peak_memory=peak_memory(job.model, quantized, search.precision),
        compiled=compiled,
        unvalidated=search.unvalidated,
        notes=[*search.notes, *told, *quantized.remarks, *filter(None, [found.remark])],
        conditions=[
            Condition(layer=n.group, choices=sorted(n.choices), any_of={o: sorted(v) for o, v in n.any_of})
            for n in problem.needs
        ],
        conversions=[
            Conversion(
                producer=b.producer,
                leaves=sorted(b.leaves),
                readers={r: sorted(v) for r, v in b.readers.items()},
                costs=dict(b.costs),
            )
            for b in problem.boundaries
        ],
    )
    return basis.model_copy(update={"layers": layers, "planned": planned})


def _compiled(search: Search, choices: Mapping[str, str]) -> tuple[Compiled | None, list[str]]:
    """What Vela says of the plan's own file, or why it does not."""
    profile = search.job.profile
    version = asked_of_vela(search.runtime, profile)
    if version is None or profile is None or profile.vela is None:
        return None, []
    with search.job.clock.stage(f"compile for {profile.name}"):
        try:
            said = estimate(search.built(choices).candidate.path, profile.vela)
        except UnsupportedError as error:
            return None, [f"{error.cause}; {error.remedy}"]
    left = [one.name for one in said.left]
    beside = said.dram + said.flash
    found = Compiled(by=f"Vela {version}", seconds=said.seconds, sram=said.sram, flash=beside, left_to_cpu=left)
    return found, []


def _priced(
    every: Mapping[str, Mapping[str, float]], left: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """What a layer's choices cost, with those that rules forbid: rules may be edited in the plan. What is not known by
    the measures of the others is left out."""
    measures = {measure for costs in left.values() for measure in costs}
    return {choice: dict(costs) for choice, costs in every.items() if choice in left or measures <= costs.keys()}


def _reason(search: Search, choices: Mapping[str, str], layer: str, others: Mapping[str, Change], lost: float) -> str:
    """Why a layer got its choice: what each other one would cost. Empty if there is none."""
    if not others:
        return ""
    options = search.problem.options[layer]
    label = " (modelled)" if search.costs.latency_from == "modelled" else ""
    texts = []
    for other, (added, _) in others.items():
        parts = []
        if "latency" in options[other] and "latency" in options[choices[layer]]:
            parts.append(f"{added['latency'] * 1e6:+.0f} us{label}")
        if "energy" in options[other] and "energy" in options[choices[layer]]:
            parts.append(f"{added['energy'] * 1e6:+.2g} uJ (modelled)")
        parts.append(f"{added['size']:+.0f} bytes")
        parts.append(f"{added['loss'] / max(lost, 1e-12) * 100:+.1f} % loss")
        texts.append(f"{other} instead: {', '.join(parts)}")
    return f"least {search.minimize} within the limits; " + "; ".join(texts)
