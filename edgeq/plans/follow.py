"""What a plan asks for, held against the model, the data and the runtime that it is to be followed with."""

from __future__ import annotations

from edgeq.calibration.calibration import Calibration
from edgeq.errors import UsageError
from edgeq.lowering.assign import FLOAT, assign
from edgeq.lowering.choices import ladder, of_choices
from edgeq.model.model import Model
from edgeq.plans.plan import Plan, refuse_other
from edgeq.plans.rules import apply_rules
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime, Target


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


def followed(
    plan: Plan, model: Model, calibration: Calibration, data_hash: str, runtime: Runtime
) -> tuple[dict[str, str], list[str]]:
    """The choice of every layer, under the plan's rules, and what the user should know of them.

    Raises:
        UsageError: the plan is for another model, target or runtime, or asks for what the runtime does not have.
    """
    if model.grids is None:  # one that was trained has other weights, and the grids are held against the plan's
        refuse_other(plan, model_hash=model.sha256, layers=[group.name for group in model.groups])
    picked = {layer.name: layer.choice for layer in plan.layers}
    runtime = of_choices(runtime, plan.named)
    offered = ladder(model, runtime, calibration.histograms, named=plan.named)
    if differ := sorted(offered.keys() ^ picked.keys()):
        raise UsageError(
            f"layer {differ[0]} is {'missing' if differ[0] in offered else 'none of the model'}",
            where="plan",
            remedy="edit choices alone, or plan this model anew with edgeq plan",
        )
    for name, choice in picked.items():
        if choice not in offered[name]:
            raise UsageError(
                f"layer {name} has no choice {choice} in {runtime.name}",
                where="plan",
                remedy=f"it can be: {', '.join(offered[name])}",
            )
    choices, notes = apply_rules(picked, offered, {g.name: g.op for g in model.groups}, plan.rules, runtime)
    assigned = assign(model, runtime, calibration.histograms, choices)
    for name, choice in choices.items():
        if choice != assigned.choice(name):
            raise UsageError(
                f"layer {name} cannot be {choice}: {assigned.reasons[name]}",
                where="plan",
                remedy=f"make it {FLOAT}, or see edgeq plan --check",
            )
    if plan.data_hash != data_hash:
        notes.append("the plan was made with other calibration data: scales differ from those in it")
    return choices, notes
