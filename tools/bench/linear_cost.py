"""How planning grows with the number of layers: synthetic networks, seconds of each stage, and the builds made.

    python tools/bench/linear_cost.py --layers 50 --layers 200 --layers 800

Every stage runs as in `edgeq plan`, except for the clock: the seconds of layers are made up, because a device's speed
is not the question. Linear growth shows as equal milliseconds a layer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from edgeq.calibration.calibrate import calibrate
from edgeq.calibration.gradients import measure_impact
from edgeq.export.artifact import Exporter
from edgeq.frontends.load import load
from edgeq.lowering.assign import FLOAT, assign
from edgeq.lowering.boundaries import edges
from edgeq.lowering.choices import ladder, uniform, with_preferred
from edgeq.lowering.space import Space
from edgeq.methods.quantize import quantize_model
from edgeq.model.groups import Group
from edgeq.planning.costs.builds import Built, build_all, probing_plans
from edgeq.planning.costs.size import fit_sizes
from edgeq.planning.costs.state import state
from edgeq.planning.costs.timing import Observed, fit
from edgeq.planning.sensitivity.damages import measure_alone, measure_sensitivity
from edgeq.planning.sensitivity.value import contenders, predicted_losses
from edgeq.planning.solver.solve import cost_of, solve
from edgeq.prepare import runtimes_for
from edgeq.progress import Silent
from edgeq.quantization.activations import Ranges
from edgeq.registry.load import load_target

SAMPLES = 32
SECONDS = {FLOAT: 1.0, "w8a8": 0.4, "a8": 0.4, "w4a8": 0.5, "w8": 1.0, "w4": 1.1}
T = TypeVar("T")


class Net(nn.Module):
    """Convolutions of 3x3, depthwise and pointwise, by turns, with additions and with channels that vary."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        widths = (8, 12, 16, 12)
        kinds: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
        channels = 8
        for number in range(1, layers - 1):
            wide = widths[number // 3 % len(widths)]
            kind = number % 3
            if kind == 0:
                kinds.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
            else:
                kinds.append(nn.Conv2d(channels, wide, 3 if kind == 1 else 1, padding=1 if kind == 1 else 0))
                channels = wide
        self.layers = nn.ModuleList(kinds)
        self.head = nn.Linear(channels, 10)
        for layer in self.layers:  # keeps the values' size over hundreds of layers
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image
        for number, layer in enumerate(self.layers):
            y = torch.relu(layer(x))
            x = 0.7 * (x + y) if number and number % 3 == 0 else y
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


class Laps:
    """Seconds by stage, in the order in which they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        begin = time.perf_counter()
        found = work()
        self.seconds[stage] = time.perf_counter() - begin
        return found


def measure(layers: int, form: str) -> tuple[int, int, int, dict[str, float]]:
    """Layers that can be chosen for, choices in all, builds made, and seconds by stage."""
    torch.manual_seed(0)
    lap = Laps()
    batch = {"image": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(Net(layers).eval(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=batch)
    model = lap("load", lambda: load(program))
    inputs = {"image": torch.randn(SAMPLES, 3, 16, 16).numpy()}
    runtime = with_preferred(runtimes_for(load_target("x86-avx512"), form)[0])
    seen = lap("calibrate", lambda: calibrate(model, inputs))
    tensors = sorted(assign(model, runtime, seen.histograms).tensors)
    impact = lap("impact", lambda: measure_impact(model, inputs, seen.histograms, tensors))
    options, found_edges = ladder(model, runtime, seen.histograms), edges(model, runtime)
    kernels = list(dict.fromkeys(c for offered in options.values() for c in offered if c != FLOAT))
    ranges: Ranges = {}
    alternatives = lap(
        "quantize",
        lambda: {
            name: quantize_model(model, runtime, seen, impact, choices=uniform(options, name), ranges=ranges)
            for name in kernels
        },
    )
    sensitivity = lap("sensitivity", lambda: measure_sensitivity(model, inputs, alternatives))
    predicted = {
        (name, choice): value
        for (name, choice), value in predicted_losses(Space(model, runtime, options), sensitivity).items()
        if alternatives[choice].assignment.choice(name) == choice
    }
    measured = lap("alone", lambda: measure_alone(model, inputs, alternatives, contenders(predicted)))
    plans = probing_plans(Space(model, runtime, options))
    with tempfile.TemporaryDirectory() as scratch:
        exporter = Exporter(model, Path(scratch))
        lap("conversion", lambda: exporter.conversion(form))
        built = lap("builds", lambda: build_all(model, runtime, seen, plans, exporter, Path(scratch), Silent()))
    observed = [_observed(b, model.groups) for b in built.values()]
    timing = lap("fit of times", lambda: fit(model, found_edges, observed))
    sizes = lap(
        "fit of sizes",
        lambda: fit_sizes(Space(model, runtime, options), [(b.choices, b.size) for b in built.values()]),
    )
    problem = lap(
        "program",
        lambda: state(Space(model, runtime, options), sensitivity, {"latency": timing}, sizes, measured),
    )
    most = cost_of(problem, uniform(options))["loss"] / 2
    lap("solver", lambda: solve(problem, minimize="latency", limits={"loss": most}))
    return len(options), sum(map(len, options.values())), len(built), lap.seconds


def _observed(built: Built, groups: tuple[Group, ...]) -> Observed:
    own = {g.name: 1e-6 * SECONDS.get(built.choices[g.name], 1.0) * (1 + g.macs / 1e5) for g in groups}
    return Observed(built.choices, own, sum(own.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, action="append")
    parser.add_argument("--format", default="onnx")
    given = parser.parse_args()
    rows = {}
    for layers in given.layers or (50, 200, 800):
        rows[layers] = measure(layers, given.format)
        count, choices, builds, seconds = rows[layers]
        print(f"{layers} layers with weights: {count} layers, {choices} choices, {builds} builds", flush=True)
        for stage, value in seconds.items():
            print(f"  {stage:<14} {value:9.2f} s  {1e3 * value / count:8.2f} ms a layer", flush=True)
    first = next(iter(rows.values()))
    print(f"\nms a layer, relative to the first ({first[0]} layers):")
    for stage in first[3]:
        ratios = [value[3][stage] / value[0] / (first[3][stage] / first[0]) for value in rows.values()]
        print(f"  {stage:<14}" + "".join(f"{ratio:8.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
