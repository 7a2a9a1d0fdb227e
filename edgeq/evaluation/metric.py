"""A measure of quality: a function of outputs and labels. One of edgeq's by its name, or the user's own by
`package.module:function`."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.data.function import resolve
from edgeq.errors import EdgeqError, UsageError


@dataclass(frozen=True)
class Metric:
    """A measure over a set of samples.

    Attributes:
        name: shown in the report.
        function: from a list of N outputs and the N labels (None without labels) to one number. An output is one
            array without the batch axis, or a tuple of them where the model has several outputs.
        higher_is_better: False for errors and losses.
        unit: "%" makes a limit such as "1%" one percentage point; any other unit makes it relative.
        prepare: what can be worked out of each group of samples alone, since the function is called about a thousand
            times on groups drawn with replacement: from N outputs and N labels to N things, which it gets in place of
            outputs.
        check: refuses labels that it cannot judge by, before any long work.
        nothing: the score of a model that gets nothing right: a float model that has it tells nothing of a drop.
        settings: hash of what else decides a score, such as a file that the metric was made from.
        group: so many samples in a row are judged together, as the two texts of a pair.
    """

    name: str
    function: Callable[..., Any]
    higher_is_better: bool = True
    unit: str = ""
    prepare: Callable[..., list[Any]] | None = None
    check: Callable[[Any], object] | None = None
    nothing: float | None = None
    settings: str = ""
    group: int = 1

    def score(self, outputs: Sequence[Any], labels: NDArray[Any] | None) -> float:
        """The metric on these samples.

        Raises:
            UsageError: it raised, or gave something other than one finite number.
        """
        return self.score_prepared(self.prepared(outputs, labels), labels)

    def prepared(self, outputs: Sequence[Any], labels: NDArray[Any] | None) -> Sequence[Any]:
        """What `score_prepared` takes, an entry for each sample.

        Raises:
            UsageError: the outputs or labels are not what the metric takes.
        """
        with self._told():
            return outputs if self.prepare is None else self.prepare(outputs, labels)

    def score_prepared(self, prepared: Sequence[Any], labels: NDArray[Any] | None) -> float:
        """`score`, of samples that were prepared."""
        with self._told():
            score = float(self.function(prepared, labels))
        if not math.isfinite(score):
            raise UsageError(f"the metric returned {score}", where=self.name, remedy="return one finite number")
        return score

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except EdgeqError:
            raise
        except Exception as error:
            raise UsageError(
                f"the metric failed: {type(error).__name__}: {error}",
                where=self.name,
                remedy="it is called as metric(outputs, labels) with a list of N outputs and N labels, "
                "and returns one number",
            ) from error


def identity(metric: Metric | None) -> str:
    """What tells one metric from another, for results that are kept; empty where that cannot be told."""
    if metric is None:
        return "top-1 or agreement"
    try:
        source = Path(inspect.getsourcefile(metric.function) or "").read_bytes()
    except (TypeError, OSError):
        return ""
    told = metric.name, metric.unit, metric.higher_is_better, metric.settings, hashlib.sha256(source).hexdigest()
    return " ".join(str(one) for one in told)


def load_metric(spec: str) -> Metric:
    """One of edgeq's metrics, or a function that is imported from installed packages or the current folder.

    The function may carry the attributes `higher_is_better` (True if missing) and `unit` ("" if missing).

    Args:
        spec: a name in `edgeq.evaluation.metrics.METRICS`; one in `MADE` with a file, as `coco:detector.toml`; or
            `package.module:function`.

    Raises:
        UsageError: the text has another form, or there is no such module or function.
    """
    from edgeq.evaluation.metrics import MADE, METRICS

    if spec in METRICS:
        return METRICS[spec]
    module_name, _, function_name = spec.partition(":")
    if module_name in MADE:
        return MADE[module_name](function_name)
    if not module_name or not function_name:
        remedy = f"one of {', '.join(METRICS)}, {', '.join(MADE)}:FILE, or package.module:function"
        raise UsageError(f"{spec!r} is no metric", remedy=remedy)
    function = resolve(spec, "--metric")
    return Metric(
        name=function_name,
        function=function,
        higher_is_better=bool(getattr(function, "higher_is_better", True)),
        unit=str(getattr(function, "unit", "")),
    )


def per_sample(outputs: Sequence[NDArray[Any]]) -> list[Any]:
    """Arrays [N, ...] per output, as what a metric takes: N arrays [...], or N tuples of them."""
    if len(outputs) == 1:
        return list(outputs[0])
    return [tuple(sample) for sample in zip(*outputs, strict=True)]


def in_groups(drawn: NDArray[np.intp], group: int) -> NDArray[np.intp]:
    """Indices of the samples of groups, `group` in a row, from the indices of the groups."""
    return (drawn[:, None] * group + np.arange(group)).ravel()


def choose(items: list[Any], indices: NDArray[np.intp]) -> list[Any]:
    """The items at these indices, with repetitions."""
    return [items[i] for i in indices]
