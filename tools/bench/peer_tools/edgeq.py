"""edgeq itself, told nothing of the evaluation data: it quantizes, writes and audits, and measures nothing.

Option `effort`. `w4a8` is the plan of an 8-bit build, edited, with methods chosen anew.
"""

from __future__ import annotations

import shutil
from typing import Any

import edgeq
from edgeq.plans.plan import Plan, read_plan
from peer_tools.job import Job, carry_out

PROOF = ("layer errors", "validate", "formats in turns")
"""Stages that say something of an artefact, and do not make it; their names begin so."""


def quantize(job: Job) -> None:
    # peers are judged on this machine, and some are told of it
    given: dict[str, Any] = dict(calibration=job.calibration, target=job.target, device="local", **job.options)
    built = job.out.with_name("built")
    first = {**given, "effort": "fast"} if job.precision == "w4a8" else given
    _timed(job, "quantize", edgeq.deploy(job.model, **first, format=job.format, out=built, overwrite=True))
    if job.precision == "w4a8":
        plan, built = narrow(read_plan(built / "plan.json")), job.out.with_name("narrow")
        _timed(job, "quantize", edgeq.deploy(job.model, **given, plan=plan, out=built, overwrite=True))
    for file in built.glob(f"{job.out.stem}.*"):
        shutil.copy(file, job.out.parent)


def _timed(job: Job, stage: str, report: edgeq.Report) -> None:
    spent = sum(seconds for name, seconds in report.seconds.items() if not name.startswith(PROOF))
    job.seconds[stage] = job.seconds.get(stage, 0.0) + spent


def narrow(plan: Plan) -> Plan:
    """With 4 bits for the weights of all layers but the first and the last that have some."""
    between = {layer.name for layer in [one for one in plan.layers if one.weight is not None][1:-1]}
    layers = [one.model_copy(update={"choice": "w4a8"}) if one.name in between else one for one in plan.layers]
    return plan.model_copy(update={"layers": layers})


def main() -> None:
    carry_out(quantize, "edgeq")


if __name__ == "__main__":
    main()
