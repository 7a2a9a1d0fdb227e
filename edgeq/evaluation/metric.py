"""The user's own measure of quality: a function `package.module:function`, called as `function(outputs, labels)`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UsageError


@dataclass(frozen=True)
class Metric:
    """A measure over a set of samples.

    Attributes:
        name: shown in the report.
        function: from a list of N outputs and the N labels (None without labels) to one number. An output is one
            array without the batch axis, or a tuple of them where the model has several outputs.
        higher_is_better: False for errors and losses.
        unit: "%" makes a limit such as "1%" one percentage point; any other unit makes it relative.
    """

    name: str
    function: Callable[..., Any]
    higher_is_better: bool = True
    unit: str = ""

    def score(self, outputs: Sequence[Any], labels: NDArray[Any] | None) -> float:
        """The metric on these samples.

        Raises:
            UsageError: it raised, or gave something other than one finite number.
        """
        try:
            score = float(self.function(outputs, labels))
        except Exception as error:
            raise UsageError(
                f"the metric failed: {type(error).__name__}: {error}",
                where=self.name,
                remedy="it is called as metric(outputs, labels) with a list of N outputs and N labels, "
                "and returns one number",
            ) from error
        if not math.isfinite(score):
            raise UsageError(f"the metric returned {score}", where=self.name, remedy="return one finite number")
        return score


def identity(metric: Metric | None) -> str:
    """What tells one metric from another, for results that are kept; empty where that cannot be told."""
    if metric is None:
        return "top-1 or agreement"
    try:
        source = Path(inspect.getsourcefile(metric.function) or "").read_bytes()
    except (TypeError, OSError):
        return ""
    return f"{metric.name} {metric.unit} {metric.higher_is_better} {hashlib.sha256(source).hexdigest()}"


def load_metric(spec: str) -> Metric:
    """One of edgeq's metrics, or a function that is imported from installed packages or the current folder.

    The function may carry the attributes `higher_is_better` (True if missing) and `unit` ("" if missing).

    Args:
        spec: a name in `edgeq.evaluation.metrics.METRICS`, or `package.module:function`.

    Raises:
        UsageError: the text has another form, or there is no such module or function.
    """
    from edgeq.evaluation.metrics import METRICS

    if spec in METRICS:
        return METRICS[spec]
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        remedy = f"one of {', '.join(METRICS)}, or package.module:function"
        raise UsageError(f"{spec!r} is no metric", remedy=remedy)
    # Last on the path: a file of the user's must not shadow a package that is imported later.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"cannot import {module_name!r}: {type(error).__name__}: {error}",
            where=spec,
            remedy="the module must be installed, or lie in the current folder",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        origin = getattr(module, "__file__", None) or "a built-in module"
        raise UsageError(
            f"{module_name!r} ({origin}) has no function {function_name!r}",
            where=spec,
            remedy="name one of its functions, as MODULE:FUNCTION",
        )
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


def choose(items: list[Any], indices: NDArray[np.intp]) -> list[Any]:
    """The items at these indices, with repetitions."""
    return [items[i] for i in indices]
