"""The planner: costs are measured, the best plan within the limits is solved for, built, and proved in its runtime.

calibrate -> sensitivity -> a few builds for times and sizes -> solve -> build and measure -> solve again with what was
learned, until the limits hold. The result is a plan; `edgeq deploy --plan` makes its artefact.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.case import Case, Smooth, given
from edgeq.data.dataset import Dataset
from edgeq.devices import workers_ahead
from edgeq.engine import LOCAL, Engine
from edgeq.errors import UsageError
from edgeq.evaluation.metric import Metric
from edgeq.export.artifact import Exporter, import_ahead
from edgeq.files import scratch_folder
from edgeq.limits import Limits
from edgeq.model.model import Model
from edgeq.planning.proof.best import best_plan
from edgeq.plans.plan import Plan
from edgeq.plans.rules import Rule
from edgeq.prepare import answered, prepare, take_aim
from edgeq.progress import Clock, Progress, Silent
from edgeq.registry.load import load_target

if TYPE_CHECKING:
    import torch


def plan(
    model: str | Path | torch.nn.Module | Model,
    *,
    target: str,
    calibration: str | Path | Dataset,
    evaluation: str | Path | Dataset,
    minimize: str = "latency",
    limits: Limits | None = None,
    format: str = "auto",
    preprocess: str | None = None,
    metric: str | Metric | None = None,
    device: str | None = None,
    profile: str | None = None,
    threads: int = 1,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    smooth_quant: Smooth = "auto",
    rules: Sequence[Rule] = (),
    engine: Engine = LOCAL,
    progress: Progress | None = None,
) -> Plan:
    """The best plan for a target, with the proof of it; without one where the target cannot be executed from here.

    Args:
        minimize: `latency`, `size`, `loss` or `energy`, within the limits on the others.
        limits: without a largest drop, a plan may lose what uniform INT8 is expected to lose.
        format: of several formats (`auto`) the plan that measured best is kept; what is predicted to be far slower than
            one that holds is not built.
        profile: the device of the target whose time and energy are modelled where they cannot be measured; the target's
            own if not given.
        rules: what some layers have to be, whatever it costs.
        engine: where builds and sensitivities are worked out (see `edgeq.engine.open_engine`); the plan does not
            depend on it.

    The other arguments are those of `edgeq.deploy`.

    Returns:
        A plan whose `planned.held` says whether every limit held that could be judged; `planned.unvalidated` has the
        others, and `planned.proof` what was measured, if anything could be run.

    Raises:
        UsageError: wrong arguments or data.
        UnsupportedError: the model cannot be handled.
        DeviceError: a device or runtime failed.
        GateError: no plan is possible at all under the rules, or none reaches a latency that is only modelled.
    """
    if minimize not in ("latency", "size", "loss", "energy"):
        raise UsageError(f"cannot minimize {minimize!r}", remedy="choose latency, size, loss or energy")
    case = Case(model, calibration, evaluation, preprocess, metric, inputs, arch, trust_pickle, smooth_quant)
    aim = take_aim(load_target(target), format, device=device, profile=profile, threads=threads, limits=limits)
    import_ahead(runtime.format for runtime in aim.runtimes)  # while the data is read
    (job,) = prepare(case, [aim], Clock(progress or Silent()), engine=engine)
    if job.limits.max_drop is not None:
        job = answered(job)  # a drop has to be put into the loss that it allows, also where nothing can be run
    with scratch_folder() as scratch, workers_ahead([job.device]):
        exporter = Exporter(job.model, scratch, job.cache)
        best = best_plan(job, exporter, scratch, minimize, rules)
    return best.model_copy(update={"given": given(case, job.calibration_data, device), "rules": list(rules)})
