"""How well the Gauss-Newton pass ranks losses: every choice of every layer predicted, and simulated alone.

python tools/bench/rank_correlation.py model.pt2 --calib c.npz --format onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from statistics import median

from edgeq.case import Case
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import ladder, uniform, with_preferred
from edgeq.lowering.space import Space
from edgeq.methods.quantize import quantize_model
from edgeq.planning.sensitivity.damages import measure_alone, measure_sensitivity
from edgeq.planning.sensitivity.losses import rank_correlation
from edgeq.planning.sensitivity.value import Choice, contenders, predicted_losses
from edgeq.prepare import prepare, take_aim
from edgeq.progress import Clock, Silent
from edgeq.quantization.activations import Ranges
from edgeq.registry.load import load_target

AT_ONCE = 12
"""Choices that run side by side: each holds a batch of values."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--target", default="x86-avx512")
    parser.add_argument("--format", default="onnx")
    given = parser.parse_args()
    aim = take_aim(load_target(given.target), given.format)
    (job,) = prepare(Case(given.model, calibration=given.calib), [aim], Clock(Silent()))
    runtime, model, inputs = with_preferred(job.runtimes[0]), job.model, job.calibration_data.inputs
    offered, ranges = ladder(model, runtime, job.calibration.histograms), Ranges()
    alternatives = {
        name: quantize_model(model, runtime, job.calibration, job.impact, choices=uniform(offered, name), ranges=ranges)
        for name in dict.fromkeys(c for found in offered.values() for c in found if c != FLOAT)
    }
    predicted = {
        (name, choice): value
        for (name, choice), value in predicted_losses(
            Space(model, runtime, offered), measure_sensitivity(model, inputs, alternatives)
        ).items()
        if value > 0 and alternatives[choice].assignment.choice(name) == choice
    }
    wanted = sorted(predicted)
    alone: dict[Choice, float] = {}
    for first in range(0, len(wanted), AT_ONCE):
        alone |= measure_alone(model, inputs, alternatives, wanted[first : first + AT_ONCE])

    def line(name: str, keys: Iterable[Choice]) -> None:
        keys = list(keys)
        found = rank_correlation([predicted[k] for k in keys], [alone[k] for k in keys])
        ratio = median(alone[k] / predicted[k] for k in keys)
        shown = "" if found is None else f"{found:.3f}"
        print(f"{name:<12} {len(keys):>5} choices  rank correlation {shown:>6}  simulated/predicted {ratio:.2f}")

    print(f"{given.model} in {runtime.name}")
    line("all", wanted)
    line("a plan's", contenders(predicted))
    for name in alternatives:
        line(name, (key for key in wanted if key[1] == name))


if __name__ == "__main__":
    main()
