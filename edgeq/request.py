"""What is asked for: the arguments that `deploy`, `plan`, `front` and `fleet` share, each a field that is told once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import ParamSpec, TypeVar

from edgeq.case import Case
from edgeq.data.dataset import Dataset
from edgeq.engine import LOCAL, Engine
from edgeq.limits import Limits
from edgeq.plans.rules import Rule

Arguments = ParamSpec("Arguments")
Asked = TypeVar("Asked")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Request(Case):
    """A case at one target.

    Attributes:
        target: name of a target, or a target file.
        format: `auto` for whatever measures best, or one of `onnx`, `openvino`, `tflite`.
        device: where to run it, if not where the target says: `local`, `arm64`, ...
        profile: the concrete device, if not the target's own.
        limits: what the artefact must hold.
    """

    target: str
    format: str = "auto"
    device: str | None = None
    profile: str | None = None
    limits: Limits | None = None


@dataclass(frozen=True, kw_only=True)
class Sought(Case):
    """A case that plans are sought for.

    Attributes:
        minimize: `latency`, `size`, `loss` or `energy`, within the limits on the others.
        rules: what some layers have to be, whatever it costs.
        engine: where builds and sensitivities are worked out (see `edgeq.engine.open_engine`); no plan depends on it.
    """

    evaluation: str | Path | Dataset = field()  # without the default of a case: plans are judged
    minimize: str = "latency"
    rules: Sequence[Rule] = ()
    engine: Engine = LOCAL


@dataclass(frozen=True, kw_only=True)
class PlanRequest(Sought, Request):
    """A case at one target that plans are sought for."""


def takes_fields_of(
    kind: Callable[Arguments, Asked],
) -> Callable[[Callable[[Asked], Result]], Callable[Arguments, Result]]:
    """Lets a function of one request be called with the request's fields, as arguments."""

    def decorated(function: Callable[[Asked], Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            return function(kind(*args, **kwargs))

        returned = signature(function).return_annotation
        called.__signature__ = signature(kind).replace(return_annotation=returned)  # type: ignore[attr-defined]
        return called

    return decorated
