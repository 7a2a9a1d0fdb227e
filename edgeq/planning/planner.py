"""The planner: costs are measured, the best plan within the limits is solved for, built, and proved in its runtime.

calibrate -> sensitivity -> a few builds for times and sizes -> solve -> build and measure -> solve again with what was
learned, until the limits hold. The result is a plan; `edgeq deploy --plan` makes its artefact.
"""

from __future__ import annotations

from edgeq.case import given
from edgeq.devices import workers_ahead
from edgeq.errors import UsageError
from edgeq.export.artifact import Exporter, import_ahead
from edgeq.files import scratch_folder
from edgeq.planning.proof.best import best_plan
from edgeq.plans.plan import Plan
from edgeq.prepare import aim_of, answered, prepare
from edgeq.progress import Clock
from edgeq.request import PlanRequest, takes_fields_of


@takes_fields_of(PlanRequest)
def plan(request: PlanRequest) -> Plan:
    """The best plan for a target, with the proof of it; without one where the target cannot be executed from here.

    The arguments are the fields of `edgeq.request.PlanRequest`. Without a limit on the
    drop, a plan may lose what uniform INT8 is expected to lose. Of several formats (`auto`) the plan that measured best
    is kept; what is predicted to be far slower than one that holds is not built. The profile is the device whose time
    and energy are modelled where they cannot be measured.

    Returns:
        A plan whose `planned.held` says whether every limit held that could be judged; `planned.unvalidated` has the
        others, and `planned.proof` what was measured, if anything could be run.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model cannot be handled.
        DeviceError: a device or runtime failed.
        GateError: no plan is possible at all under the rules, or none reaches a latency that is only modelled.
    """
    if request.minimize not in ("latency", "size", "loss", "energy"):
        raise UsageError(f"cannot minimize {request.minimize!r}", remedy="choose latency, size, loss or energy")
    aim = aim_of(request)
    import_ahead(runtime.format for runtime in aim.runtimes)  # while the data is read
    (job,) = prepare(request, [aim], Clock(request.progress), engine=request.engine)
    if job.limits.max_drop is not None:
        job = answered(job)  # a drop has to be put into the loss that it allows, also where nothing can be run
    with scratch_folder() as scratch, workers_ahead([job.device]):
        exporter = Exporter(job.model, scratch, job.cache)
        best = best_plan(job, exporter, request.minimize, request.rules)
    remembered = given(request, job.calibration_data, request.device)
    return best.model_copy(update={"given": remembered, "rules": list(request.rules)})
