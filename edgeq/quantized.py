"""The quantized model of a job: layers rounded by the methods that a plan names, or that held-out samples speak for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.cache import Entry, cached, content_key
from edgeq.installed import installed
from edgeq.methods import GPTQ, NEAREST, SQUEEZELLM, TOGETHER, fits, method
from edgeq.methods.effort import EFFORTS
from edgeq.methods.gptq import FEW_BITS
from edgeq.methods.method import Change, Method, Seen, Wanted
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.numerics import QParams
from edgeq.numerics.weights import QuantizedWeight
from edgeq.prepare import Job
from edgeq.progress import Progress
from edgeq.quantization.activations import Ranges
from edgeq.quantization.quantized import Quantized
from edgeq.registry.schema import Runtime, arithmetic

METHODS_VERSION = 1
"""To be raised whenever a method changes, or how its results are kept."""

HELD_OUT = 8
"""One calibration sample of so many judges what methods learn from the others."""

KEPT = frozenset({GPTQ, "awq-clip", SQUEEZELLM})
"""Methods that look through the samples, whose results are kept for each layer. Those of others are not: who is writing
one would be given what it did before it was changed."""

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
    with job.clock.stage(f"quantize for {runtime.name}"):
        best = _quantized(job, runtime, choices, ranges, job.methods)
    if job.methods is not None or len(job.calibration_data) < FEWEST or not best.weights:
        return best
    remarks: list[str] = []
    for name in EFFORTS[job.effort].methods:
        able = {layer for layer, weight in best.weights.items() if fits(name, weight.q.scheme)}
        if not able:
            continue
        other = _quantized(job, runtime, choices, ranges, best.methods | dict.fromkeys(able, name))
        best, remark = _judged(job, name, best, other)
        remarks.append(remark)
        job.clock.progress.note(remark)
    return replace(best, remarks=tuple(remarks))


def quantize_each(
    job: Job, runtime: Runtime, choices: Mapping[str, str] | None = None, ranges: Ranges | None = None
) -> Quantized:
    """The same with every layer rounded by itself, without what rounds layers together, nor what does not round to the
    levels of a choice: what choices of one layer are compared by."""
    told = job.methods
    if told is not None:
        kernels = {g.name: runtime.kernel(g.op, (choices or {}).get(g.name)) for g in job.model.groups}
        schemes = {name: kernel.weight_scheme for name, kernel in kernels.items() if kernel is not None}
        able = {name: by for name, by in told.items() if (one := schemes.get(name)) and fits(by, one)}
        told = {name: by for name, by in able.items() if by not in TOGETHER}
    return _quantized(job, runtime, choices, ranges, told)


def _quantized(
    job: Job,
    runtime: Runtime,
    choices: Mapping[str, str] | None,
    ranges: Ranges | None,
    methods: Mapping[str, str] | None,
) -> Quantized:
    """By these methods; where there are none, by the effort's for layers of few bits."""
    model, effort, data = job.model, EFFORTS[job.effort], job.calibration_data
    quantize = partial(quantize_model, model, runtime, job.calibration, job.impact, choices=choices, ranges=ranges)
    plain = quantize()
    few = {name: effort.few for name, weight in plain.weights.items() if weight.q.scheme.width <= FEW_BITS}
    enough = len(data) >= FEWEST
    wanted = (few if enough else {}) if methods is None else {n: m for n, m in methods.items() if n in plain.weights}
    if set(wanted.values()) <= {NEAREST}:
        return plain
    learned = {name: np.delete(array, slice(None, None, HELD_OUT), axis=0) for name, array in data.inputs.items()}

    def rounded(progress: Progress | None = None) -> Quantized:
        return quantize(
            methods=wanted,
            inputs=learned if enough else data.inputs,
            steps=effort.steps,
            progress=progress,
            by=partial(_keeping, job),
        )

    if TOGETHER.isdisjoint(wanted.values()):
        return rounded()  # what takes long is kept for each layer
    key = content_key(
        "methods",
        METHODS_VERSION,
        model=model.fingerprint,
        calibration=data.sha256,
        runtime=arithmetic(runtime),
        choices={group.name: plain.assignment.choice(group.name) for group in model.groups},
        methods=wanted,
        steps=effort.steps,
        **installed("torch"),
    )

    def together() -> Quantized:
        with job.clock.stage(" and ".join(dict.fromkeys(wanted.values()))) as progress:
            return rounded(progress)

    return cached(job.cache, "methods", key, together, _pack, lambda entry: _unpack(entry, plain))


def _keeping(job: Job, name: str) -> Method:
    """A method, with what it gives kept where that takes long: plans of one model share most layers."""
    found = method(name)
    if name not in KEPT:
        return found

    def called(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
        keys = {
            one.layer: content_key(
                "rounded",
                METHODS_VERSION,
                model=model.fingerprint,
                calibration=job.calibration_data.sha256,
                method=name,
                layer=one.layer,
                scheme=asdict(one.scheme),
                input_scale=None if one.input_scale is None else float(one.input_scale),
                **installed("torch"),
            )
            for one in wanted
        }
        known = {layer: entry for layer, key in keys.items() if (entry := job.cache.get("rounded", key))}
        missing = [one for one in wanted if one.layer not in known]
        if missing:
            with job.clock.stage(name):
                change = found(model, missing, seen)
            for one in missing:
                known[one.layer] = entry = _entry(change.weights[one.layer], change.biases.get(one.layer))
                job.cache.put("rounded", keys[one.layer], entry)
        weights = {one.layer: _weight(known[one.layer], one) for one in wanted}
        return Change(weights, {n: entry.arrays["bias"] for n, entry in known.items() if "bias" in entry.arrays})

    return called


def _judged(job: Job, method: str, before: Quantized, after: Quantized) -> tuple[Quantized, str]:
    """The better of the two on held-out samples, and what there is to say of it."""
    from edgeq.quantization.simulate import sqnr_of

    held = {name: array[::HELD_OUT] for name, array in job.calibration_data.inputs.items()}
    old, new = (sqnr_of(job.model, one, held) for one in (before, after))
    told = f"{old:.1f} to {new:.1f} dB, simulated on calibration samples that it had not seen"
    return (after, f"{method}: {told}") if new > old else (before, f"{method} was undone: {told}")


def _entry(weight: QuantizedWeight, bias: NDArray[np.float32] | None) -> Entry:
    return Entry(weight.q.axis, _arrays(weight) | ({} if bias is None else {"bias": bias}))


def _weight(entry: Entry, one: Wanted) -> QuantizedWeight:
    axis, arrays = entry.values, entry.arrays
    q = QParams(one.scheme, arrays["scale"], arrays["zero point"], axis)
    return QuantizedWeight(arrays["integers"], q, arrays.get("levels"))


def _arrays(weight: QuantizedWeight) -> dict[str, Any]:
    levels = {} if weight.levels is None else {"levels": weight.levels}
    return {"integers": weight.integers, "scale": weight.q.scale, "zero point": weight.q.zero_point} | levels


def _pack(found: Quantized) -> Entry:
    arrays: dict[str, Any] = {}
    for number, (name, weight) in enumerate(found.weights.items()):
        parts = _arrays(weight) | {"bias": found.biases[name]}
        arrays |= {f"{number} {part}": array for part, array in parts.items()}
    return Entry([found.methods[name] for name in found.weights], arrays)


def _unpack(entry: Entry, plain: Quantized) -> Quantized:
    weights, biases, methods = {}, dict(plain.biases), dict(zip(plain.weights, entry.values, strict=True))
    for number, (name, weight) in enumerate(plain.weights.items()):
        parts = ("integers", "scale", "zero point", "bias")
        integers, scale, zero, biases[name] = (entry.arrays[f"{number} {part}"] for part in parts)
        q = replace(weight.q, scale=scale, zero_point=zero)
        weights[name] = QuantizedWeight(integers, q, entry.arrays.get(f"{number} levels"))
    return replace(plain, weights=weights, biases=biases, methods=methods)
