"""The quantized model of a job: layers rounded by the methods that a plan names, or that held-out samples speak for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgeq.cache import Entry, cached, content_key
from edgeq.installed import installed
from edgeq.methods import NEAREST, TOGETHER
from edgeq.methods.effort import EFFORTS
from edgeq.methods.quantize import quantize_model
from edgeq.numerics.weights import QuantizedWeight
from edgeq.prepare import Job
from edgeq.quantization.activations import Ranges
from edgeq.quantization.quantized import Quantized
from edgeq.registry.schema import Runtime, arithmetic

METHODS_VERSION = 1
"""To be raised whenever a method changes, or how its results are kept."""

HELD_OUT = 8
"""One calibration sample of so many judges what methods learn from the others."""

FEWEST = 16
"""Calibration samples below which nothing is learned: those held out would say no more than chance."""


def quantize_job(
    job: Job, runtime: Runtime, choices: Mapping[str, str] | None = None, ranges: Ranges | None = None
) -> Quantized:
    """Integers and scales for one runtime. Where the job does not say by which methods, those of its effort are tried,
    and undone where they move the outputs further from the float model's on samples that they have not seen.

    Args:
        choices: by layer; the runtime's preferred kernels if None.
        ranges: what was found for other plans of the same job and runtime; what is found now is added to it.
    """
    told = job.methods or {}
    with job.clock.stage(f"quantize for {runtime.name}"):
        best = _quantized(job, runtime, choices, ranges, told)
    if job.methods is not None or len(job.calibration_data) < FEWEST or not best.weights:
        return best
    remarks: list[str] = []
    for method in EFFORTS[job.effort].methods:
        other = _quantized(job, runtime, choices, ranges, dict.fromkeys(best.weights, method))
        best, remark = _judged(job, method, best, other)
        remarks.append(remark)
        job.clock.progress.note(remark)
    return replace(best, remarks=tuple(remarks))


def quantize_each(
    job: Job, runtime: Runtime, choices: Mapping[str, str] | None = None, ranges: Ranges | None = None
) -> Quantized:
    """The same with every layer rounded by itself, without what rounds layers together: what choices of one layer are
    compared by."""
    apart = {name: method for name, method in (job.methods or {}).items() if method not in TOGETHER}
    return _quantized(job, runtime, choices, ranges, apart)


def _quantized(
    job: Job,
    runtime: Runtime,
    choices: Mapping[str, str] | None,
    ranges: Ranges | None,
    methods: Mapping[str, str],
) -> Quantized:
    model, steps, data = job.model, EFFORTS[job.effort].steps, job.calibration_data
    seen = job.calibration, job.impact
    plain = quantize_model(model, runtime, *seen, choices=choices, ranges=ranges)
    wanted = {name: method for name in plain.weights if (method := methods.get(name, NEAREST)) != NEAREST}
    if not wanted:
        return plain
    key = content_key(
        "methods",
        METHODS_VERSION,
        model=model.fingerprint,
        calibration=data.sha256,
        runtime=arithmetic(runtime),
        choices={group.name: plain.assignment.choice(group.name) for group in model.groups},
        methods=wanted,
        steps=steps,
        **installed("torch"),
    )

    def rounded() -> Quantized:
        learned = {name: np.delete(array, slice(None, None, HELD_OUT), axis=0) for name, array in data.inputs.items()}
        with job.clock.stage(" and ".join(dict.fromkeys(wanted.values()))) as progress:
            return quantize_model(
                model,
                runtime,
                *seen,
                choices=choices,
                ranges=ranges,
                methods=wanted,
                inputs=learned if len(data) >= FEWEST else data.inputs,
                steps=steps,
                progress=progress,
            )

    return cached(job.cache, "methods", key, rounded, _pack, lambda entry: _unpack(entry, plain))


def _judged(job: Job, method: str, before: Quantized, after: Quantized) -> tuple[Quantized, str]:
    """The better of the two on held-out samples, and what there is to say of it."""
    from edgeq.quantization.simulate import sqnr_of

    held = {name: array[::HELD_OUT] for name, array in job.calibration_data.inputs.items()}
    old, new = (sqnr_of(job.model, one, held) for one in (before, after))
    told = f"{old:.1f} to {new:.1f} dB, simulated on calibration samples that were held out"
    return (after, f"{method}: {told}") if new > old else (before, f"{method} was undone: {told}")


def _pack(found: Quantized) -> Entry:
    arrays: dict[str, Any] = {}
    for number, (name, weight) in enumerate(found.weights.items()):
        parts = weight.integers, weight.q.scale, weight.q.zero_point, found.biases[name]
        arrays |= {f"{number} {part}": array for part, array in zip(_PARTS, parts, strict=True)}
    return Entry([found.methods[name] for name in found.weights], arrays)


_PARTS = ("integers", "scale", "zero point", "bias")


def _unpack(entry: Entry, plain: Quantized) -> Quantized:
    weights, biases, methods = {}, dict(plain.biases), dict(zip(plain.weights, entry.values, strict=True))
    for number, (name, weight) in enumerate(plain.weights.items()):
        integers, scale, zero, biases[name] = (entry.arrays[f"{number} {part}"] for part in _PARTS)
        weights[name] = QuantizedWeight(integers, replace(weight.q, scale=scale, zero_point=zero))
    return replace(plain, weights=weights, biases=biases, methods=methods)
