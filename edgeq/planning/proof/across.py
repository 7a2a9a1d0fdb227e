"""Latencies of several runtimes beside one another: they are measured minutes apart, and a machine drifts."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.cache import Entry, cached, content_key
from edgeq.devices import Candidate, Inputs
from edgeq.evaluation.alternating import alternating
from edgeq.export.artifact import Exporter
from edgeq.prepare import Job
from edgeq.registry.schema import Runtime
from edgeq.runtimes import runtime as runtime_info

FLOATS_VERSION = 2
"""To be raised whenever the float models are timed in another way."""


def beside_floats(job: Job, exporter: Exporter, runtimes: Sequence[Runtime]) -> dict[str, float | None]:
    """By runtime, what a latency in units of its own float model's is multiplied by, to be compared with the others':
    1 for one runtime alone; for several what their float models took in turns, None where nothing can be timed."""
    device, evaluation = job.timed, job.evaluation
    if len(runtimes) < 2 or device is None or evaluation is None:
        return {runtime.name: 1.0 if len(runtimes) == 1 else None for runtime in runtimes}

    def measured() -> dict[str, float]:
        made: dict[str, tuple[Candidate, Inputs]] = {}
        for runtime in runtimes:
            options = runtime_info(runtime.name).baselines(device.environment(runtime.name))["float32"]
            candidate = Candidate(exporter.float_model(runtime.format)[0], runtime.name, options)
            made[runtime.name] = candidate, evaluation.first(1)
        with job.clock.stage("float model in every runtime") as steps:
            return alternating(device, made, steps, threads=job.threads)

    key = content_key(
        "floats",
        FLOATS_VERSION,
        model=job.model.fingerprint,
        device=device.name,
        runtimes=[[runtime.name, device.environment(runtime.name)] for runtime in runtimes],
        threads=job.threads,
    )
    taken: dict[str, float] = cached(job.cache, "floats", key, measured, Entry, lambda entry: entry.values)
    return {runtime.name: taken.get(runtime.name) for runtime in runtimes}
