"""How well the planner's table predicts latency: random mixed plans, built and timed in turns with the uniform ones.

    python tools/bench/predicted_latency.py model.pt2 --calib c.npz --format onnx

A layer that a runtime takes for one on integers is one in these plans: the planner has it so (see `as_run`).

The machine's speed drifts, so that the prediction is scaled by the two uniform builds that take turns with the plans.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeq.calibration.calibrate import calibrate
from edgeq.data.load import load_data
from edgeq.devices import open_device
from edgeq.export.artifact import Exporter
from edgeq.frontends.load import load
from edgeq.lowering.as_run import as_run
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import ladder, with_preferred
from edgeq.lowering.space import Space
from edgeq.planning.costs.builds import build_all, observe, probing_plans
from edgeq.planning.costs.size import fit_sizes
from edgeq.planning.costs.state import state
from edgeq.planning.costs.timing import fit
from edgeq.planning.sensitivity.value import Sensitivity
from edgeq.planning.solver.problem import cost_of
from edgeq.prepare import runtimes_for
from edgeq.progress import Silent
from edgeq.registry.load import load_target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--target", default="x86-avx512")
    parser.add_argument("--format", default="onnx")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = load(given.model)
    runtime = with_preferred(runtimes_for(load_target(given.target), given.format)[0])
    data = load_data(given.calib, model.inputs, role="calibration")
    seen = calibrate(model, {name: array[:16] for name, array in data.inputs.items()})
    one = {name: array[:1] for name, array in data.inputs.items()}
    options = ladder(model, runtime, seen.histograms)
    space = Space(model, runtime, options)
    device, rng = open_device("local"), random.Random(given.seed)
    plans = {}
    for number in range(given.plans):
        share = rng.choice((0.1, 0.3, 0.5, 0.7, 0.9))
        drawn = {
            name: FLOAT if rng.random() < share else rng.choice(offered[:-1] or (FLOAT,))
            for name, offered in options.items()
        }
        plans[f"random {number}"] = as_run(space, drawn)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("float", "table", "plans")]
        for folder in folders:
            folder.mkdir()
        exporter = Exporter(model, folders[0])
        built = build_all(model, runtime, seen, probing_plans(space), exporter, folders[1], Silent())
        tried = build_all(model, runtime, seen, plans, exporter, folders[2], Silent())
        observed = observe(model, built, device, one, exporter.labels(runtime.format), 1, Silent())
        ran = [replace(o, choices=as_run(space, o.choices)) for o in observed]
        timing = fit(model, space.edges, ran)
        sizes = fit_sizes(space, [(b.choices, b.size) for b in built.values()])
        uniform = {name: built[name] for name in ("preferred", FLOAT)}
        runs = device.latency({name: b.candidate for name, b in (tried | uniform).items()}, one, rounds=60)
    medians = {name: float(np.median(seconds)) for name, seconds in runs.items()}
    problem = state(space, Sensitivity({}, {}), {"latency": timing}, sizes, {})
    costs = {name: cost_of(problem, b.choices) for name, b in (tried | uniform).items()}
    predicted = {name: cost["latency"] for name, cost in costs.items()}
    drift = sum(medians[name] for name in uniform) / sum(predicted[name] for name in uniform)
    errors = []
    for name, build in tried.items():
        error = predicted[name] * drift / medians[name] - 1
        errors.append(abs(error))
        off = costs[name]["size"] / build.size - 1
        print(f"{name:<10}  {1e3 * medians[name]:8.3f} ms  {100 * error:+6.1f} %   size {100 * off:+5.2f} %")
    print(
        f"{runtime.name}: median absolute error {100 * float(np.median(errors)):.1f} %, "
        f"largest {100 * max(errors):.1f} %; "
        f"preferred {1e3 * medians['preferred']:.3f} ms, float {1e3 * medians[FLOAT]:.3f} ms, drift {drift:.2f}"
    )


if __name__ == "__main__":
    main()
