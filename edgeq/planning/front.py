"""The front: what accuracy costs in latency or size, each point a plan that was built and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from edgeq.devices import workers_ahead
from edgeq.errors import UsageError
from edgeq.export.artifact import Exporter
from edgeq.files import scratch_folder
from edgeq.lowering.assign import FLOAT
from edgeq.planning.proof.outcome import Outcome
from edgeq.planning.proof.proving import prove
from edgeq.planning.proof.record import written
from edgeq.planning.proof.search import Search, cheapest, searches
from edgeq.planning.proof.wider import in_kinds
from edgeq.planning.solver.solve import Infeasible, Solution, check, cost_of
from edgeq.plans.plan import Plan
from edgeq.prepare import Job, aim_of, prepare
from edgeq.progress import Clock
from edgeq.registry.schema import Format, RuntimeName
from edgeq.request import PlanRequest, takes_fields_of
from edgeq.visible import writable

WORST = 0.5
"""Largest expected loss of a point: the outputs moved by half of their own power answer little."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    _writable = model_validator(mode="before")(writable)


class Point(_Strict):
    """One measured plan.

    `value` is what the front is over: seconds, in units of the float model's in the same turns times the median of
    those over all points, because the machine's speed moves; or bytes.
    """

    name: str
    value: float
    drop: float
    drop_low: float | None
    drop_high: float | None
    on_front: bool
    """No other point is as good in both."""
    plan: Plan


class Front(_Strict):
    """Plans of one runtime from the most accurate to the cheapest."""

    schema_version: Literal[1] = 1
    model_hash: str
    target: str
    runtime: RuntimeName
    format: Format
    over: Literal["latency", "size"]
    metric: str
    points: list[Point]


@dataclass(frozen=True, kw_only=True)
class FrontRequest(PlanRequest):
    """What a front is made from: one format, since it compares what one runtime can do, and no limits.

    Attributes:
        minimize: what accuracy is traded for, `latency` or `size`.
        points: plans to solve for.
    """

    points: int = 6


@takes_fields_of(FrontRequest)
def front(request: FrontRequest) -> Front:
    """Plans along the trade of accuracy for latency or size, each one proved, beside the preferred kernels everywhere
    and float everywhere.

    The arguments are the fields of `FrontRequest`, the errors those of `edgeq.planning.planner.plan`.
    """
    aim = aim_of(request)
    if len(aim.runtimes) != 1 or request.points < 1:
        raise UsageError("a front is of one format, and has points", remedy="choose --format onnx, openvino or tflite")
    if request.minimize not in ("latency", "size"):
        raise UsageError("a front is over latency or size", remedy="choose --minimize latency or size")
    if request.limits is not None:
        raise UsageError("a front has no limits", remedy="leave --pareto or the limits away")
    if aim.device is None:
        raise UsageError(f"a front is measured, and {aim.no_device_because}", remedy="plan without --pareto")
    if request.minimize == "latency" and aim.timed is None:
        raise UsageError(f"no latency is measured on {aim.device.name}", remedy="choose --minimize size")
    (job,) = prepare(request, [aim], Clock(request.progress), engine=request.engine)
    with scratch_folder() as scratch, workers_ahead([job.device]):
        plans = _proved(job, Exporter(job.model, scratch, job.cache), request)
    return _front(job, plans, "size" if request.minimize == "size" else "latency")


def _proved(job: Job, exporter: Exporter, request: FrontRequest) -> dict[str, Plan]:
    """The points of every search by their names, with activations of more bits where these are of use."""
    opened = partial(searches, job, exporter=exporter, minimize=request.minimize, rules=request.rules)
    *_, found = in_kinds(job.runtimes[0], opened, lambda: "they may make points cheaper")
    caps = _caps(found[0], request.points)
    plans: dict[str, Plan] = {}
    for search in found:
        wanted = _wanted(search, caps)
        suffix = f", {search.precision}" if search.precision != FLOAT else ""
        with job.clock.stage(f"front in {search.runtime.name}, {search.precision}") as steps:
            for done, (name, (choices, solved)) in enumerate(wanted.items(), start=1):
                if search.name(choices) not in search.proofs:
                    proof = prove(search, choices)
                    plan = written(Outcome(search, choices, proof, proof.size, solved))
                    plans[name + suffix] = plan.model_copy(update={"rules": list(request.rules)})
                steps.step(done, len(wanted))
    return plans


def _caps(search: Search, points: int) -> list[float]:
    """Losses to solve within, from an eighth of that of the preferred kernels everywhere."""
    everywhere = max(cost_of(search.problem, search.usual)["loss"], 1e-9)
    most = sum(max(c.get("loss", 0.0) for c in offered.values()) for offered in search.problem.options.values())
    return [float(cap) for cap in np.geomspace(everywhere / 8, max(min(most, WORST), everywhere), points)]


def _wanted(search: Search, caps: Sequence[float]) -> dict[str, tuple[Mapping[str, str], Solution | None]]:
    """The preferred kernels everywhere, float everywhere, and a plan within each of the losses, where these can be had:
    by the name of their point, those that were solved for with their solution."""
    usual = {"preferred": search.usual, FLOAT: dict.fromkeys(search.usual, FLOAT)}
    wanted: dict[str, tuple[Mapping[str, str], Solution | None]]
    wanted = {name: (choices, None) for name, choices in usual.items() if not check(search.problem, choices)}
    for number, cap in enumerate(caps, start=1):
        with suppress(Infeasible):
            solution = cheapest(search.problem, search.minimize, {"loss": cap})
            wanted[f"planned {number}"] = solution.choices, solution
    return wanted


def _front(job: Job, plans: dict[str, Plan], over: Literal["latency", "size"]) -> Front:
    proofs = {name: p.planned.proof for name, p in plans.items() if p.planned is not None and p.planned.proof}
    usual = float(np.median([p.latency_of["float32"] for p in proofs.values()])) if over == "latency" else 0.0
    at: dict[str, tuple[float, float]] = {}
    for name, proof in proofs.items():
        if proof.drop is None:
            raise UsageError("the outputs hold no answers to compare", remedy="pass labels or --metric")
        size, floats = float(proof.size), proof.latency_of.get("float32", 1.0)
        at[name] = proof.drop, size if over == "size" else (proof.latency or 0.0) / floats * usual
    first = next(iter(plans.values()))
    points = [
        Point(
            name=name,
            value=value,
            drop=drop,
            drop_low=proofs[name].drop_low,
            drop_high=proofs[name].drop_high,
            on_front=not any(o != (drop, value) and o[0] <= drop and o[1] <= value for o in at.values()),
            plan=plans[name],
        )
        for name, (drop, value) in sorted(at.items(), key=lambda item: item[1])
    ]
    return Front(
        model_hash=job.model.sha256,
        target=job.target.name,
        runtime=first.runtime,
        format=first.format,
        over=over,
        metric=next(iter(proofs.values())).metric,
        points=points,
    )
