"""The planner: costs are measured, the best plan within the limits is solved for, built, and proved in its runtime.

calibrate -> sensitivity -> a few builds for times and sizes -> solve -> build and measure -> solve again with what was
learned, until the limits hold. The result is a plan; `edgeq deploy --plan` makes its artefact.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.data.dataset import Dataset
from edgeq.devices import Candidate, Device
from edgeq.errors import EdgeqError, UsageError
from edgeq.export.artifact import Exporter
from edgeq.export.audit import audit
from edgeq.model.model import Model
from edgeq.planning.assign import FLOAT
from edgeq.planning.budget import allowed_damage
from edgeq.planning.costs import COSTS_VERSION, Costs, measure_costs, pack_costs, unpack_costs
from edgeq.planning.describe import describe
from edgeq.planning.ladder import Ladder, ladder, uniform
from edgeq.planning.plan import (
    Attempt,
    Condition,
    Conversion,
    FloatPrecision,
    Given,
    Plan,
    Planned,
    Proof,
    run_options,
)
from edgeq.planning.rules import Rule, narrowed
from edgeq.planning.solver import Infeasible, Problem, Solution, check, cost_of, solve
from edgeq.prepare import Job, prepare, runtimes_for
from edgeq.progress import Clock, Progress, Silent
from edgeq.quantization.quantize import Quantized, quantize_model
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime
from edgeq.report.summary import shown_drop
from edgeq.runtimes import runtime as runtime_info
from edgeq.validation.accuracy import compare, quick_drop
from edgeq.validation.gates import Limits, drop_limit
from edgeq.validation.measure import answers, ends_of
from edgeq.validation.metric import Metric, identity

ATTEMPTS = 5
"""Builds that the search may make after the first solution."""

TIGHTER = 0.5
"""What is left of the loss that was spent after a round that missed the drop."""

SAME = 0.01
"""Relative differences of predicted latency below this are taken for noise."""

PROOF_ROUNDS = 60
PROOF_VERSION = 2
"""To be raised whenever what is measured for a proof, or how it is kept, changes."""


def plan(
    model: str | Path | torch.nn.Module | Model,
    *,
    target: str,
    calibration: str | Path | Dataset,
    evaluation: str | Path | Dataset,
    minimize: str = "latency",
    limits: Limits | None = None,
    format: str = "auto",
    preprocess: str | None = None,
    metric: str | Metric | None = None,
    device: str | None = None,
    threads: int = 1,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    rules: Sequence[Rule] = (),
    progress: Progress | None = None,
) -> Plan:
    """The best plan for a target, with the proof of it.

    Args:
        minimize: `latency`, `size` or `loss`, within the limits on the others.
        limits: without a largest drop, a plan may lose what uniform INT8 is expected to lose.
        format: of several formats (`auto`) the plan that measured best is kept.
        rules: what some layers have to be, whatever it costs.

    The other arguments are those of `edgeq.deploy`.

    Returns:
        A plan whose `planned.proof.held` says whether every limit held.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model cannot be handled.
        DeviceError: a device or runtime failed.
        GateError: no plan can hold the limits; it says which.
    """
    if minimize not in ("latency", "size", "loss"):
        raise UsageError(f"cannot minimize {minimize!r}", remedy="choose latency, size or loss")
    aim = load_target(target)
    job = prepare(
        model,
        aim,
        runtimes_for(aim, format),
        Clock(progress or Silent()),
        calibration=calibration,
        evaluation=evaluation,
        preprocess=preprocess,
        metric=metric,
        limits=limits or Limits(),
        device=device,
        threads=threads,
        inputs=inputs,
        arch=arch,
        trust_pickle=trust_pickle,
    )
    found: list[Plan] = []
    errors: list[EdgeqError] = []
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        exporter = Exporter(job.model, Path(scratch), job.cache)
        for number, runtime in enumerate(job.runtimes):
            folder = Path(scratch) / f"runtime{number}"
            folder.mkdir()
            try:
                of_runtime = _plans_for(job, runtime, exporter, folder, minimize, rules)
                found.append(min(of_runtime, key=lambda p: _proof_rank(_proof_of(p), _aim_of(p))))
            except EdgeqError as error:
                if len(job.runtimes) == 1:
                    raise
                job.clock.progress.note(f"{runtime.format}: {error.cause}")
                errors.append(error)
    if not found:
        raise errors[0]
    best = min(found, key=lambda p: _rank(_proof_of(p), _aim_of(p)))
    given = Given(
        calibration=str(calibration) if isinstance(calibration, str | Path) else job.calibration_data.source,
        evaluation=str(evaluation) if isinstance(evaluation, str | Path) else None,
        preprocess=preprocess,
        metric=metric if isinstance(metric, str) else None,
    )
    return best.model_copy(update={"given": given, "rules": list(rules)})


@dataclass
class _Search:
    """What the rounds of one search share."""

    job: Job
    runtime: Runtime
    device: Device
    evaluation: Dataset
    exporter: Exporter
    folder: Path
    options: Ladder
    costs: Costs
    problem: Problem
    precision: FloatPrecision
    key: str
    minimize: str
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


def _plans_for(
    job: Job, runtime: Runtime, exporter: Exporter, folder: Path, minimize: str, rules: Sequence[Rule]
) -> list[Plan]:
    """The best plan for each precision that the runtime may compute in where layers stay in float."""
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
    plans = []
    for precision, whole in costs.problems.items():
        problem = replace(whole, options={n: {c: whole.options[n][c] for c in allowed[n]} for n in allowed})
        place = folder / precision
        search = _Search(
            job, runtime, device, job.evaluation, exporter, place, options, costs, problem, precision, key, minimize
        )
        plans.append(_search(search, uniform(allowed), list(notes)))
    return plans


def _search(search: _Search, preferred: Mapping[str, str], notes: list[str]) -> Plan:
    job, problem = search.job, search.problem
    everywhere = cost_of(problem, preferred)
    with job.clock.stage("loss that is allowed"):
        allowed = _allowed(job)
    if allowed is None:
        allowed = everywhere["loss"]
        notes.append("no largest drop was given: no more may be lost than the preferred kernels everywhere would lose")
    caps = {"loss": allowed}
    if job.limits.max_size is not None:
        caps["size"] = float(job.limits.max_size)
    if job.limits.max_latency is not None and search.costs.timed:
        caps["latency"] = job.limits.max_latency
    attempts: list[Attempt] = []
    solution: Solution | None = None
    with job.clock.stage(f"search in {search.runtime.name}, {search.precision}") as steps:
        for done in range(1, ATTEMPTS + 1):
            try:
                found = _solve(problem, search.minimize, caps)
            except Infeasible:
                if solution is None:
                    raise
                break
            if solution is not None and found.choices == solution.choices:
                break
            solution = found
            proof = _prove(search, found.choices)
            changed = sum(found.choices[name] != choice for name, choice in preferred.items())
            attempts.append(Attempt(loss_limit=caps["loss"], predicted=found.costs, changed=changed, proof=proof))
            steps.step(done, ATTEMPTS)
            if proof.held:
                break
            caps = _tightened(caps, found, proof, job.limits)
        assert solution is not None
        # what is measured decides: the two plans that anyone would try first must not be better
        for other in (dict(preferred), dict.fromkeys(preferred, FLOAT)):
            if _may_be_better(search, solution.choices, other):
                _prove(search, other)
    key, proof = min(search.proofs.items(), key=lambda item: _proof_rank(item[1], search.minimize))
    choices = dict(zip(preferred, key, strict=True))
    if choices != solution.choices:
        notes.append("the plan that was solved for measured worse than this one")
    return _written(search, choices, proof, solution, caps, attempts, notes)


def _solve(problem: Problem, minimize: str, caps: Mapping[str, float]) -> Solution:
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


def _allowed(job: Job) -> float | None:
    """The damage that the limit on the metric allows; None without such a limit."""
    if job.limits.max_drop is None:
        return None
    labels = None if job.evaluation is None else job.evaluation.labels
    itself = compare(job.reference, job.reference, labels, job.metric, seconds=0.0)
    most = drop_limit(job.limits.max_drop, itself)
    if most is None or quick_drop(job.reference, job.reference, labels, job.metric) is None:
        raise UsageError(
            f"a drop of at most {job.limits.max_drop} cannot be judged: the outputs hold no answers to compare",
            remedy="pass labels or --metric package.module:function",
        )

    def drop(outputs: Sequence[np.ndarray]) -> float:
        return quick_drop(job.reference, outputs, labels, job.metric) or 0.0

    return allowed_damage(job.reference, drop, most)


def _prove(search: _Search, choices: Mapping[str, str]) -> Proof:
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
        search.proofs[key] = measured.model_copy(update={"held": _held(job.limits, measured)})
    return search.proofs[key]


def _measure(search: _Search, choices: Mapping[str, str]) -> Proof:
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


def _latencies(search: _Search, artifact: Candidate) -> tuple[float | None, dict[str, float]]:
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


def _held(limits: Limits, proof: Proof) -> bool:
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


def _tightened(caps: Mapping[str, float], found: Solution, proof: Proof, limits: Limits) -> dict[str, float]:
    """The limits for the next round, where a build missed the user's: a cost is scaled by how far the table was off,
    and the loss by how far the drop was over."""
    result = dict(caps)
    for measure, measured, most in (
        ("size", proof.size, limits.max_size),
        ("latency", proof.latency, limits.max_latency),
    ):
        if measure in result and measured is not None and most is not None and measured > most:
            result[measure] = min(result[measure], most * found.costs[measure] / measured) * 0.999
    if limits.max_drop is not None:
        result["loss"] = min(result["loss"], found.costs["loss"]) * TIGHTER
    return result


def _may_be_better(search: _Search, choices: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a plan has to be proved as well: it took less time beside the best plan so far, or nothing held yet."""
    if dict(choices) == dict(other) or check(search.problem, other):
        return False
    proof = min(search.proofs.values(), key=lambda p: _proof_rank(p, search.minimize))
    if not proof.held:
        return True
    if search.minimize != "latency" or proof.latency is None:
        return False
    floats = all(c == FLOAT for c in other.values())
    beside = proof.latency_of.get(search.precision if floats else "preferred")
    return beside is not None and beside < proof.latency


def _proof_rank(proof: Proof, minimize: str) -> tuple[bool, float, float]:
    """Smaller is better: limits held, then what is minimized, then the drop.

    Latency counts in units of the float model's in the same turns: the machine's speed moves from one build to the
    next.
    """
    held, value, drop = _rank(proof, minimize)
    beside = proof.latency_of.get("float32")
    return (held, value / beside, drop) if minimize == "latency" and beside and not held else (held, value, drop)


def _rank(proof: Proof, minimize: str) -> tuple[bool, float, float]:
    """The same between runtimes, which have no turns in common."""
    drop = proof.drop if proof.drop is not None else 0.0
    if not proof.held:
        return True, drop, 0.0
    return False, {"latency": proof.latency or float("inf"), "size": float(proof.size), "loss": drop}[minimize], drop


def _proof_of(found: Plan) -> Proof:
    assert found.planned is not None and found.planned.proof is not None
    return found.planned.proof


def _aim_of(found: Plan) -> str:
    assert found.planned is not None
    return found.planned.minimize


def _written(
    search: _Search,
    choices: Mapping[str, str],
    proof: Proof,
    solution: Solution,
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
        method=solution.method,
        gap=solution.gap,
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
