"""What planning is worth at equal size: the planned mix of 4 and 8 bits beside uniform and random ones, each measured.

python tools/bench/equal_size.py model.pt2 --calib c.npz --eval e.npz --format onnx --share 0.75 --share 0.6
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from edgeq.case import Case
from edgeq.devices import Candidate
from edgeq.evaluation.accuracy import compare
from edgeq.evaluation.measure import answers, ends_of
from edgeq.export.artifact import Exporter
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import ladder, uniform, with_preferred
from edgeq.methods.quantize import quantize_model
from edgeq.planning.costs.table import measure_costs
from edgeq.planning.solver.solve import Problem, cost_of, solve
from edgeq.prepare import prepare, take_aim
from edgeq.progress import Clock, Silent
from edgeq.registry.load import load_target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--target", default="x86-avx512")
    parser.add_argument("--device", help="where to run, if not where the target says")
    parser.add_argument("--format", default="onnx")
    parser.add_argument("--share", type=float, action="append", help="of the size of INT8 everywhere")
    parser.add_argument("--random", type=int, default=5)
    given = parser.parse_args()
    aim = take_aim(load_target(given.target), given.format, device=given.device)
    (job,) = prepare(Case(given.model, calibration=given.calib, evaluation=given.eval), [aim], Clock(Silent()))
    runtime, model, device = with_preferred(job.runtimes[0]), job.model, job.device
    if device is None:
        parser.error(f"{job.no_device_because}, or give --device")
    assert job.evaluation is not None
    offered = ladder(model, runtime, job.calibration.histograms)
    options = {name: tuple(c for c in found if c != FLOAT) or found for name, found in offered.items()}
    with tempfile.TemporaryDirectory() as scratch:
        exporter = Exporter(model, Path(scratch), job.cache)
        (Path(scratch) / "table").mkdir()
        costs = measure_costs(job, runtime, exporter, Path(scratch) / "table", offered)
        whole = costs.problems["float32"]
        left = {n: {c: whole.options[n][c] for c in found} for n, found in options.items()}
        problem = Problem(left, whole.boundaries, whole.needs, whole.fixed)

        def show(name: str, choices: dict[str, str]) -> None:
            assert job.evaluation is not None
            quantized = quantize_model(
                model, runtime, job.calibration, job.impact, choices=choices, ranges=costs.ranges
            )
            folder = Path(tempfile.mkdtemp(dir=scratch))
            files = exporter.write(quantized, folder)
            ends = ends_of(model, quantized)
            outputs = answers(Candidate(files[0], runtime.name), device, job.evaluation, job.reference, ends, Silent())
            found = compare(job.reference, outputs, job.evaluation.labels, None, ends.limits)
            size = sum(file.stat().st_size for file in files)
            drop = f"{found.drop.value:6.2f} ({found.drop.low:.2f} to {found.drop.high:.2f})" if found.drop else ""
            same = f"{found.agreement.value:.1f} %" if found.agreement else ""
            print(f"{name:<16} {size / 1e6:7.3f} MB  drop {drop}  agreement {same}  {found.sqnr_db:.1f} dB", flush=True)

        narrow = [name for name, found in options.items() if "w4a8" in found]
        full = cost_of(problem, uniform(options))["size"]
        show("8 bits", uniform(options))
        show("4 bits", uniform(options, "w4a8"))
        rng = random.Random(0)
        for share in given.share or (0.75, 0.6):
            solution = solve(problem, minimize="loss", limits={"size": share * full})
            show(f"planned {share:g}", solution.choices)
            orders = [rng.sample(narrow, len(narrow)) for _ in range(given.random)]
            orders.append(sorted(narrow, key=lambda name: -problem.options[name]["w8a8"]["size"]))
            for number, order in enumerate(orders):
                choices = uniform(options)
                for name in order:
                    if cost_of(problem, choices)["size"] <= share * full:
                        break
                    choices[name] = "w4a8"
                show("largest first" if number == given.random else f"random {number}", choices)


if __name__ == "__main__":
    main()
