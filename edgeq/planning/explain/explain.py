"""Reads a plan's own costs: what each alternative would change, what to change next, what an edited plan costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from edgeq.errors import UsageError
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import of_choices
from edgeq.planning.solver.problem import changes_of, validate
from edgeq.planning.solver.restate import restate
from edgeq.planning.solver.solve import Problem, check, cost_of
from edgeq.plans.plan import AloneLoss, Plan
from edgeq.plans.rules import apply_rules, narrowed
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime, Target

STEPS = 3


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(_Strict):
    """One layer with another choice, all others left as they are."""

    layer: str
    choice: str
    latency: float | None
    """Seconds more, conversions included."""
    size: float
    """Bytes more."""
    loss: float
    """How much more is lost, as a share of what the whole plan loses."""
    loss_from: Literal["predicted", "alone", "simulated"] = "predicted"
    """`simulated` if the whole plan was run with this change (see `edgeq.planning.explain.attribution`), `alone` if
    this layer was, all others in float."""


class ExplainedLayer(_Strict):
    """Why a layer is what it is."""

    name: str
    op: str
    choice: str
    reason: str
    loss_share: float
    """Its part of what the plan is expected to lose."""
    alternatives: list[Change]
    alone: list[AloneLoss] = []
    """Of its choices, those whose loss was simulated, beside what had been predicted."""


class Explanation(_Strict):
    """A plan taken apart."""

    layers: list[ExplainedLayer]
    gain_accuracy: list[Change]
    """The changes that win back the most for the least time; or size, where there is no time."""
    gain_speed: list[Change]
    """The changes that save the most time for the least loss; empty where there is no time."""
    latency_from: Literal["measured", "modelled"] | None = None
    """Whether the latencies are those of a device, or modelled."""
    losses_alone: int = 0
    """How many choices of all layers were simulated alone."""
    rank_correlation: float | None = None
    """Spearman's, of the predicted and the simulated losses of those."""
    notes: list[str] = []
    """What the plan's rules overrule, and which of them change nothing."""


class Simulated(NamedTuple):
    """What a change does to the loss, in the unit of `Change.loss`, and how much of that may be chance."""

    loss: float
    chance: float


class Recosted(_Strict):
    """An edited plan under its rules and the costs that it carries."""

    faults: list[str]
    costs: dict[str, float]
    before: dict[str, float]
    latency_from: Literal["measured", "modelled"] | None = None
    notes: list[str] = []
    """What the plan's rules overrule, and which of them change nothing."""


def explain(
    plan: Plan,
    pattern: str | None = None,
    *,
    target: Target | None = None,
    simulated: Mapping[tuple[str, str], Simulated] | None = None,
) -> Explanation:
    """What each layer's alternatives would change. A plan's rules hold here as they do in `edgeq deploy`.

    Args:
        pattern: only layers whose name matches.
        target: the plan's, where the registry does not know it; only the rules need it.
        simulated: by layer and choice, what was simulated; it takes the place of the prediction unless it may be chance
            and the prediction is as likely.

    Raises:
        UsageError: the plan carries no costs, its rules cannot be held, or no layer matches.
    """
    known = simulated or {}
    problem, choices, faults, notes = _read(plan, target)
    if faults:
        raise UsageError("; ".join(faults), remedy="edgeq plan --check lists what an edited plan breaks")
    own = cost_of(problem, choices)
    alone: dict[str, list[AloneLoss]] = {}
    for one in plan.planned.losses_alone if plan.planned else []:
        alone.setdefault(one.layer, []).append(one)
    changes: dict[str, list[Change]] = {}
    for layer, others in changes_of(problem, choices).items():
        for other, (added, allowed) in others.items():
            if not allowed:
                continue
            loss = added["loss"] / (own["loss"] or 1.0)
            seen = known.get((layer, other))
            told = seen is not None and max(abs(seen.loss), abs(seen.loss - loss)) > seen.chance
            ran = any(one.choice == other for one in alone.get(layer, []))
            changes.setdefault(layer, []).append(
                Change(
                    layer=layer,
                    choice=other,
                    latency=added.get("latency"),
                    size=added["size"],
                    loss=seen.loss if seen is not None and told else loss,
                    loss_from="simulated" if told else "alone" if ran else "predicted",
                )
            )
    every = [change for found in changes.values() for change in found]
    wins = [c for c in every if c.loss < 0]
    saves = [c for c in every if c.latency is not None and c.latency < 0]
    layers = [
        ExplainedLayer(
            name=layer.name,
            op=layer.op,
            choice=choices[layer.name],
            reason=layer.reason if choices[layer.name] == layer.choice else "a rule of the plan",
            loss_share=_share(problem.options[layer.name][choices[layer.name]].get("loss", 0.0), own["loss"]),
            alternatives=changes.get(layer.name, []),
            alone=alone.get(layer.name, []),
        )
        for layer in plan.layers
        if pattern is None or fnmatchcase(layer.name, pattern)
    ]
    if not layers:
        raise UsageError(f"no layer matches {pattern!r}", remedy=f"its layers are such as {plan.layers[0].name}")
    return Explanation(
        layers=layers,
        gain_accuracy=sorted(wins, key=lambda c: _price(c) / -c.loss)[:STEPS],
        latency_from=None if plan.planned is None else plan.planned.latency_from,
        losses_alone=0 if plan.planned is None else len(plan.planned.losses_alone),
        rank_correlation=None if plan.planned is None else plan.planned.rank_correlation,
        gain_speed=sorted(saves, key=lambda c: (max(c.loss, 0.0) / -(c.latency or -1.0), c.latency))[:STEPS],
        notes=notes,
    )


def guiltiest(plan: Plan, count: int = 3) -> list[str]:
    """The layers that most of the expected loss comes from."""
    if plan.planned is None:
        return []
    lost = {
        layer.name: layer.alternatives.get(layer.choice, {}).get("loss", 0.0)
        for layer in plan.layers
        if layer.choice != FLOAT
    }
    return sorted((name for name in lost if lost[name] > 0), key=lambda name: -lost[name])[:count]


def recost(plan: Plan, target: Target | None = None) -> Recosted:
    """What an edited plan is expected to cost under its rules, or what is wrong with it.

    Args:
        target: see `explain`.

    Raises:
        UsageError: the plan carries no costs, or its rules cannot be held.
    """
    problem, choices, faults, notes = _read(plan, target)
    assert plan.planned is not None
    costs = {} if faults else cost_of(problem, choices)
    before, latency_from = plan.planned.predicted, plan.planned.latency_from
    return Recosted(faults=faults, costs=costs, before=before, latency_from=latency_from, notes=notes)


class _Read(NamedTuple):
    """A plan under its rules: what its layers may still be, what they are, what is wrong, what is to be told."""

    problem: Problem
    choices: dict[str, str]
    faults: list[str]
    notes: list[str]


def _read(plan: Plan, target: Target | None) -> _Read:
    problem, picked = _problem(plan), {layer.name: layer.choice for layer in plan.layers}
    notes: list[str] = []
    unknown = [name for name, choice in picked.items() if choice not in problem.options[name]]
    if plan.rules and not unknown:
        runtime = runtime_of(plan, target)
        offered = {name: tuple(options) for name, options in problem.options.items()}
        ops = {layer.name: layer.op.split(" + ")[0] for layer in plan.layers}
        picked, notes = apply_rules(picked, offered, ops, plan.rules, runtime)
        left = narrowed(offered, ops, plan.rules, runtime)
        problem = replace(problem, options={n: {c: problem.options[n][c] for c in left[n]} for n in left})
    return _Read(problem, picked, check(problem, picked), notes)


def runtime_of(plan: Plan, target: Target | None = None) -> Runtime:
    """The runtime that a plan was made for, with kernels for activations of the plan's type.

    Args:
        target: looked up by the plan's name for it if not given.

    Raises:
        UsageError: there is no such target, it is another than the plan's, or it has no such runtime.
    """
    aim = target or load_target(plan.target)
    if aim.name != plan.target:
        raise UsageError(f"the plan was made for {plan.target}, not for {aim.name}", remedy=f"--target {plan.target}")
    found = next((r for r in aim.runtimes if r.name == plan.runtime), None)
    if found is None:
        raise UsageError(f"{aim.name} has no runtime {plan.runtime}", where="plan", remedy="plan anew with edgeq plan")
    return of_choices(found, plan.named)


def _problem(plan: Plan) -> Problem:
    try:
        problem = restate(plan)
    except ValueError as error:
        raise UsageError("the plan carries no costs", remedy="make it with edgeq plan") from error
    try:
        validate(problem)
    except ValueError as error:
        raise UsageError(f"the plan's costs do not fit its layers: {error}", remedy="make it anew") from error
    return problem


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _price(change: Change) -> float:
    """What a gain costs: seconds, or bytes where there are none."""
    return max(change.latency if change.latency is not None else change.size, 1e-9)
