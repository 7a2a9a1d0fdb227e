"""One search: the program of one runtime, what was built and measured for it, and how its plans are written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.data.dataset import Dataset
from edgeq.devices import Candidate, Device
from edgeq.errors import UsageError
from edgeq.export.artifact import Exporter
from edgeq.export.audit import audit
from edgeq.planning.costs import COSTS_VERSION, Costs, measure_costs, pack_costs, unpack_costs
from edgeq.planning.describe import describe
from edgeq.planning.ladder import Ladder, ladder, uniform
from edgeq.planning.plan import (
    Attempt,
    Condition,
    Conversion,
    FloatPrecision,
    Plan,
    Planned,
    Proof,
    run_options,
)
from edgeq.planning.rules import Rule, narrowed
from edgeq.planning.solver import Infeasible, Problem, Solution, cost_of, solve
from edgeq.prepare import Job
from edgeq.progress import Silent
from edgeq.quantization.quantize import Quantized, quantize_model
from edgeq.registry.schema import Runtime
from edgeq.report.summary import shown_drop
from edgeq.runtimes import runtime as runtime_info
from edgeq.validation.accuracy import compare
from edgeq.validation.gates import Limits
from edgeq.validation.measure import answers, ends_of
from edgeq.validation.metric import identity

SAME = 0.01
"""Relative differences of predicted latency below this are taken for noise."""

PROOF_ROUNDS = 60
PROOF_VERSION = 2
"""To be raised whenever what is measured for a proof, or how it is kept, changes."""


@dataclass
class Search:
    """What the rounds of one search share."""

    job: Job
    runtime: Runtime
    device: Device
    evaluation: Dataset
    exporter: Exporter
    folder: Path
    options: Ladder
    allowed: Ladder
    costs: Costs
    problem: Problem
    precision: FloatPrecision
    key: str
    minimize: str
    notes: tuple[str, ...] = ()
    builds: int = 0
    proofs: dict[tuple[str, ...], Proof] = field(default_factory=dict)

    @cached_property
    def preferred(self) -> Candidate:
        """The preferred kernels everywhere, to take turns with."""
        return self.build(uniform(self.options))[1]

    def quantize(self, choices: Mapping[str, str]) -> Quantized:
        job = self.job
        return quantize_model(
            job.model, self.runtime, job.calibration, job.impact, choices=choices, ranges=self.costs.ranges
        )

    def build(self, choices: Mapping[str, str]) -> tuple[Quantized, Candidate, int]:
        """Writes and audits the artefact of a plan; its bytes are those of all its files."""
        quantized = self.quantize(choices)
        self.builds += 1
        folder = self.folder / f"plan{self.builds}"
        folder.mkdir(parents=True)
        files = self.exporter.write(quantized, folder)
        audit(self.job.model, quantized, self.exporter.read_back(quantized, files[0]))
        return (
            quantized,
            Candidate(files[0], self.runtime.name, run_options(self.precision)),
            sum(file.stat().st_size for file in files),
        )


def searches(
    job: Job, runtime: Runtime, exporter: Exporter, folder: Path, minimize: str, rules: Sequence[Rule]
) -> list[Search]:
    """One search for each precision that the runtime may compute in where layers stay in float, with measured costs."""
    model, device = job.model, job.device
    assert job.evaluation is not None
    if not isinstance(device, Device):
        raise UsageError(f"a plan for {runtime.name} cannot be proved here: {device}", remedy="choose another target")
    options = ladder(model, runtime, job.calibration.histograms)
    key = content_key(
        "costs",
        COSTS_VERSION,
        model=model.fingerprint,
        calibration=job.calibration_data.sha256,
        runtime=runtime.model_dump(mode="json"),
        device=device.name,
        environment=device.environment(runtime.name),
        threads=job.threads,
    )
    costs = cached(
        job.cache,
        "costs",
        key,
        lambda: measure_costs(job, runtime, exporter, folder, options),
        pack_costs,
        unpack_costs,
    )
    notes = []
    if not costs.timed:
        notes.append(f"{device.name} cannot be timed: the plan knows sizes and losses, and no latency")
        if minimize == "latency":
            minimize = "size"
            notes.append("size was minimized instead of latency")
    ops = {group.name: group.op for group in model.groups}
    allowed = narrowed(options, ops, rules, runtime)
    found = []
    for precision, whole in costs.problems.items():
        problem = replace(whole, options={n: {c: whole.options[n][c] for c in allowed[n]} for n in allowed})
        found.append(
            Search(
                job,
                runtime,
                device,
                job.evaluation,
                exporter,
                folder / precision,
                options,
                allowed,
                costs,
                problem,
                precision,
                key,
                minimize,
                tuple(notes),
            )
        )
    return found


def solve_within(problem: Problem, minimize: str, caps: Mapping[str, float]) -> Solution:
    """The cheapest plan within the limits; where the loss cannot be held beside the others, the one with the least.

    Of plans whose latencies the table cannot tell apart, the one that loses least: a microsecond that may be noise
    must not cost accuracy.
    """
    try:
        best = solve(problem, minimize=minimize, limits=caps)
    except Infeasible:
        return solve(problem, minimize="loss", limits={m: c for m, c in caps.items() if m != "loss"})
    if minimize != "latency":
        return best
    within = min(best.costs["latency"] * (1 + SAME), caps.get("latency", float("inf")))
    careful = solve(problem, minimize="loss", limits={**caps, "latency": within})
    value = careful.costs["latency"]
    return replace(careful, bound=best.bound, gap=max(0.0, (value - best.bound) / value), method=best.method)


def prove(search: Search, choices: Mapping[str, str]) -> Proof:
    """What a plan measures in its runtime, beside the preferred kernels everywhere and the float model."""
    key = tuple(choices[name] for name in search.problem.options)
    if key not in search.proofs:
        job = search.job
        measured = cached(
            job.cache if (judge := identity(job.metric)) else Cache(None),
            "proof",
            content_key(
                "proof",
                PROOF_VERSION,
                costs=search.key,
                choices=list(key),
                precision=search.precision,
                evaluation=search.evaluation.sha256,
                metric=judge,
            ),
            lambda: _measure(search, choices),
            lambda proof: Entry(proof.model_dump(mode="json")),
            lambda entry: Proof.model_validate(entry.values),
        )
        search.proofs[key] = measured.model_copy(update={"held": held(job.limits, measured)})
    return search.proofs[key]


def _measure(search: Search, choices: Mapping[str, str]) -> Proof:
    job = search.job
    quantized, artifact, size = search.build(choices)
    ends = ends_of(job.model, quantized)
    outputs = answers(artifact, search.device, search.evaluation, job.reference, ends, Silent())
    accuracy = compare(job.reference, outputs, search.evaluation.labels, job.metric, ends.limits, seconds=5.0)
    latency, others = _latencies(search, artifact)
    drop = shown_drop(accuracy)
    return Proof(
        latency=latency,
        latency_of=others,
        size=size,
        metric=accuracy.metric,
        unit=accuracy.unit,
        score=accuracy.score,
        float_score=accuracy.float_score,
        drop=drop.value if drop else None,
        drop_low=drop.low if drop else None,
        drop_high=drop.high if drop else None,
        held=False,
    )


def _latencies(search: Search, artifact: Candidate) -> tuple[float | None, dict[str, float]]:
    """Median seconds of the artefact, and of what took turns with it."""
    job, device = search.job, search.device
    if device.emulated:
        return None, {}
    info = runtime_info(search.runtime.name)
    baseline = search.exporter.float_model(search.runtime.format)[0]
    variants = info.baselines(device.environment(search.runtime.name))
    candidates = {"plan": artifact, "preferred": search.preferred} | {
        name: Candidate(baseline, search.runtime.name, options) for name, options in variants.items()
    }
    one = {name: array[:1] for name, array in search.evaluation.inputs.items()}
    runs = device.latency(candidates, one, rounds=PROOF_ROUNDS, threads=job.threads)
    medians = {name: float(np.median(seconds)) for name, seconds in runs.items()}
    return medians.pop("plan"), medians


def held(limits: Limits, proof: Proof) -> bool:
    """Whether a build holds the user's limits on drop, latency and size."""
    if limits.max_drop is not None:
        most = limits.max_drop.value
        if limits.max_drop.percent and proof.unit != "%" and proof.score is not None:
            most *= abs(proof.float_score or 0.0) / 100
        if proof.drop is None or proof.drop > most + 1e-9:
            return False
    if limits.max_latency is not None and (proof.latency is None or proof.latency > limits.max_latency):
        return False
    return limits.max_size is None or proof.size <= limits.max_size


def proof_rank(proof: Proof, minimize: str) -> tuple[bool, float, float]:
    """Smaller is better: limits held, then what is minimized, then the drop.

    Latency counts in units of the float model's in the same turns: the machine's speed moves from one build to the
    next.
    """
    held, value, drop = rank(proof, minimize)
    beside = proof.latency_of.get("float32")
    return (held, value / beside, drop) if minimize == "latency" and beside and not held else (held, value, drop)


def rank(proof: Proof, minimize: str) -> tuple[bool, float, float]:
    """The same between runtimes, which have no turns in common."""
    drop = proof.drop if proof.drop is not None else 0.0
    if not proof.held:
        return True, drop, 0.0
    return False, {"latency": proof.latency or float("inf"), "size": float(proof.size), "loss": drop}[minimize], drop


def written(
    search: Search,
    choices: Mapping[str, str],
    proof: Proof,
    solution: Solution | None,
    caps: Mapping[str, float],
    attempts: list[Attempt],
    notes: list[str],
) -> Plan:
    job, problem = search.job, search.problem
    quantized = search.quantize(choices)
    basis = describe(
        job.model, quantized, target=job.target.name, data_hash=job.calibration_data.sha256, precision=search.precision
    )
    layers = [
        layer.model_copy(
            update={
                "alternatives": {c: dict(costs) for c, costs in problem.options[layer.name].items()},
                "reason": _reason(problem, choices, layer.name, layer.reason, search.minimize),
            }
        )
        for layer in basis.layers
    ]
    planned = Planned(
        minimize=search.minimize,
        limits=dict(caps),
        predicted=cost_of(problem, choices),
        latency_from="measured" if search.costs.timed else None,
        losses_measured=search.costs.measured,
        rank_correlation=search.costs.correlation,
        method=solution.method if solution is not None else "given",
        gap=solution.gap if solution is not None else None,
        fixed=dict(problem.fixed),
        attempts=attempts,
        proof=proof,
        notes=notes,
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


def _reason(problem: Problem, choices: Mapping[str, str], layer: str, given: str, minimize: str) -> str:
    """Why a layer got its choice: what the next best one would cost."""
    options = problem.options[layer]
    if len(options) == 1:
        return given
    own = cost_of(problem, choices)
    texts = []
    for other in options:
        if other == choices[layer]:
            continue
        there = cost_of(problem, {**choices, layer: other})
        parts = []
        if "latency" in there:
            parts.append(f"{(there['latency'] - own['latency']) * 1e6:+.0f} us")
        parts.append(f"{there['size'] - own['size']:+.0f} bytes")
        parts.append(f"{(there['loss'] - own['loss']) / max(own['loss'], 1e-12) * 100:+.1f} % loss")
        texts.append(f"{other} instead: {', '.join(parts)}")
    return f"least {minimize} within the limits; " + "; ".join(texts)
