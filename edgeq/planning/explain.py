"""Reads a plan's own costs: what each alternative would change, what to change next, what an edited plan costs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import BaseModel, ConfigDict

from edgeq.errors import UsageError
from edgeq.planning.assign import FLOAT
from edgeq.planning.choices import validate
from edgeq.planning.plan import Plan
from edgeq.planning.problem import restate
from edgeq.planning.solver import Problem, check, cost_of

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


class ExplainedLayer(_Strict):
    """Why a layer is what it is."""

    name: str
    op: str
    choice: str
    reason: str
    loss_share: float
    """Its part of what the plan is expected to lose."""
    alternatives: list[Change]


class Explanation(_Strict):
    """A plan taken apart."""

    layers: list[ExplainedLayer]
    gain_accuracy: list[Change]
    """The changes that win back the most for the least time; or size, where there is no time."""
    gain_speed: list[Change]
    """The changes that save the most time for the least loss; empty where there is no time."""
    latency_from: Literal["measured", "modelled"] | None = None
    """Whether the latencies are those of a device, or modelled."""


class Recosted(_Strict):
    """An edited plan under the costs that it carries."""

    faults: list[str]
    costs: dict[str, float]
    before: dict[str, float]
    latency_from: Literal["measured", "modelled"] | None = None


def explain(plan: Plan, pattern: str | None = None) -> Explanation:
    """What each layer's alternatives would change.

    Raises:
        UsageError: the plan carries no costs, or no layer matches.
    """
    problem, choices = _problem(plan), {layer.name: layer.choice for layer in plan.layers}
    if faults := check(problem, choices):
        raise UsageError("; ".join(faults), remedy="edgeq plan --check lists what an edited plan breaks")
    own = cost_of(problem, choices)
    changes: dict[str, list[Change]] = {}
    for layer, offered in problem.options.items():
        for other in offered:
            edited = {**choices, layer: other}
            if other == choices[layer] or check(problem, edited):
                continue
            there = cost_of(problem, edited)
            changes.setdefault(layer, []).append(
                Change(
                    layer=layer,
                    choice=other,
                    latency=there["latency"] - own["latency"] if "latency" in there else None,
                    size=there["size"] - own["size"],
                    loss=(there["loss"] - own["loss"]) / own["loss"] if own["loss"] else there["loss"],
                )
            )
    every = [change for found in changes.values() for change in found]
    wins = [c for c in every if c.loss < 0]
    saves = [c for c in every if c.latency is not None and c.latency < 0]
    layers = [
        ExplainedLayer(
            name=layer.name,
            op=layer.op,
            choice=layer.choice,
            reason=layer.reason,
            loss_share=problem.options[layer.name][layer.choice].get("loss", 0.0) / own["loss"] if own["loss"] else 0.0,
            alternatives=changes.get(layer.name, []),
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
        gain_speed=sorted(saves, key=lambda c: (max(c.loss, 0.0) / -(c.latency or -1.0), c.latency))[:STEPS],
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


def recost(plan: Plan) -> Recosted:
    """What an edited plan is expected to cost, or what is wrong with it.

    Raises:
        UsageError: the plan carries no costs.
    """
    problem, choices = _problem(plan), {layer.name: layer.choice for layer in plan.layers}
    faults = check(problem, choices)
    assert plan.planned is not None
    costs = {} if faults else cost_of(problem, choices)
    before, latency_from = plan.planned.predicted, plan.planned.latency_from
    return Recosted(faults=faults, costs=costs, before=before, latency_from=latency_from)


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


def _price(change: Change) -> float:
    """What a gain costs: seconds, or bytes where there are none."""
    return max(change.latency if change.latency is not None else change.size, 1e-9)
