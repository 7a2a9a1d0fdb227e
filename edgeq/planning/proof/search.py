"""One search: the program of one runtime, what was built and measured for it, and the best plan within limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

from edgeq.cache import cached, content_key
from edgeq.data.dataset import Dataset
from edgeq.devices import Candidate, Device
from edgeq.errors import UsageError
from edgeq.evaluation.measure import Ends, ends_of
from edgeq.export.artifact import Exporter
from edgeq.export.elsewhere import Written, fetch, write_for
from edgeq.limits import Limits
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import Ladder, uniform
from edgeq.methods.effort import EFFORTS
from edgeq.model.model import Model
from edgeq.planning.costs.estimates import asked_of_vela
from edgeq.planning.costs.state import known
from edgeq.planning.costs.table import COSTS_VERSION, Costs, measure_costs, pack_costs, sources, unpack_costs
from edgeq.planning.proof.proven import proven_choices, rounded_by
from edgeq.planning.solver.program import relative_gap
from edgeq.planning.solver.solve import Infeasible, Problem, Solution, check, cost_of, solve
from edgeq.plans.plan import FloatPrecision, Proof, run_options
from edgeq.plans.rules import Rule, idle, narrowed
from edgeq.prepare import Job
from edgeq.quantization.quantized import Quantized
from edgeq.quantized import quantize_job
from edgeq.records.wording import seconds_text
from edgeq.registry.roofline import energies
from edgeq.registry.schema import Runtime
from edgeq.runtimes import RUNTIMES

SAME = 0.01
"""Relative differences of predicted latency or loss below this are taken for noise."""

CAREFUL = 0.2
"""How far from the least loss a plan may be predicted that is as fast as the best: no loss is predicted better."""

NEAR = SAME / 2
"""How far a plan may be from the best, of what is minimized: proving the rest takes most of a search's time."""

FEW = 5
"""Layers that a note names."""


class Made(NamedTuple):
    """The artefact of a plan, how its ends are quantized, and the bytes of all its files."""

    candidate: Candidate
    ends: Ends
    size: int


@dataclass
class Search:
    """What the plans of one search share.

    Attributes:
        folder: for builds.
        costs: of every choice that the runtime has.
        problem: what the rules leave of it.
        key: what the costs depend on.
        notes: what there is to say of every plan of it.
        turns: what every plan takes turns with, for its time.
    """

    job: Job
    runtime: Runtime
    exporter: Exporter
    folder: Path
    costs: Costs
    problem: Problem
    precision: FloatPrecision
    key: str
    minimize: str
    notes: list[str] = field(default_factory=list)
    made: dict[tuple[str, ...], Made] = field(default_factory=dict)
    turns: Made | None = None
    proofs: dict[tuple[str, ...], Proof] = field(default_factory=dict)

    @property
    def device(self) -> Device:
        """That plans are proved on, where there is one."""
        assert self.job.device is not None
        return self.job.device

    @property
    def evaluation(self) -> Dataset:
        assert self.job.evaluation is not None
        return self.job.evaluation

    @property
    def provable(self) -> Limits:
        """The user's limits that a build can be held against here; the others are only solved for."""
        limits = self.job.limits
        modelled = self.costs.latency_from == "modelled"
        return replace(
            limits,
            max_drop=None if self.job.device is None else limits.max_drop,
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
    def options(self) -> Ladder:
        """What the runtime has for every layer."""
        return _offered(self.costs.problems[self.precision])

    @property
    def allowed(self) -> Ladder:
        """What the rules leave of it."""
        return _offered(self.problem)

    @property
    def preferred(self) -> dict[str, str]:
        """The preferred kernels everywhere, to take turns with."""
        return uniform(self.options)

    @property
    def usual(self) -> dict[str, str]:
        """The same as far as the rules allow."""
        return uniform(self.allowed)

    def name(self, choices: Mapping[str, str]) -> tuple[str, ...]:
        """A plan's choices in the order of the layers."""
        return tuple(choices[name] for name in self.problem.options)

    def quantize(self, choices: Mapping[str, str]) -> Quantized:
        return quantize_job(self.job, self.runtime, choices, self.costs.losses.ranges)

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


def _write(model: Model, conversion: Any, given: tuple[Quantized, Path | None]) -> Written:
    quantized, place = given
    return write_for(model, quantized, conversion, place)


def _offered(problem: Problem) -> Ladder:
    return {name: tuple(costs) for name, costs in problem.options.items()}


def searches(job: Job, runtime: Runtime, exporter: Exporter, minimize: str, rules: Sequence[Rule]) -> list[Search]:
    """One search for each precision that the runtime may compute in where layers stay in float, with costs that are
    measured, or modelled where there is no clock.

    Raises:
        UsageError: the device is not set up, or what is to be minimized or limited is not known of it.
    """
    if job.device is None and job.target.execution != "none" and runtime.name in RUNTIMES:
        why = job.no_device_because
        remedy = "set its device up (see edgeq device list), or choose another target"
        raise UsageError(f"a plan for {runtime.name} cannot be proved here: {why}", remedy=remedy)
    if minimize == "energy" and (job.profile is None or energies(job.profile) is None):
        name = "a target without a profile" if job.profile is None else job.profile.name
        raise UsageError(
            f"energy cannot be modelled for {name}: its figures are not known",
            remedy="give a --profile with energy_per_byte, energy_per_mac_int8 and so on, or minimize something else",
        )
    proven, told = proven_choices(job.target, runtime, job.model, job.calibration.histograms)
    options = rounded_by(proven, runtime, job.model, job.methods)
    ops = {group.name: group.op for group in job.model.groups}
    allowed = narrowed(options, ops, rules, runtime)
    key, folder = _key_of_costs(job, runtime, options), Path(mkdtemp(dir=exporter.scratch))
    measure = partial(measure_costs, job, runtime, exporter, folder, options)
    costs = cached(job.cache, "costs", key, measure, pack_costs, unpack_costs)
    notes = [*job.warnings, *told, *costs.notes, *_origins(job, costs)]
    if costs.latency_from is None and minimize == "latency":
        minimize = "size"
        notes.append("size was minimized instead of latency")
    for text in idle(options, ops, rules, runtime):
        notes.append(text)
        job.clock.progress.note(text)
    found = []
    for precision in costs.problems:
        left, unknown = _left(job, costs, precision, allowed, minimize)
        told, place = [*notes, *unknown], folder / precision
        found.append(Search(job, runtime, exporter, place, costs, left, precision, key, minimize, told))
    return found


def _left(
    job: Job, costs: Costs, precision: FloatPrecision, allowed: Ladder, minimize: str
) -> tuple[Problem, list[str]]:
    """The program of what the rules allow and, where a model counts, knows; and what to tell of what it does not know:
    choices that were left out, and layers that it has no number for at all."""
    whole, left, told = costs.problems[precision], allowed, list[str]()
    for measure in ("latency", "energy"):
        counts = measure == minimize or (measure == "latency" and job.limits.max_latency)
        if counts and (measure == "energy" or costs.latency_from == "modelled"):
            left, nothing = known(whole, left, measure)
            if out := dict.fromkeys(c for name, offered in allowed.items() for c in offered if c not in left[name]):
                told.append(f"{', '.join(out)} was left out: its {measure} cannot be modelled")
            if nothing:
                more = f" and {len(nothing) - FEW} more" if len(nothing) > FEW else ""
                told.append(f"the modelled {measure} is without that of {', '.join(nothing[:FEW])}{more}")
    return replace(whole, options={n: {c: whole.options[n][c] for c in left[n]} for n in allowed}), told


def _key_of_costs(job: Job, runtime: Runtime, options: Ladder) -> str:
    """What the costs of a runtime depend on; the proofs of its plans as well."""
    profile, device = job.profile, job.device
    return content_key(
        "costs",
        COSTS_VERSION,
        model=job.model.fingerprint,
        calibration=job.calibration_data.sha256,
        runtime=runtime.model_dump(mode="json"),
        device=None if device is None else device.name,
        environment=None if device is None else device.environment(runtime.name),
        threads=job.threads,
        profile=None if profile is None else profile.model_dump(mode="json", exclude={"summary", "notes"}),
        vela=asked_of_vela(runtime, profile),
        sources=sources(),
        options=options,
        methods=EFFORTS[job.effort].few if job.methods is None else dict(job.methods),
    )


def _origins(job: Job, costs: Costs) -> list[str]:
    """Says of latency and energy that they are modelled, or not known, where that is so.

    Raises:
        UsageError: a latency is limited of which nothing is known.
    """
    name, notes = job.target.name if job.device is None else job.device.name, []
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
    if costs.energy_by is not None:
        notes.append(f"energy is modelled, not measured: from {costs.energy_by.by}, for {costs.energy_by.profile}")
    return notes


def float_seconds(search: Search) -> float | None:
    """What the float model is predicted to take in float32; None where no clock was read or a layer cannot be float."""
    if search.costs.latency_from != "measured":
        return None
    floats = search.costs.problems["float32"]
    everywhere = dict.fromkeys(floats.options, FLOAT)
    return None if check(floats, everywhere) else cost_of(floats, everywhere)["latency"] or None


def cheapest(problem: Problem, minimize: str, caps: Mapping[str, float]) -> Solution:
    """The cheapest plan within the limits; where the loss cannot be held beside the others, the one with the least.

    Of plans whose latencies the table cannot tell apart, one that loses little: a microsecond that may be noise must
    not cost accuracy.

    Raises:
        Infeasible: no plan holds the limits other than that on the loss.
    """
    try:
        best = solve(problem, minimize=minimize, limits=caps, gap=NEAR)
    except Infeasible:
        return solve(problem, minimize="loss", limits={m: c for m, c in caps.items() if m != "loss"}, gap=SAME)
    if minimize != "latency":
        return best
    enough = max(best.costs.get("latency", 0.0), best.bound * (1 + SAME))
    within = {**caps, "latency": min(enough, caps.get("latency", inf))}
    careful = solve(problem, minimize="loss", limits=within, gap=CAREFUL)
    value = careful.costs.get("latency", 0.0)
    return replace(careful, bound=best.bound, gap=relative_gap(value, best.bound), method=best.method)
