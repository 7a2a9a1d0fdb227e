"""The loss that a plan may be predicted at, so that it holds the user's limit on the drop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from edgeq.cache import Cache, Entry, cached, content_key, from_list, to_list
from edgeq.errors import EdgeqError, UsageError
from edgeq.evaluation.accuracy import check_outputs, quick_drop
from edgeq.evaluation.metric import identity, per_sample
from edgeq.installed import installed
from edgeq.limits import drop_limit
from edgeq.planning.proof.proving import errors_of
from edgeq.planning.proof.search import SAME, Search
from edgeq.planning.sensitivity.budget import allowed_damage
from edgeq.planning.solver.solve import Infeasible, check, cost_of, solve
from edgeq.prepare import Job

Array = NDArray[Any]

TRIAL = 0.05
"""The loss at which a plan is tried: most plans under limits lose less, and errors are scaled (see `LINEAR`)."""

TRIAL_VERSION = 2
"""To be raised whenever what is tried, or how its errors are kept, changes."""

ALLOWED_VERSION = 6
"""To be raised whenever the loss that a drop allows is found in another way."""


def allowed_loss(job: Job, searches: Sequence[Search] = ()) -> float | None:
    """The damage that the limit on the metric allows; None without such a limit.

    Args:
        searches: whose artefacts tell what rounding does to these answers.

    Raises:
        UsageError: a drop cannot be judged by these outputs.
    """
    most = most_lost(job)
    if most is None:
        return None
    errors = {(search.key, search.precision): found for search in searches if (found := trial_errors(search))}

    def damage() -> float:
        drop = partial(_drop, job)
        return allowed_damage(job.reference, drop, most, errors=list(errors.values()), slow=job.metric is not None)

    judge = identity(job.metric)
    key = content_key(
        "allowed",
        ALLOWED_VERSION,
        model=job.model.fingerprint,
        evaluation=None if job.evaluation is None else job.evaluation.sha256,
        metric=judge,
        most=most,
        errors=list(errors),
        **installed("torch"),
    )
    cache = job.cache if judge else Cache(None)
    with job.clock.stage("loss that is allowed"):
        allowed: float = cached(cache, "allowed", key, damage, Entry, lambda entry: float(entry.values))
    return allowed


def _drop(job: Job, outputs: Sequence[Array]) -> float:
    """What outputs lose of the metric; nothing where there are no answers to compare."""
    return quick_drop(job.reference, outputs, job.labels, job.metric, job.model.heads) or 0.0


def trial(search: Search) -> dict[str, str]:
    """The smallest plan that is predicted to lose no more than `TRIAL`, or the preferred kernels everywhere: the
    smallest plan of a tiny model is float, which misses nothing.

    Raises:
        Infeasible: every plan loses more.
    """
    problem = search.costs.problems[search.precision]
    smallest = solve(problem, minimize="size", limits={"loss": TRIAL}, gap=SAME)
    preferred = search.preferred
    common = not check(problem, preferred) and cost_of(problem, preferred)["loss"] > smallest.costs["loss"]
    return preferred if common else smallest.choices


def trial_errors(search: Search) -> list[Array]:
    """What a plan misses that loses about as much as plans under limits do, in the form of `errors_of`; nothing where
    there is none, or where it cannot be run, or only in an emulator.

    It is the same whatever the limits and the rules are, so that it is found and run once.
    """
    job = search.job
    if job.timed is None:
        return []
    key = content_key(
        "errors",
        TRIAL_VERSION,
        costs=search.key,
        precision=search.precision,
        evaluation=search.evaluation.sha256,
        loss=TRIAL,
    )

    def measured() -> list[Array]:
        with job.clock.stage(f"answers in {search.runtime.name}, {search.precision}: a trial"):
            try:
                return errors_of(search, trial(search))
            except Infeasible:
                return []

    try:
        return cached(job.cache, "errors", key, measured, from_list, to_list)
    except EdgeqError as error:  # told again where it stands in the way of a plan
        job.clock.progress.note(f"{search.runtime.format}: a trial gave no answers: {error.cause}")
        return []


def most_lost(job: Job) -> float | None:
    """The limit on the drop in the unit of the metric; None without one.

    Raises:
        UsageError: a drop cannot be judged by these outputs.
    """
    limit = job.limits.max_drop
    if limit is None:
        return None
    check_outputs(job.reference, job.reference)
    metric = job.metric
    of_metric = None if metric is None or not limit.percent else metric.score(per_sample(job.reference), job.labels)
    most = drop_limit(limit, "%" if metric is None else metric.unit, of_metric)
    if most is None or quick_drop(job.reference, job.reference, job.labels, metric, job.model.heads) is None:
        raise UsageError(
            f"a drop of at most {limit} cannot be judged: the outputs hold no answers to compare",
            remedy="pass labels or --metric package.module:function",
        )
    return most
