"""The trained model with a plan that carries costs: measured losses, invented times."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import small_models as small
import trained_model

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.calibration import Calibration
from edgeq.data.load import load_data
from edgeq.frontends.load import load
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.boundaries import edges
from edgeq.lowering.choices import ladder, uniform
from edgeq.lowering.space import Space
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.planning.costs.size import Sizes
from edgeq.planning.costs.state import state
from edgeq.planning.costs.timing import Timing
from edgeq.planning.explain.follow import job_of
from edgeq.planning.sensitivity.damages import measure_sensitivity
from edgeq.planning.solver.problem import check, cost_of
from edgeq.plans.describe import describe
from edgeq.plans.plan import Condition, Conversion, Given, Plan, Planned
from edgeq.prepare import Job

BY = small.runtime("openvino")


@cache
def folder() -> Path:
    return trained_model.make(small._scratch())


@cache
def trained() -> tuple[Model, Calibration, small.Arrays]:
    model = load(folder() / "model.pt2")
    data = dict(np.load(folder() / "calib.npz"))
    return model, calibrate(model, data), data


@cache
def plan_of(**changed: str) -> Plan:
    """The preferred kernels everywhere, but for the layers named here, with `__` for a dot."""
    model, calibration, data = trained()
    offered, found = ladder(model, BY, calibration.histograms), edges(model, BY)
    choices = {**uniform(offered), **{name.replace("__", "."): choice for name, choice in changed.items()}}
    named = {c: quantize_model(model, BY, calibration, choices=uniform(offered, c)) for c in ("w8a8", "w4a8", "a8")}
    sensitivity = measure_sensitivity(model, data, named)
    timing = Timing(
        {g: {c: 1e-6 * (10 if c == FLOAT else 5) for c in o} for g, o in offered.items()},
        {e.tensor: {"quantize": 2e-6, "dequantize": 3e-6} for e in found},
    )
    sizes = Sizes({g: {c: 100.0 * (1 + len(c)) for c in o} for g, o in offered.items()}, 131.0, 4000.0)
    problem = state(Space(model, BY, offered), sensitivity, {"latency": timing}, sizes, {})
    assert not check(problem, choices)
    basis = describe(
        model,
        quantize_model(model, BY, calibration, choices=choices),
        target="x86-avx512",
        data_hash=load_data(folder() / "calib.npz", model.inputs, role="calibration").sha256,
    )
    planned = Planned(
        minimize="latency", limits={}, predicted=cost_of(problem, choices), latency_from="measured", losses_alone=[],
        rank_correlation=None, method="optimal", gap=0.0, fixed=dict(problem.fixed), attempts=[], proof=None,
        conditions=[
            Condition(layer=n.group, choices=sorted(n.choices), any_of={o: sorted(v) for o, v in n.any_of})
            for n in problem.needs
        ],
        conversions=[
            Conversion(producer=b.producer, leaves=sorted(b.leaves),
                       readers={r: sorted(v) for r, v in b.readers.items()}, costs=dict(b.costs))
            for b in problem.boundaries
        ],
    )  # fmt: skip
    layers = [
        layer.model_copy(update={"alternatives": {c: dict(v) for c, v in problem.options[layer.name].items()}})
        for layer in basis.layers
    ]
    given = Given(calibration=str(folder() / "calib.npz"))
    return basis.model_copy(update={"layers": layers, "planned": planned, "given": given})


@cache
def job() -> Job:
    """What any of these plans is followed with."""
    return job_of(plan_of(), trained()[0])


def written(plan: Plan, path: Path) -> Path:
    path.write_text(plan.model_dump_json(indent=2))
    return path
