"""What a plan's loss comes from: by layer and cause, what each would bring back if it were taken away.

Every figure is a counterfactual: the whole plan is run with one thing changed, and the movement of the model's outputs
compared. All of it is simulated with fake quantization; what the runtime measured is in the plan's proof.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import inf
from typing import NamedTuple

import numpy as np

from edgeq.calibration.calibration import Calibration
from edgeq.errors import UsageError
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import ladder
from edgeq.model.model import Model
from edgeq.planning.explain.causes import Place, observe, places, removals, spread, widening
from edgeq.planning.explain.counterfactual import Outcome, difference, run_edits
from edgeq.planning.explain.explain import explain
from edgeq.planning.explain.follow import planned_choices
from edgeq.planning.explain.fusion import Charged, charged, lost_fusion
from edgeq.planning.sensitivity.damages import measure_sensitivity
from edgeq.planning.sensitivity.edits import Edit
from edgeq.planning.solver.restate import restate
from edgeq.planning.solver.solve import Problem
from edgeq.plans.explained import (
    CAUSES,
    AttributedLayer,
    Attribution,
    Cause,
    Causes,
    Instead,
    Reach,
    Recovered,
    Saturation,
    Ties,
)
from edgeq.plans.follow import runtime_of
from edgeq.plans.plan import Plan
from edgeq.plans.rules import narrowed
from edgeq.prepare import Job
from edgeq.progress import Progress
from edgeq.quantization.activations import Ranges, quantize_activations
from edgeq.quantization.quantized import Quantized
from edgeq.quantized import quantize_each, quantize_job

SAMPLES = 16
GUILTIEST = 16
"""Places that are looked into unless more are asked for."""

LOOKED_AT = 128
"""Samples that mean shifts and values at the ends are taken over: one run of the plan."""


def attribute(
    job: Job, plan: Plan, *, samples: int = SAMPLES, pattern: str | None = None, most: int | None = GUILTIEST
) -> Attribution:
    """Takes the loss of a plan apart; each layer that is looked into is run a few times from itself to the outputs.

    Args:
        job: the plan's model and calibration data, prepared for the plan's runtime.
        samples: of the calibration data, evenly spread, that every change is run on.
        pattern: all places whose name matches, such as `features.1*` or `input *`.
        most: without a pattern, how many of the places that are expected to lose most; None for all of them.

    Raises:
        UsageError: the plan is for another model or runtime, or nothing matches.
    """
    if samples < 1:
        raise UsageError(f"--samples {samples}", remedy="give 1 or more")
    model, clock, inputs = job.model, job.clock, job.calibration_data.inputs
    known, ranges = len(job.warnings), Ranges()
    with clock.stage("quantize"):
        choices = planned_choices(plan, job, runtime := runtime_of(plan, job.target))
        quantized = quantize_job(job, runtime, choices, ranges)
    planned = plan.planned
    problem = None if planned is None else restate(plan)
    conversions = charged(model, quantized, choices, problem)
    every = places(model, quantized)
    expected = _expected(job, quantized, choices, problem, conversions, every)
    picked = _picked(every, expected, pattern, most)
    alternatives = _alternatives(job, plan, quantized, choices, ranges, picked)
    with clock.stage("causes (simulated)") as steps:
        measured = measure_causes(model, quantized, job.calibration, inputs, picked, alternatives, samples, steps)
    told = None if planned is None else explain(plan, target=job.target)
    ops, whole = {layer.name: layer.op for layer in plan.layers}, sum(expected.values()) or inf
    layers = [
        AttributedLayer(
            name=place.name,
            op=ops.get(place.name, "input"),
            choice=choices.get(place.name, ""),
            expected=expected[place.name] / whole,
            causes=measured.causes[place.name],
            reach=_reach(place, quantized, job.calibration),
            instead=measured.instead[place.name],
        )
        for place in picked
    ]
    return Attribution(
        model_hash=model.sha256,
        data_hash=job.calibration_data.sha256,
        target=plan.target,
        runtime=plan.runtime,
        samples=measured.samples,
        loss=measured.loss,
        error=measured.error,
        predicted_loss=None if planned is None else planned.predicted.get("loss"),
        places=len(every),
        layers=layers,
        together=measured.together,
        added=sum(measured.causes[place.name].all.share for place in picked),
        lost_fusion=lost_fusion(model, quantized, choices, conversions, told),
        notes=[*job.warnings[known:], *_notes(plan, picked, every, pattern)],
    )


def _notes(plan: Plan, picked: Sequence[Place], every: Sequence[Place], pattern: str | None) -> Iterator[str]:
    if plan.float_precision != "float32":
        yield f"what is in float was simulated in float32, not in {plan.float_precision}"
    if pattern is None and len(picked) < len(every):
        yield f"{len(picked)} of {len(every)} places with the most expected loss; --all looks into the others"


class Measured(NamedTuple):
    """What the runs gave: the plan's loss, and by place and change what they bring back."""

    samples: int
    loss: float
    error: float | None
    causes: dict[str, Causes]
    instead: dict[str, list[Instead]]
    together: Recovered


def measure_causes(
    model: Model,
    quantized: Quantized,
    calibration: Calibration,
    inputs: Mapping[str, np.ndarray],
    picked: Sequence[Place],
    alternatives: Mapping[str, Mapping[str, Edit]] | None = None,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> Measured:
    """Runs a quantized model without each cause at each place, and with other choices.

    Args:
        inputs: by input name, [N, ...].
        picked: places of `edgeq.planning.explain.causes.places`, in their order.
        alternatives: by a place's name and choice, what turns the model into the one with that choice.
    """
    asked = alternatives or {}
    seen = observe(model, quantized, calibration, spread(inputs, LOOKED_AT), picked)
    widest = quantize_activations(
        model, quantized.runtime, quantized.assignment, calibration, estimator="min-max"
    ).tensors
    together, edits = Edit(), dict[tuple[str, str], Edit]()
    for place in picked:
        removed = removals(model, quantized, place, seen)
        together = together.and_also(removed["all"])
        if wider := widening(model, quantized, widest, place):
            removed["widened"] = wider
        edits |= {(place.name, cause): edit for cause, edit in removed.items()}
        edits |= {(place.name, f"choice {choice}"): edit for choice, edit in asked.get(place.name, {}).items()}
    plan, *found = run_edits(model, quantized, spread(inputs, samples), [*edits.values(), together], progress)
    without = dict(zip(edits, found, strict=False))
    causes: dict[str, Causes] = {}
    instead: dict[str, list[Instead]] = {}
    for place in picked:
        own = {what: _recovered(plan, one) for (name, what), one in without.items() if name == place.name}
        ends = seen.at_ends.get(place.tensors[-1]) if place.tensors else None
        tied = plan.tied, without[place.name, "all"].tied
        answers = not set(model.output_nodes).isdisjoint(place.tensors)
        causes[place.name] = _causes(own, ends, tied if answers else (None, None))
        choices = asked.get(place.name, {})
        instead[place.name] = [Instead(choice=c, recovered=own[f"choice {c}"]) for c in choices]
    loss, error = float(plan.losses.mean()), _standard_error(plan.losses)
    return Measured(len(plan.losses), loss, error, causes, instead, _recovered(plan, found[-1]))


def _alternatives(
    job: Job, plan: Plan, quantized: Quantized, choices: Mapping[str, str], ranges: Ranges, picked: Sequence[Place]
) -> dict[str, dict[str, Edit]]:
    """By layer and choice, what turns the plan into the one with that choice; without those that a neighbour cannot
    follow, which would be changed as well."""
    model, runtime, calibration = job.model, quantized.runtime, job.calibration
    ops = {group.name: group.op for group in model.groups}
    offered = narrowed(ladder(model, runtime, calibration.histograms, named=plan.named), ops, plan.rules, runtime)
    layers = [place.name for place in picked if place.group is not None]
    found: dict[str, dict[str, Edit]] = {name: {} for name in layers}
    plain = quantize_each(job, runtime, choices, ranges)
    with job.clock.stage("alternatives") as steps:
        for done, name in enumerate(layers, start=1):
            for choice in (c for c in offered[name] if c != choices[name]):
                wanted = {**choices, name: choice}
                other = quantize_each(job, runtime, wanted, ranges)
                if all(other.assignment.choice(group) == one for group, one in wanted.items()):
                    found[name][choice] = difference(model, plain, other)
            steps.step(done, len(layers))
    return found


def _expected(
    job: Job,
    quantized: Quantized,
    choices: Mapping[str, str],
    problem: Problem | None,
    conversions: Charged,
    every: Sequence[Place],
) -> dict[str, float]:
    """What each place is expected to lose: by the plan's own costs, or else by one Gauss-Newton pass."""
    tensors: dict[str, float] = defaultdict(float)
    if problem is not None:
        own = {name: problem.options[name].get(choice, {}).get("loss", 0.0) for name, choice in choices.items()}
        for crossing, entry in conversions:
            tensors[crossing.edge.tensor] += 0.0 if entry is None else entry.costs.get("loss", 0.0)
    else:
        same = dict.fromkeys(set(choices.values()) - {FLOAT}, quantized)
        with job.clock.stage("expected losses") as steps:
            found = measure_sensitivity(job.model, job.calibration_data.inputs, same, steps)
        own = {name: sum(costs.values()) for name, costs in found.weights.items()}
        for (node, _), loss in found.tensors.items():
            tensors[node] += loss
    return {place.name: own.get(place.name, 0.0) + sum(tensors[node] for node in place.tensors) for place in every}


def _picked(
    every: Sequence[Place], expected: Mapping[str, float], pattern: str | None, most: int | None
) -> list[Place]:
    if pattern is not None:
        found = [place for place in every if fnmatchcase(place.name, pattern)]
        if not found:
            names = f"they are such as {every[0].name}" if every else "nothing in this plan is rounded"
            raise UsageError(f"nothing is rounded at a layer that matches {pattern!r}", remedy=names)
        return found
    ranked = sorted(every, key=lambda place: -expected[place.name])[:most]
    return [place for place in every if place in ranked]


def _causes(
    found: Mapping[str, Recovered], ends: tuple[float, float] | None, tied: tuple[float | None, float | None]
) -> Causes:
    parts: dict[Cause, Recovered] = {cause: found[cause] for cause in CAUSES if cause in found}
    most = max(parts, key=lambda cause: parts[cause].share)
    undone, (planned, without) = found.get("correction"), tied
    return Causes(
        **parts,
        all=found["all"],
        interaction=found["all"].share - sum(part.share for part in parts.values()),
        largest=most if parts[most].share > 0 and parts[most].beyond_chance else None,
        bias_corrected=None if undone is None else Recovered(share=-undone.share, error=undone.error),
        widened=found.get("widened"),
        saturation=None if ends is None else Saturation(low=ends[0], high=ends[1]),
        ties=None if planned is None or without is None else Ties(planned=planned, without=without),
    )


def _recovered(plan: Outcome, outcome: Outcome) -> Recovered:
    """Pair by pair of one sample: what they have in common is not in the error."""
    saved = plan.losses - outcome.losses
    whole, error = float(plan.losses.mean()) or inf, _standard_error(saved)
    return Recovered(share=float(saved.mean()) / whole, error=None if error is None else error / whole)


def _standard_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _reach(place: Place, quantized: Quantized, calibration: Calibration) -> Reach | None:
    if not place.tensors or place.tensors[-1] not in calibration.histograms:
        return None
    q, seen = quantized.activations[place.tensors[-1]].q, calibration.histograms[place.tensors[-1]]
    return Reach(low=q.low, high=q.high, seen_low=seen.low, seen_high=seen.high)
