"""Reads a plan's own costs: what each alternative would change, what to change next, what an edited plan costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from edgeq.errors import UsageError
from edgeq.planning.solver.problem import changes_of, validate
from edgeq.planning.solver.restate import restate
from edgeq.planning.solver.solve import Problem, check, cost_of
from edgeq.plans.explained import Change, ExplainedLayer, Explanation, LossFrom, Recosted
from edgeq.plans.follow import runtime_of
from edgeq.plans.plan import Plan, Planned
from edgeq.plans.rules import apply_rules, narrowed
from edgeq.registry.schema import Target

STEPS = 3


class Simulated(NamedTuple):
    """What a change does to the loss, in the unit of `Change.loss`, and how much of that may be chance."""

    loss: float
    chance: float


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
    planned, problem, choices, notes = _read(plan, target)
    if faults := check(problem, choices):
        raise UsageError("; ".join(faults), remedy="edgeq plan --check lists what an edited plan breaks")
    whole, seen = cost_of(problem, choices)["loss"] or 1.0, simulated or {}
    ran = {(one.layer, one.choice) for one in planned.losses_alone}
    changes = {
        layer: [
            _change(layer, other, added, whole, seen.get((layer, other)), alone=(layer, other) in ran)
            for other, (added, allowed) in others.items()
            if allowed
        ]
        for layer, others in changes_of(problem, choices).items()
    }
    layers = [
        ExplainedLayer(
            name=layer.name,
            op=layer.op,
            choice=(own := choices[layer.name]),
            reason=layer.reason if own == layer.choice else "a rule of the plan",
            loss_share=problem.options[layer.name][own].get("loss", 0.0) / whole,
            alternatives=changes.get(layer.name, []),
            alone=[one for one in planned.losses_alone if one.layer == layer.name],
        )
        for layer in plan.layers
        if pattern is None or fnmatchcase(layer.name, pattern)
    ]
    if not layers:
        raise UsageError(f"no layer matches {pattern!r}", remedy=f"its layers are such as {plan.layers[0].name}")
    every = [one for found in changes.values() for one in found]
    saves = [(one, -one.latency) for one in every if one.latency is not None and one.latency < 0]
    quickest = sorted(saves, key=lambda pair: (max(pair[0].loss, 0.0) / pair[1], -pair[1]))
    return Explanation(
        layers=layers,
        gain_accuracy=sorted((c for c in every if c.loss < 0), key=lambda c: _price(c) / -c.loss)[:STEPS],
        gain_speed=[one for one, _ in quickest[:STEPS]],
        latency_from=planned.latency_from,
        losses_alone=len(planned.losses_alone),
        rank_correlation=planned.rank_correlation,
        notes=notes,
    )


def _change(
    layer: str, choice: str, added: Mapping[str, float], whole: float, seen: Simulated | None, *, alone: bool
) -> Change:
    loss = added["loss"] / whole
    how: LossFrom = "alone" if alone else "predicted"
    if seen is not None and max(abs(seen.loss), abs(seen.loss - loss)) > seen.chance:
        loss, how = seen.loss, "simulated"
    latency = added.get("latency")
    return Change(layer=layer, choice=choice, latency=latency, size=added["size"], loss=loss, loss_from=how)


def guiltiest(plan: Plan, count: int = 3) -> list[str]:
    """The layers that most of the expected loss comes from."""
    if plan.planned is None:
        return []
    lost = {layer.name: layer.alternatives.get(layer.choice, {}).get("loss", 0.0) for layer in plan.layers}
    return sorted((name for name in lost if lost[name] > 0), key=lambda name: -lost[name])[:count]


def recost(plan: Plan, target: Target | None = None) -> Recosted:
    """What an edited plan is expected to cost under its rules, or what is wrong with it.

    Args:
        target: see `explain`.

    Raises:
        UsageError: the plan carries no costs, or its rules cannot be held.
    """
    planned, problem, choices, notes = _read(plan, target)
    faults = check(problem, choices)
    costs = {} if faults else cost_of(problem, choices)
    before, latency_from = planned.predicted, planned.latency_from
    return Recosted(faults=faults, costs=costs, before=before, latency_from=latency_from, notes=notes)


def _read(plan: Plan, target: Target | None) -> tuple[Planned, Problem, dict[str, str], list[str]]:
    """A plan under its rules: what its layers may still be, what they are, and what is to be told."""
    if plan.planned is None:
        raise UsageError("the plan carries no costs", remedy="make it with edgeq plan")
    problem = restate(plan)
    try:
        validate(problem)
    except ValueError as error:
        raise UsageError(f"the plan's costs do not fit its layers: {error}", remedy="make it anew") from error
    picked = {layer.name: layer.choice for layer in plan.layers}
    if not plan.rules or any(choice not in problem.options[name] for name, choice in picked.items()):
        return plan.planned, problem, picked, []
    runtime = runtime_of(plan, target)
    offered = {name: tuple(options) for name, options in problem.options.items()}
    ops = {layer.name: layer.op.split(" + ")[0] for layer in plan.layers}
    picked, notes = apply_rules(picked, offered, ops, plan.rules, runtime)
    left = narrowed(offered, ops, plan.rules, runtime)
    options = {name: {choice: problem.options[name][choice] for choice in left[name]} for name in left}
    return plan.planned, replace(problem, options=options), picked, notes


def _price(change: Change) -> float:
    """What a gain costs: seconds, or bytes where there are none."""
    return max(change.latency if change.latency is not None else change.size, 1e-9)
