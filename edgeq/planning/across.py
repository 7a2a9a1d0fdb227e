"""Which of several runtimes' plans is the fastest: they were measured minutes apart, and a machine drifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeq.cache import Entry, cached, content_key
from edgeq.devices import Candidate, Device
from edgeq.devices.device import Inputs
from edgeq.export.artifact import Exporter
from edgeq.planning.plan import Plan
from edgeq.planning.proving import rank
from edgeq.prepare import Job
from edgeq.registry.schema import Runtime
from edgeq.runtimes import runtime as runtime_info
from edgeq.validation.alternating import alternating

FLOATS_VERSION = 1
"""To be raised whenever the float models are timed in another way."""


def first_of(job: Job, exporter: Exporter, found: Sequence[Plan]) -> Plan:
    """The plan that ranks first. Of plans of several runtimes each latency counts in units of its own float model's,
    which took turns with it, times what the float models took in turns with one another."""
    if len({plan.runtime for plan in found}) < 2:
        return min(found, key=rank)
    floats = _floats(job, exporter, [r for r in job.runtimes if any(plan.runtime == r.name for plan in found)])
    return min(found, key=lambda plan: rank(plan, floats.get(plan.runtime)))


def _floats(job: Job, exporter: Exporter, runtimes: Sequence[Runtime]) -> Mapping[str, float]:
    """By runtime, seconds of the float model; empty where nothing can be timed."""
    device, model, evaluation = job.device, job.model, job.evaluation
    if not isinstance(device, Device) or device.emulated or evaluation is None:
        return {}
    one = {name: array[:1] for name, array in evaluation.inputs.items()}

    def measured() -> dict[str, float]:
        made: dict[str, tuple[Candidate, Inputs]] = {}
        for runtime in runtimes:
            options = runtime_info(runtime.name).baselines(device.environment(runtime.name))["float32"]
            made[runtime.name] = (Candidate(exporter.float_model(runtime.format)[0], runtime.name, options), one)
        with job.clock.stage("float model in every runtime") as steps:
            return alternating(device, made, steps, threads=job.threads)

    key = content_key(
        "floats",
        FLOATS_VERSION,
        model=model.fingerprint,
        device=device.name,
        runtimes=[[runtime.name, device.environment(runtime.name)] for runtime in runtimes],
        threads=job.threads,
    )
    return cached(job.cache, "floats", key, measured, Entry, lambda entry: entry.values)
