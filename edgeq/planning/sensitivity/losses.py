"""What each choice of a runtime loses, on the calibration data: targets and devices of the same arithmetic share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from edgeq.cache import Entry, cached, content_key
from edgeq.installed import installed
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import uniform
from edgeq.lowering.space import Space
from edgeq.methods.effort import EFFORTS
from edgeq.numerics import QParams, Scheme, per_tensor
from edgeq.planning.sensitivity.value import Sensitivity, contenders, predicted_losses
from edgeq.plans.plan import AloneLoss
from edgeq.prepare import Job
from edgeq.quantization.activations import QuantizedTensor, Ranges
from edgeq.quantized import quantize_each
from edgeq.registry.schema import arithmetic

LOSSES_VERSION = 8
"""To be raised whenever what is measured, or how it is kept, changes."""


def _pack(ranges: Ranges) -> list[Any]:
    def grid(q: QParams) -> list[Any]:
        return [asdict(q.scheme), float(q.scale), int(q.zero_point)]

    return [
        [estimator, asdict(scheme), fixed, list(names), {**asdict(tensor), "q": grid(tensor.q)}]
        for (estimator, scheme, fixed, names), tensor in ranges.items()
    ]


def _unpack(kept: Any) -> Ranges:
    def tensor(q: Any, **rest: Any) -> QuantizedTensor:
        scheme, scale, zero_point = q
        return QuantizedTensor(per_tensor(Scheme(**scheme), scale, zero_point), **rest)

    return {
        (estimator, Scheme(**scheme), fixed, tuple(names)): tensor(**found)
        for estimator, scheme, fixed, names, found in kept
    }


@dataclass(frozen=True)
class Losses:
    """The losses of one runtime's choices.

    Attributes:
        sensitivity: of all choices, predicted.
        alone: of some, by quantizing one layer alone in simulation.
        ranges: of the activations, which every plan of this runtime shares.
        correlation: of the ranks of predicted and simulated losses, over those in `alone`.
    """

    sensitivity: Sensitivity
    alone: list[AloneLoss]
    ranges: Annotated[Ranges, PlainValidator(_unpack), PlainSerializer(_pack)]
    correlation: float | None


_KEPT = TypeAdapter(Losses)


def measure_losses(job: Job, space: Space) -> Losses:
    """One pass for all choices, then some of them one by one; or what an earlier run kept of it."""
    key = content_key(
        "losses",
        LOSSES_VERSION,
        model=job.model.fingerprint,
        calibration=job.calibration_data.sha256,
        runtime=arithmetic(space.runtime),
        methods=EFFORTS[job.effort].few if job.methods is None else dict(job.methods),
        choices={name: list(offered) for name, offered in space.options.items()},
        **installed("torch"),
    )
    return cached(
        job.cache,
        "losses",
        key,
        lambda: _measure(job, space),
        lambda found: Entry(_KEPT.dump_python(found, mode="json")),
        lambda entry: _KEPT.validate_python(entry.values),
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, the correlation of the ranks; None for fewer than three pairs."""
    if len(first) < 3:
        return None
    from scipy.stats import spearmanr  # a second to import, and needed only where losses are measured

    found = float(spearmanr(first, second).statistic)
    return found if isfinite(found) else None


def _measure(job: Job, space: Space) -> Losses:
    from edgeq.planning.sensitivity.damages import measure_alone, measure_sensitivity

    model, inputs, options, ranges = job.model, job.calibration_data.inputs, space.options, Ranges()
    quantized = partial(quantize_each, job, space.runtime, ranges=ranges)
    with job.clock.stage(f"sensitivity for {space.runtime.name}") as steps:
        kernels = dict.fromkeys(c for offered in options.values() for c in offered if c != FLOAT)
        alternatives = {kernel: quantized(choices=uniform(options, kernel)) for kernel in kernels}
        sensitivity = measure_sensitivity(model, inputs, alternatives, steps, job.engine)
        predicted = predicted_losses(space, sensitivity)
        # a layer without weights has one and the same rounding whatever the other layers choose
        able = {(n, c): loss for (n, c), loss in predicted.items() if alternatives[c].assignment.choice(n) == c}
        found = measure_alone(model, inputs, alternatives, contenders(able), job.engine)
    alone = [AloneLoss(layer=n, choice=c, predicted=able[n, c], simulated=loss) for (n, c), loss in found.items()]
    correlation = rank_correlation([one.predicted for one in alone], [one.simulated for one in alone])
    return Losses(sensitivity, alone, ranges, correlation)
