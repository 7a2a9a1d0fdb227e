"""What a plan's loss comes from: by layer and cause, what each would bring back if it were taken away.

Every figure is a counterfactual: the whole plan is run with one thing changed, and the movement of the model's outputs
compared. All of it is simulated with fake quantization; what the runtime measured is in the plan's proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgeq.calibration.calibration import Calibration
from edgeq.errors import UsageError
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import ladder, of_choices
from edgeq.lowering.form import form_of
from edgeq.model.model import Model
from edgeq.planning.explain.causes import Place, observe, places, removals, spread, widening
from edgeq.planning.explain.counterfactual import Outcome, difference, run_edits
from edgeq.planning.explain.explain import explain, runtime_of
from edgeq.planning.explain.follow import planned_choices
from edgeq.planning.explain.fusion import Charged, LostFusion, charged, lost_fusion
from edgeq.planning.sensitivity.damages import measure_sensitivity
from edgeq.planning.sensitivity.edits import Edit
from edgeq.planning.solver.restate import restate
from edgeq.planning.solver.solve import Problem
from edgeq.plans.plan import Plan
from edgeq.plans.rules import narrowed
from edgeq.prepare import Job
from edgeq.progress import Progress
from edgeq.quantization.activations import Ranges, quantize_activations
from edgeq.quantization.quantize import Quantized, quantize_model

SAMPLES = 16
GUILTIEST = 16
"""Places that are looked into unless more are asked for."""

LOOKED_AT = 128
"""Samples that mean shifts and values at the ends are taken over: one run of the plan."""

CHANCE = 2.0
"""Standard errors within which a figure may be chance."""

Cause = Literal["clipping", "weights", "activations", "bias"]
CAUSES: tuple[Cause, ...] = ("clipping", "weights", "activations", "bias")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recovered(_Strict):
    """How much less the plan would lose, as a share of what it loses; negative if it would lose more."""

    share: float
    error: float | None
    """Standard error over samples, in the same unit; None for a single sample."""

    @property
    def chance(self) -> float:
        """How much of it may be chance."""
        return float("inf") if self.error is None else CHANCE * self.error

    @property
    def beyond_chance(self) -> bool:
        return abs(self.share) > self.chance


class Saturation(_Strict):
    """Shares of values at the lowest and the highest integer, where the float model's values go on beyond it. What is
    lost by it is in `clipping`."""

    low: float
    high: float


class Ties(_Strict):
    """Percent of answers that share the first place at the model's output, as planned and without rounding there."""

    planned: float
    without: float


class Causes(_Strict):
    """The loss of one place, taken apart; None where a cause has no place, such as weights in an addition."""

    all: Recovered
    """Without any of the four: what is computed there is float."""
    clipping: Recovered | None = None
    weights: Recovered | None = None
    activations: Recovered | None = None
    bias: Recovered | None = None
    """The mean shift that the analytic correction left."""
    interaction: float
    """What all four bring back together beyond the sum of what each brings back alone."""
    largest: Cause | None
    """The cause that brings back most; None if that may be chance."""
    bias_corrected: Recovered | None = None
    """What the analytic correction has brought back already."""
    widened: Recovered | None = None
    """What a range that reaches the true extremes would bring back: no clipping, coarser steps. None where the range
    does."""
    saturation: Saturation | None = None
    ties: Ties | None = None


class Instead(_Strict):
    """The plan with another choice for one layer."""

    choice: str
    recovered: Recovered


class Reach(_Strict):
    """A tensor's range, and the extremes that calibration saw; of the layer's last tensor that is rounded."""

    low: float
    high: float
    seen_low: float
    seen_high: float


class AttributedLayer(_Strict):
    """A layer, or an input of the model, and where its part of the loss comes from."""

    name: str
    op: str
    choice: str
    expected: float
    """Its part of what the plan is expected to lose: what the places are ranked by."""
    causes: Causes
    reach: Reach | None
    instead: list[Instead]


class Attribution(_Strict):
    """Where a plan's loss comes from."""

    schema_version: Literal[1] = 1
    how: Literal["simulated"] = "simulated"
    model_hash: str
    data_hash: str
    target: str
    runtime: str
    samples: int
    loss: float
    """What the plan loses on these samples: squared movement of the outputs over their own power."""
    error: float | None
    """Its standard error over samples."""
    predicted_loss: float | None
    places: int
    """At which something is rounded: the layers below are the guiltiest of them, or those that were asked for."""
    layers: list[AttributedLayer]
    """In the model's order."""
    together: Recovered
    """If all layers below were computed in float at once."""
    added: float
    """The sum of what each brings back alone; it is `together` where errors add up."""
    lost_fusion: list[LostFusion]
    """Of the whole plan, predicted, the longest first."""
    notes: list[str]


def attribute(
    job: Job, plan: Plan, *, samples: int = SAMPLES, pattern: str | None = None, most: int | None = GUILTIEST
) -> Attribution:
    """Takes the loss of a plan apart.

    The time grows with the number of layers that are looked into: each is run a few times from itself to the outputs.

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
    listed = next((r for r in job.runtimes if r.name == plan.runtime), None)
    runtime = of_choices(listed, plan.named) if listed else runtime_of(plan, job.target)
    known = len(job.warnings)
    with clock.stage("quantize"):
        choices = planned_choices(plan, job, runtime)
        ranges: Ranges = {}
        quantized = quantize_model(model, runtime, job.calibration, job.impact, choices=choices, ranges=ranges)
    problem = restate(plan) if plan.planned is not None else None
    conversions = charged(model, quantized, choices, problem)
    every = places(model, quantized)
    with clock.stage("expected losses") as steps:
        if problem is None:
            expected = _expected_anew(model, quantized, every, inputs, steps)
        else:
            expected = _expected(problem, choices, conversions, every)
    picked = _picked(every, expected, pattern, most)
    with clock.stage("alternatives") as steps:
        alternatives = _alternatives(job, plan, quantized, choices, ranges, picked, steps)
    with clock.stage("causes (simulated)") as steps:
        measured = measure_causes(model, quantized, job.calibration, inputs, picked, alternatives, samples, steps)
    told = explain(plan, target=job.target) if plan.planned is not None else None
    notes = job.warnings[known:]
    if plan.float_precision != "float32":
        notes.append(f"what is in float was simulated in float32, not in {plan.float_precision}")
    if pattern is None and len(picked) < len(every):
        notes.append(f"{len(picked)} of {len(every)} places with the most expected loss; --all looks into the others")
    ops = {layer.name: layer.op for layer in plan.layers}
    whole = sum(expected.values())
    layers = [
        AttributedLayer(
            name=place.name,
            op=ops.get(place.name, "input"),
            choice=choices.get(place.name, ""),
            expected=expected[place.name] / whole if whole else 0.0,
            causes=measured.causes[place.name],
            reach=_reach(place, quantized, job.calibration),
            instead=[Instead(choice=c, recovered=r) for (n, c), r in measured.instead.items() if n == place.name],
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
        predicted_loss=plan.planned.predicted.get("loss") if plan.planned is not None else None,
        places=len(every),
        layers=layers,
        together=measured.together,
        added=sum(layer.causes.all.share for layer in layers),
        lost_fusion=lost_fusion(model, quantized, choices, conversions, told),
        notes=notes,
    )


class Measured(NamedTuple):
    """What the runs gave: the plan's loss, and by place and change what they bring back."""

    samples: int
    loss: float
    error: float | None
    causes: dict[str, Causes]
    instead: dict[tuple[str, str], Recovered]
    together: Recovered


def measure_causes(
    model: Model,
    quantized: Quantized,
    calibration: Calibration,
    inputs: Mapping[str, np.ndarray],
    picked: Sequence[Place],
    alternatives: Mapping[tuple[str, str], Edit] | None = None,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> Measured:
    """Runs a quantized model without each cause at each place, and with other choices.

    Args:
        inputs: by input name, [N, ...].
        picked: places of `edgeq.planning.explain.causes.places`, in their order.
        alternatives: by a place's name and anything, another change to run there.
    """
    asked = alternatives or {}
    seen = observe(model, quantized, calibration, spread(inputs, LOOKED_AT), picked)
    widest = quantize_activations(
        model, quantized.runtime, quantized.assignment, calibration, estimator="min-max"
    ).tensors
    edits: dict[tuple[str, str, str], Edit] = {}
    together = Edit()
    for place in picked:
        removed = removals(model, quantized, place, seen)
        together = together.and_also(removed["all"])
        if wider := widening(model, quantized, widest, place):
            removed["widened"] = wider
        edits |= {("cause", place.name, cause): edit for cause, edit in removed.items()}
        edits |= {("choice", *key): edit for key, edit in asked.items() if key[0] == place.name}
    plan, *found = run_edits(model, quantized, spread(inputs, samples), [*edits.values(), together], progress)
    outcomes = dict(zip(edits, found, strict=False))
    recovered = {key: _recovered(plan, outcome) for key, outcome in outcomes.items()}
    causes: dict[str, Causes] = {}
    for place in picked:
        own = {cause: r for (kind, name, cause), r in recovered.items() if (kind, name) == ("cause", place.name)}
        ends = seen.at_ends.get(place.tensors[-1]) if place.tensors else None
        answers = not set(model.output_nodes).isdisjoint(place.tensors)
        ties = _ties(plan, outcomes["cause", place.name, "all"]) if answers else None
        causes[place.name] = _causes(own, ends, ties)
    instead = {key: recovered["choice", *key] for key in asked}
    loss, error = float(plan.losses.mean()), _standard_error(plan.losses)
    return Measured(len(plan.losses), loss, error, causes, instead, _recovered(plan, found[-1]))


def _alternatives(
    job: Job,
    plan: Plan,
    quantized: Quantized,
    choices: Mapping[str, str],
    ranges: Ranges,
    picked: Sequence[Place],
    progress: Progress,
) -> dict[tuple[str, str], Edit]:
    """By layer and choice, what turns the plan into the one with that choice; without those that a neighbour cannot
    follow, which would be changed as well."""
    model, runtime = job.model, quantized.runtime
    ops = {group.name: group.op for group in model.groups}
    offered = narrowed(ladder(model, runtime, job.calibration.histograms), ops, plan.rules, runtime)
    found: dict[tuple[str, str], Edit] = {}
    layers = [place.name for place in picked if place.group is not None]
    for done, name in enumerate(layers, start=1):
        for choice in (c for c in offered[name] if c != choices[name]):
            wanted = {**choices, name: choice}
            other = quantize_model(model, runtime, job.calibration, job.impact, choices=wanted, ranges=ranges)
            if _followed(other) == _followed(quantized) | {name: choice}:
                found[name, choice] = difference(model, quantized, other)
        progress.step(done, len(layers))
    return found


def _followed(quantized: Quantized) -> dict[str, str]:
    """What each layer really became."""
    return {name: quantized.assignment.choice(name) for name in quantized.assignment.reasons}


def _expected(
    problem: Problem, choices: Mapping[str, str], conversions: Charged, every: Sequence[Place]
) -> dict[str, float]:
    """What each place is expected to lose by the plan's own costs."""
    converted: dict[str, float] = {}
    for crossing, entry in conversions:
        loss = 0.0 if entry is None else entry.costs.get("loss", 0.0)
        converted[crossing.edge.tensor] = converted.get(crossing.edge.tensor, 0.0) + loss
    own = {name: problem.options[name].get(choice, {}).get("loss", 0.0) for name, choice in choices.items()}
    return {p.name: own.get(p.name, 0.0) + sum(converted.get(node, 0.0) for node in p.tensors) for p in every}


def _expected_anew(
    model: Model,
    quantized: Quantized,
    every: Sequence[Place],
    inputs: Mapping[str, np.ndarray],
    progress: Progress,
) -> dict[str, float]:
    """The same by one Gauss-Newton pass."""
    kernels = set(_followed(quantized).values()) - {FLOAT}
    found = measure_sensitivity(model, inputs, dict.fromkeys(kernels, quantized), progress)
    forms = {node: form_of(tensor.q.scheme) for node, tensor in quantized.activations.items()}
    return {
        place.name: sum(found.weights.get(place.name, {}).values())
        + sum(found.tensors.get((node, forms[node]), 0.0) for node in place.tensors)
        for place in every
    }


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


def _causes(found: Mapping[str, Recovered], ends: tuple[float, float] | None, ties: Ties | None) -> Causes:
    parts: dict[Cause, Recovered] = {cause: found[cause] for cause in CAUSES if cause in found}
    most = max(parts, key=lambda cause: parts[cause].share)
    undone = found.get("correction")
    return Causes(
        **parts,
        all=found["all"],
        interaction=found["all"].share - sum(part.share for part in parts.values()),
        largest=most if parts[most].share > 0 and parts[most].beyond_chance else None,
        bias_corrected=None if undone is None else Recovered(share=-undone.share, error=undone.error),
        widened=found.get("widened"),
        saturation=None if ends is None else Saturation(low=ends[0], high=ends[1]),
        ties=ties,
    )


def _recovered(plan: Outcome, outcome: Outcome) -> Recovered:
    """Pair by pair of one sample: what they have in common is not in the error."""
    saved = plan.losses - outcome.losses
    whole, error = float(plan.losses.mean()) or 1.0, _standard_error(saved)
    return Recovered(share=float(saved.mean()) / whole, error=None if error is None else error / whole)


def _standard_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _ties(plan: Outcome, without: Outcome) -> Ties | None:
    return None if plan.tied is None or without.tied is None else Ties(planned=plan.tied, without=without.tied)


def _reach(place: Place, quantized: Quantized, calibration: Calibration) -> Reach | None:
    if not place.tensors or place.tensors[-1] not in calibration.histograms:
        return None
    q, seen = quantized.activations[place.tensors[-1]].q, calibration.histograms[place.tensors[-1]]
    return Reach(low=q.low, high=q.high, seen_low=seen.low, seen_high=seen.high)
