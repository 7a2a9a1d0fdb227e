"""One search: the program of one runtime, what was built and measured for it, and how its plans are written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.data.dataset import Dataset
from edgeq.devices import Candidate, Device
from edgeq.errors import UsageError
from edgeq.export.artifact import Converted, Exporter
from edgeq.export.elsewhere import Written, fetch, write_for
from edgeq.model.model import Model
from edgeq.planning.costs import COSTS_VERSION, Costs, measure_costs, pack_costs, unpack_costs
from edgeq.planning.describe import describe
from edgeq.planning.estimates import asked_of_vela
from edgeq.planning.ladder import Ladder, uniform
from edgeq.planning.memory import peak_memory
from edgeq.planning.modelled import energies
from edgeq.planning.plan import (
    Attempt,
    Compiled,
    Condition,
    Conversion,
    FloatPrecision,
    Plan,
    Planned,
    Proof,
    run_options,
)
from edgeq.planning.problem import known
from edgeq.planning.proven import proven_choices
from edgeq.planning.rules import Rule, idle, narrowed
from edgeq.planning.solver import Infeasible, Problem, Solution, cost_of, solve
from edgeq.prepare import Job
from edgeq.progress import Silent
from edgeq.quantization.quantize import Quantized, quantize_model
from edgeq.registry.schema import Profile, Runtime
from edgeq.report.summary import shown_drop
from edgeq.report.wording import seconds_text
from edgeq.runtimes import RUNTIMES
from edgeq.runtimes import runtime as runtime_info
from edgeq.validation.accuracy import compare
from edgeq.validation.gates import Limits
from edgeq.validation.measure import Ends, answers, ends_of
from edgeq.validation.metric import identity

SAME = 0.01
"""Relative differences of predicted latency below this are taken for noise."""

PROOF_ROUNDS = 60
PROOF_VERSION = 2
"""To be raised whenever what is measured for a proof, or how it is kept, changes."""


class Made(NamedTuple):
    """The artefact of a plan, how its ends are quantized, and the bytes of all its files."""

    candidate: Candidate
    ends: Ends
    size: int


@dataclass
class Search:
    """What the rounds of one search share.

    Attributes:
        where: the device that plans are proved on; None where nothing can be run.
        profile: the device that is modelled.
    """

    job: Job
    runtime: Runtime
    where: Device | None
    profile: Profile | None
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
    made: dict[tuple[str, ...], Made] = field(default_factory=dict)
    proofs: dict[tuple[str, ...], Proof] = field(default_factory=dict)

    @property
    def device(self) -> Device:
        assert self.where is not None
        return self.where

    @property
    def provable(self) -> Limits:
        """The user's limits that a build can be held against here; the others are only solved for."""
        limits, where = self.job.limits, self.where
        modelled = self.costs.latency_from == "modelled"
        return replace(
            limits,
            max_drop=None if where is None else limits.max_drop,
            max_latency=None if modelled else limits.max_latency,
        )

    @property
    def unvalidated(self) -> list[str]:
        """The limits that no device judges, and why."""
        limits, found = self.job.limits, []
        if limits.max_drop != self.provable.max_drop:
            found.append(f"a drop of at most {limits.max_drop}: {self.job.target.name} cannot be executed here")
        if limits.max_latency != self.provable.max_latency:
            by = self.costs.latency_by
            assert by is not None and limits.max_latency is not None
            found.append(
                f"a latency of at most {seconds_text(limits.max_latency)}: "
                f"modelled by {by.by} for {by.profile}, not measured on a device"
            )
        return found

    @property
    def preferred(self) -> dict[str, str]:
        """The preferred kernels everywhere, to take turns with."""
        return uniform(self.options)

    def name(self, choices: Mapping[str, str]) -> tuple[str, ...]:
        """A plan's choices in the order of the layers."""
        return tuple(choices[name] for name in self.problem.options)

    def quantize(self, choices: Mapping[str, str]) -> Quantized:
        job = self.job
        return quantize_model(
            job.model, self.runtime, job.calibration, job.impact, choices=choices, ranges=self.costs.ranges
        )

    def build(self, plans: Sequence[Mapping[str, str]]) -> None:
        """Writes and audits the artefacts of plans, side by side where there are workers."""
        wanted = {name: choices for choices in plans if (name := self.name(choices)) not in self.made}
        if not wanted:
            return
        model, engine = self.job.model, self.job.engine
        conversion = self.exporter.conversion(self.runtime.format)
        ends: list[Ends] = []
        places = [self.folder / f"plan{len(self.made) + number}" for number in range(1, len(wanted) + 1)]

        def given() -> Iterator[tuple[Quantized, Path | None]]:
            for choices, place in zip(wanted.values(), places, strict=True):
                place.mkdir(parents=True)
                quantized = self.quantize(choices)
                ends.append(ends_of(model, quantized))
                yield quantized, place if engine.here else None

        found = engine.map(_write, given(), model, conversion, threads=False)
        for name, place, end, written in zip(wanted, places, ends, found, strict=True):
            files = fetch(written, place)
            candidate = Candidate(files[0], self.runtime.name, run_options(self.precision))
            self.made[name] = Made(candidate, end, sum(file.stat().st_size for file in files))

    def built(self, choices: Mapping[str, str]) -> Made:
        """The artefact of one plan."""
        self.build([choices])
        return self.made[self.name(choices)]


def searches(
    job: Job,
    runtime: Runtime,
    exporter: Exporter,
    folder: Path,
    minimize: str,
    rules: Sequence[Rule],
) -> list[Search]:
    """One search for each precision that the runtime may compute in where layers stay in float, with costs that are
    measured, or modelled where there is no clock.

    Raises:
        UsageError: the device is not set up, or what is to be minimized or limited is not known of it.
    """
    model, device, profile = job.model, job.device, job.profile
    assert job.evaluation is not None
    if not isinstance(device, Device) and job.target.execution != "none" and runtime.name in RUNTIMES:
        raise UsageError(f"a plan for {runtime.name} cannot be proved here: {device}", remedy="choose another target")
    where = device if isinstance(device, Device) else None
    if minimize == "energy" and (profile is None or isinstance(energies(profile), str)):
        raise UsageError(
            f"energy cannot be modelled for {'a target without a profile' if profile is None else profile.name}: "
            "its figures are not known",
            remedy="give a --profile with energy_per_byte, energy_per_mac_int8 and so on, or minimize something else",
        )
    options, warnings = proven_choices(job.target, runtime, model, job.calibration.histograms)
    key = content_key(
        "costs",
        COSTS_VERSION,
        model=model.fingerprint,
        calibration=job.calibration_data.sha256,
        runtime=runtime.model_dump(mode="json"),
        device=None if where is None else where.name,
        environment=None if where is None else where.environment(runtime.name),
        threads=job.threads,
        profile=None if profile is None else profile.model_dump(mode="json", exclude={"summary", "notes"}),
        vela=asked_of_vela(runtime, profile),
        options=options,
    )
    costs = cached(
        job.cache,
        "costs",
        key,
        lambda: measure_costs(job, runtime, exporter, folder, options),
        pack_costs,
        unpack_costs,
    )
    notes = [*warnings, *costs.notes]
    name = job.target.name if where is None else where.name
    if costs.latency_by is not None:
        notes.append(
            f"latency is modelled, not measured: by {costs.latency_by.by} for {costs.latency_by.profile}; "
            f"{name} has no clock here"
        )
    elif costs.latency_from is None:
        notes.append(f"{name} cannot be timed: the plan knows sizes and losses, and no latency")
        if job.limits.max_latency is not None:
            raise UsageError(
                f"a latency on {name} can neither be measured nor modelled here: {'; '.join(costs.notes)}",
                remedy="drop --max-latency, or give a --profile with the figures",
            )
        if minimize == "latency":
            minimize = "size"
            notes.append("size was minimized instead of latency")
    if costs.energy_by is not None:
        notes.append(f"energy is modelled, not measured: from {costs.energy_by.by}, for {costs.energy_by.profile}")
    ops = {group.name: group.op for group in model.groups}
    allowed = narrowed(options, ops, rules, runtime)
    for text in idle(options, ops, rules, runtime):
        notes.append(text)
        job.clock.progress.note(text)
    counted = [m for m in ("latency", "energy") if m == minimize or (m == "latency" and job.limits.max_latency)]
    found = []
    for precision, whole in costs.problems.items():
        of_precision, told = allowed, list(notes)
        for measure in counted:
            if measure == "energy" or costs.latency_from == "modelled":
                of_precision, nothing = known(whole, of_precision, measure)
                told += _unknown(measure, allowed, of_precision, nothing)
        found.append(
            Search(
                job,
                runtime,
                where,
                profile,
                job.evaluation,
                exporter,
                folder / precision,
                options,
                of_precision,
                costs,
                replace(whole, options={n: {c: whole.options[n][c] for c in of_precision[n]} for n in allowed}),
                precision,
                key,
                minimize,
                tuple(told),
            )
        )
    return found


def _unknown(measure: str, before: Ladder, after: Ladder, nothing: Sequence[str]) -> list[str]:
    """Says what a model does not know: choices that were left out, and layers that it has no number for at all."""
    left_out = dict.fromkeys(c for name, offered in before.items() for c in offered if c not in after[name])
    found = [f"{', '.join(left_out)} was left out: its {measure} cannot be modelled"] if left_out else []
    return found + ([f"the modelled {measure} is without that of {listed(nothing)}"] if nothing else [])


def listed(names: Sequence[str], most: int = 5) -> str:
    """A few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


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
    gap = max(0.0, (value - best.bound) / value) if value else 0.0
    return replace(careful, bound=best.bound, gap=gap, method=best.method)


def best_of(search: Search, caps: Mapping[str, float]) -> Solution:
    """The best plan of a search within limits.

    Raises:
        Infeasible: there is none; says if that is by a modelled latency.
    """
    try:
        return solve_within(search.problem, search.minimize, caps)
    except Infeasible as error:
        if "latency" not in error.conflict or search.costs.latency_from != "modelled":
            raise
        cause = f"{error.cause} (the latency is modelled, not measured)"
        raise Infeasible(cause, error.remedy, error.least, error.conflict) from error


def prove(search: Search, choices: Mapping[str, str]) -> Proof:
    """What a plan measures in its runtime, beside the preferred kernels everywhere and the float model."""
    name = search.name(choices)
    if name not in search.proofs:
        cache, key = _kept_as(search, choices)
        measured = cached(
            cache,
            "proof",
            key,
            lambda: _measure(search, choices),
            lambda proof: Entry(proof.model_dump(mode="json")),
            lambda entry: Proof.model_validate(entry.values),
        )
        search.proofs[name] = measured.model_copy(update={"held": held(search.provable, measured)})
    return search.proofs[name]


def build_unproved(search: Search, plans: Sequence[Mapping[str, str]]) -> None:
    """Builds, before they are proved one after the other, those of the plans that no earlier run proved."""
    unknown = []
    for choices in plans:
        cache, key = _kept_as(search, choices)
        if search.name(choices) not in search.proofs and cache.get("proof", key) is None:
            unknown.append(choices)
    if unknown and not search.device.emulated:
        unknown.append(search.preferred)
    search.build(unknown)


def _kept_as(search: Search, choices: Mapping[str, str]) -> tuple[Cache, str]:
    """Where the proof of a plan is kept: nowhere if its metric cannot be named."""
    judge = identity(search.job.metric)
    key = content_key(
        "proof",
        PROOF_VERSION,
        costs=search.key,
        choices=list(search.name(choices)),
        precision=search.precision,
        evaluation=search.evaluation.sha256,
        metric=judge,
    )
    return search.job.cache if judge else Cache(None), key


def _write(model: Model, conversion: Converted, given: tuple[Quantized, Path | None]) -> Written:
    quantized, place = given
    return write_for(model, quantized, conversion, place)


def _measure(search: Search, choices: Mapping[str, str]) -> Proof:
    """Builds come first, then answers, and the clock runs when both are done and every worker rests."""
    job = search.job
    search.build([choices] if search.device.emulated else [choices, search.preferred])
    artifact, ends, size = search.made[search.name(choices)]
    outputs = answers(artifact, search.device, search.evaluation, job.reference, ends, Silent(), job.engine)
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
    candidates = {"plan": artifact, "preferred": search.made[search.name(search.preferred)].candidate} | {
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


def proof_rank(proof: Proof, minimize: str, predicted: Mapping[str, float]) -> tuple[bool, float, float]:
    """Smaller is better: limits held, then what is minimized, then the drop.

    Latency counts in units of the float model's in the same turns: the machine's speed moves from one build to the
    next. Where it has no clock, and for energy, what was predicted counts.
    """
    drop = proof.drop if proof.drop is not None else 0.0
    if not proof.held:
        return True, drop, 0.0
    measured = {"latency": proof.latency, "size": float(proof.size), "loss": drop}.get(minimize)
    value = predicted.get(minimize, float("inf")) if measured is None else measured
    beside = proof.latency_of.get("float32") if minimize == "latency" else None
    return False, value / beside if beside else value, drop


def best_proof(search: Search) -> tuple[dict[str, str], Proof]:
    """Of all that was measured in a search, the plan that ranks first."""

    def choices(key: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(search.problem.options, key, strict=True))

    key, proof = min(
        search.proofs.items(),
        key=lambda item: proof_rank(item[1], search.minimize, cost_of(search.problem, choices(item[0]))),
    )
    return choices(key), proof


def rank(found: Plan, *, in_turns: bool = False) -> tuple[bool, float, float]:
    """The same of plans, also of those that nothing could be run of.

    Args:
        in_turns: they are of one runtime, so that units of the float model's time mean the same.
    """
    planned = found.planned
    assert planned is not None
    if planned.proof is not None:
        alone = planned.proof.model_copy(update={"latency_of": {}})
        return proof_rank(planned.proof if in_turns else alone, planned.minimize, planned.predicted)
    value = float(planned.size or 0) if planned.minimize == "size" else planned.predicted[planned.minimize]
    return planned.held is False, value, planned.predicted["loss"]


def written(
    search: Search,
    choices: Mapping[str, str],
    proof: Proof | None,
    solution: Solution | None,
    caps: Mapping[str, float],
    attempts: list[Attempt],
    notes: list[str],
    size: int | None = None,
    compiled: Compiled | None = None,
) -> Plan:
    """The plan with everything that is known of it.

    Args:
        proof: None where nothing can be run; then `size` is that of the build.
    """
    job, problem, costs = search.job, search.problem, search.costs
    quantized = search.quantize(choices)
    size = proof.size if proof is not None else size
    limit = job.limits.max_size
    predicted = cost_of(problem, choices)
    basis = describe(
        job.model, quantized, target=job.target.name, data_hash=job.calibration_data.sha256, precision=search.precision
    )
    every = search.costs.problems[search.precision].options
    layers = [
        layer.model_copy(
            update={
                "alternatives": _priced(every[layer.name], problem.options[layer.name]),
                "reason": _reason(search, choices, layer.name, layer.reason),
            }
        )
        for layer in basis.layers
    ]
    planned = Planned(
        minimize=search.minimize,
        limits=dict(caps),
        predicted=predicted,
        latency_from=costs.latency_from,
        latency_by=costs.latency_by,
        energy_by=costs.energy_by,
        losses_measured=search.costs.measured,
        rank_correlation=search.costs.correlation,
        method=solution.method if solution is not None else "given",
        gap=solution.gap if solution is not None else None,
        fixed=dict(problem.fixed),
        attempts=attempts,
        proof=proof,
        size=size,
        held=proof.held if proof is not None else limit is None or size is None or size <= limit,
        peak_memory=peak_memory(job.model, quantized, search.precision),
        compiled=compiled,
        unvalidated=search.unvalidated,
        notes=[*notes, *_over(search, predicted)],
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


def _over(search: Search, predicted: Mapping[str, float]) -> list[str]:
    """Says if a modelled latency is above the limit."""
    if search.costs.latency_from != "modelled":
        return []
    limit, latency = search.job.limits.max_latency, predicted["latency"]
    if limit is None or latency <= limit:
        return []
    return [f"the modelled latency {seconds_text(latency)} is above the limit {seconds_text(limit)}"]


def _priced(
    every: Mapping[str, Mapping[str, float]], left: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """What a layer's choices cost, with those that rules forbid: rules may be edited in the plan. What is not known by
    the measures of the others is left out."""
    measures = {measure for costs in left.values() for measure in costs}
    return {choice: dict(costs) for choice, costs in every.items() if choice in left or measures <= costs.keys()}


def _reason(search: Search, choices: Mapping[str, str], layer: str, given: str) -> str:
    """Why a layer got its choice: what the next best one would cost."""
    problem = search.problem
    options = problem.options[layer]
    if len(options) == 1:
        return given
    label = " (modelled)" if search.costs.latency_from == "modelled" else ""
    own = cost_of(problem, choices)
    texts = []
    for other in options:
        if other == choices[layer]:
            continue
        there = cost_of(problem, {**choices, layer: other})
        parts = []
        if "latency" in options[other] and "latency" in options[choices[layer]]:
            parts.append(f"{(there['latency'] - own['latency']) * 1e6:+.0f} us{label}")
        if "energy" in options[other] and "energy" in options[choices[layer]]:
            parts.append(f"{(there['energy'] - own['energy']) * 1e6:+.2g} uJ (modelled)")
        parts.append(f"{there['size'] - own['size']:+.0f} bytes")
        parts.append(f"{(there['loss'] - own['loss']) / max(own['loss'], 1e-12) * 100:+.1f} % loss")
        texts.append(f"{other} instead: {', '.join(parts)}")
    return f"least {search.minimize} within the limits; " + "; ".join(texts)
