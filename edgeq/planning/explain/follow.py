"""A plan is followed: with the model and the data that it was made from, and what there is to tell of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeq.cache import open_cache
from edgeq.case import Case, load_model
from edgeq.data.dataset import Dataset
from edgeq.errors import UsageError
from edgeq.limits import Limits
from edgeq.model.model import Model
from edgeq.plans.edited import contradictions
from edgeq.plans.follow import followed, runtime_of
from edgeq.plans.plan import Plan, refuse_other
from edgeq.plans.remembered import data_of
from edgeq.prepare import Aim, Job, following, prepare
from edgeq.progress import Clock, Progress, Silent
from edgeq.registry.load import load_target
from edgeq.registry.schema import Runtime, Target

_FOUND_ANEW = ("method", "sha256", "scale", "low", "high")
"""What methods decide. Those that learn find scales of activations as well."""


def job_of(
    plan: Plan,
    model: str | Path | Model,
    *,
    target: Target | None = None,
    calibration: str | Path | Dataset | None = None,
    preprocess: str | None = None,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    progress: Progress | None = None,
) -> Job:
    """A plan's model with its calibration, without evaluation data: what the plan can be simulated with.

    Args:
        model: the plan's, or its file.
        target: looked up by the plan's name for it if not given.
        calibration, preprocess: what the plan says that it was made with if not given.
        inputs, arch, trust_pickle: see `edgeq.load`.
        progress: hears also of whatever is done with the job.

    Raises:
        UsageError: wrong arguments or data, or the plan is for another model.
        UnsupportedError: the model cannot be handled.
    """
    given = plan.given
    data: str | Path | Dataset | None = calibration
    if not isinstance(calibration, Dataset):
        data = data_of(given, "--calib", calibration, "calibration")
    if data is None:
        raise UsageError("--calib is missing", remedy="the plan does not say what it was made from: give --calib")
    how = preprocess if preprocess is not None else given.preprocess if given else None
    aim = target or load_target(plan.target)
    case = Case(
        model,
        calibration=data,
        preprocess=how,
        inputs=inputs,
        arch=arch,
        trust_pickle=trust_pickle,
        rewrites=plan.rewrites,
    )
    clock = Clock(progress or Silent())
    cache = open_cache(clock.progress.note)
    with clock.stage("model"):  # first of all: data of another model would be blamed for not fitting this one
        net = load_model(case, cache)
        refuse_other(plan, model_hash=net.sha256, layers=[group.name for group in net.groups])
    nowhere = Aim(aim, [runtime_of(plan, aim)], None, None, 1, Limits(), "nothing is run")
    (job,) = prepare(replace(case, model=net), [nowhere], clock, cache)
    return following(job, plan)


def planned_choices(plan: Plan, job: Job, runtime: Runtime) -> dict[str, str]:
    """The choices of `followed`. What the user should know is added to the job's warnings."""
    choices, notes = followed(plan, job.model, job.calibration, job.calibration_data.sha256, runtime)
    _tell(job, notes)
    return choices


def tell_contradictions(plan: Plan, built: Plan, job: Job) -> None:
    """Adds to the job's warnings what a plan says and its build does not have, where that is not for other data, or
    because methods were chosen anew."""
    if plan.data_hash == built.data_hash:
        _tell(job, contradictions(plan, built, () if job.methods is not None else _FOUND_ANEW))


def _tell(job: Job, notes: Sequence[str]) -> None:
    for note in notes:
        job.warnings.append(note)
        job.clock.progress.note(note)
