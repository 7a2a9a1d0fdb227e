"""What each choice of a runtime loses, on the calibration data: it depends on the runtime's arithmetic alone, so that
targets and devices that share it share this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import Any

from edgeq.cache import Entry, cached, content_key
from edgeq.installed import installed
from edgeq.lowering.assign import FLOAT
from edgeq.lowering.choices import Ladder, uniform
from edgeq.numerics import Scheme, per_tensor
from edgeq.planning.sensitivity.predicted import predicted_losses
from edgeq.planning.sensitivity.value import Sensitivity, contenders
from edgeq.plans.plan import AloneLoss
from edgeq.prepare import Job
from edgeq.quantization.activations import QuantizedTensor, Ranges
from edgeq.quantization.quantize import quantize_model
from edgeq.registry.schema import Runtime

LOSSES_VERSION = 7
"""To be raised whenever what is measured, or how it is kept, changes."""


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
    ranges: Ranges
    correlation: float | None


def measure_losses(job: Job, runtime: Runtime, options: Ladder) -> Losses:
    """One pass for all choices, then some of them one by one; or what an earlier run kept of it."""
    return cached(
        job.cache,
        "losses",
        content_key(
            "losses",
            LOSSES_VERSION,
            model=job.model.fingerprint,
            calibration=job.calibration_data.sha256,
            runtime=arithmetic(runtime),
            methods=dict(job.methods),
            choices={name: list(offered) for name, offered in options.items()},
            **installed("torch"),
        ),
        lambda: _measure(job, runtime, options),
        _pack,
        _unpack,
    )


def arithmetic(runtime: Runtime) -> dict[str, Any]:
    """Of a runtime, what decides which values an artefact stores: not how a target file knows it, nor what runs it."""
    return runtime.model_dump(
        mode="json",
        exclude={
            "extra": True,
            "float_alternatives": True,
            "rounds_float_layers": True,
            "kernels": {"__all__": {"source", "accumulator"}},
        },
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, the correlation of the ranks; None for fewer than three pairs."""
    if len(first) < 3:
        return None
    from scipy.stats import spearmanr  # a second to import, and needed only where losses are measured

    found = float(spearmanr(first, second).statistic)
    return found if isfinite(found) else None


def pack_ranges(ranges: Ranges) -> list[object]:
    return [
        [estimator, asdict(scheme), fixed, list(names), _pack_tensor(tensor)]
        for (estimator, scheme, fixed, names), tensor in ranges.items()
    ]


def unpack_ranges(kept: Any) -> Ranges:
    return {
        (estimator, Scheme(**scheme), fixed, tuple(names)): _unpack_tensor(tensor)
        for estimator, scheme, fixed, names, tensor in kept
    }


def _measure(job: Job, runtime: Runtime, options: Ladder) -> Losses:
    from edgeq.planning.sensitivity.damages import measure_alone, measure_sensitivity

    model, ranges = job.model, Ranges()
    with job.clock.stage(f"sensitivity for {runtime.name}") as steps:
        kernels = dict.fromkeys(c for offered in options.values() for c in offered if c != FLOAT)
        rounded = partial(quantize_model, model, runtime, job.calibration, job.impact, methods=job.methods)
        alternatives = {name: rounded(choices=uniform(options, name), ranges=ranges) for name in kernels}
        sensitivity = measure_sensitivity(model, job.calibration_data.inputs, alternatives, steps, job.engine)
        predicted = predicted_losses(model, runtime, options, sensitivity)
        # a layer without weights has one and the same rounding whatever the other layers choose
        able = {
            (name, choice): value
            for (name, choice), value in predicted.items()
            if alternatives[choice].assignment.choice(name) == choice
        }
        found = measure_alone(model, job.calibration_data.inputs, alternatives, contenders(able), job.engine)
    alone = [
        AloneLoss(layer=name, choice=choice, predicted=predicted[name, choice], simulated=value)
        for (name, choice), value in found.items()
    ]
    correlation = rank_correlation([one.predicted for one in alone], [one.simulated for one in alone])
    return Losses(sensitivity, alone, ranges, correlation)


def _pack(found: Losses) -> Entry:
    return Entry(
        {
            "weights": found.sensitivity.weights,
            "tensors": [[node, form, value] for (node, form), value in found.sensitivity.tensors.items()],
            "alone": [one.model_dump() for one in found.alone],
            "ranges": pack_ranges(found.ranges),
            "correlation": found.correlation,
        }
    )


def _unpack(entry: Entry) -> Losses:
    kept = entry.values
    return Losses(
        Sensitivity(kept["weights"], {(node, form): value for node, form, value in kept["tensors"]}),
        [AloneLoss.model_validate(one) for one in kept["alone"]],
        unpack_ranges(kept["ranges"]),
        kept["correlation"],
    )


def _pack_tensor(tensor: QuantizedTensor) -> list[object]:
    q = tensor.q
    grid = [asdict(q.scheme), float(q.scale), int(q.zero_point)]
    return [*grid, tensor.low, tensor.high, tensor.estimator, tensor.share, tensor.reason]


def _unpack_tensor(kept: list[object]) -> QuantizedTensor:
    scheme, scale, zero_point, low, high, estimator, share, reason = kept
    q = per_tensor(Scheme(**scheme), scale, zero_point)  # type: ignore[arg-type]
    return QuantizedTensor(q, low, high, estimator, share, reason)  # type: ignore[arg-type]
