"""The loss that a plan may be predicted at, so that it holds the user's limit on the drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.errors import UsageError
from edgeq.installed import installed
from edgeq.planning.budget import allowed_damage
from edgeq.planning.proving import preferred_errors
from edgeq.planning.search import Search
from edgeq.prepare import Job
from edgeq.validation.accuracy import check_outputs, quick_drop
from edgeq.validation.gates import drop_limit
from edgeq.validation.metric import identity, per_sample

Array = NDArray[Any]

ALLOWED_VERSION = 5
"""To be raised whenever the loss that a drop allows is found in another way."""


def allowed_loss(job: Job, searches: Sequence[Search] = ()) -> float | None:
    """The damage that the limit on the metric allows; None without such a limit.

    Args:
        searches: whose preferred kernels tell what rounding does to these answers.

    Raises:
        UsageError: a drop cannot be judged by these outputs.
    """
    errors = [(search, found) for search in searches if (found := preferred_errors(search)) is not None]
    most = most_lost(job)
    if most is None:
        return None
    labels = None if job.evaluation is None else job.evaluation.labels

    def drop(outputs: Sequence[Array]) -> float:
        return quick_drop(job.reference, outputs, labels, job.metric) or 0.0

    def damage() -> float:
        slow = job.metric is not None
        return allowed_damage(job.reference, drop, most, errors=[found for _, found in errors], slow=slow)

    judge = identity(job.metric)
    key = content_key(
        "allowed",
        ALLOWED_VERSION,
        model=job.model.fingerprint,
        evaluation=None if job.evaluation is None else job.evaluation.sha256,
        metric=judge,
        most=most,
        errors=[[search.key, search.precision] for search, _ in errors],
        **installed("torch"),
    )
    cache = job.cache if judge else Cache(None)
    with job.clock.stage("loss that is allowed"):
        allowed: float = cached(cache, "allowed", key, damage, Entry, lambda entry: float(entry.values))
    return allowed


def most_lost(job: Job) -> float | None:
    """The limit on the drop in the unit of the metric; None without one.

    Raises:
        UsageError: a drop cannot be judged by these outputs.
    """
    limit = job.limits.max_drop
    if limit is None:
        return None
    labels = None if job.evaluation is None else job.evaluation.labels
    check_outputs(job.reference, job.reference)
    metric = job.metric
    of_metric = None if metric is None or not limit.percent else metric.score(per_sample(job.reference), labels)
    most = drop_limit(limit, "%" if metric is None else metric.unit, of_metric)
    if most is None or quick_drop(job.reference, job.reference, labels, metric) is None:
        raise UsageError(
            f"a drop of at most {limit} cannot be judged: the outputs hold no answers to compare",
            remedy="pass labels or --metric package.module:function",
        )
    return most
