"""The quantized model of a job: layers rounded by the methods that a plan names, or that held-out samples speak for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from edgeq.cache import Json, cached, content_key, recalled
from edgeq.installed import installed
from edgeq.lowering.as_given import given_choices
from edgeq.methods import GPTQ, NEAREST, RECONSTRUCT, SQUEEZELLM, TOGETHER, fits, method
from edgeq.methods.effort import EFFORTS
from edgeq.methods.gptq import FEW_BITS
from edgeq.methods.kept import content_of, pack_change, unpack_change
from edgeq.methods.method import HELD_OUT, Change, Method, Seen, Wanted
from edgeq.methods.quantize import quantize_model
from edgeq.model.model import Model
from edgeq.model.ops import is_float
from edgeq.prepare import Job
from edgeq.quantization.activations import GIVEN as ACTIVATION_GIVEN
from edgeq.quantization.activations import Ranges
from edgeq.quantization.quantized import Quantized
from edgeq.registry.schema import Runtime

METHODS_VERSION = 6
"""To be raised whenever a method changes, or how its results are kept."""

KEPT = frozenset({GPTQ, "awq-clip", SQUEEZELLM, *TOGETHER})
"""Methods that look through the samples, whose results are kept. Those of others are not: who is writing one would be
given what it did before it was changed."""

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
    if job.model.grids is not None:
        return _as_given(job, runtime, choices)
    with job.clock.stage(f"quantize for {runtime.name}"):
        best = _quantized(job, runtime, choices, ranges, job.methods)
    tried = EFFORTS[job.effort].methods
    if job.methods is not None or not tried or not best.weights:
        return best
    if why := _unjudged(job):
        return replace(best, remarks=(f"nothing is learned: {why}",))
    remarks: list[str] = []
    for name in tried:
        able = {layer: weight for layer, weight in best.weights.items() if fits(name, weight.q.scheme)}
        few = any(weight.q.scheme.width <= FEW_BITS for weight in able.values())
        if not able or (name == RECONSTRUCT and not few):
            continue  # what blocks know of themselves is too little to better many bits by
        other = _quantized(job, runtime, choices, ranges, best.methods | dict.fromkeys(able, name))
        best, remark = _judged(job, name, best, other)
        remarks.append(remark)
        job.clock.progress.note(remark)
    return replace(best, remarks=tuple(remarks))


def _as_given(job: Job, runtime: Runtime, choices: Mapping[str, str] | None) -> Quantized:
    """A model that came with grids: nothing of it is rounded again.

    Args:
        choices: by layer; the kernels that compute on the very integers if None.
    """
    model, grids = job.model, job.model.grids
    assert grids is not None
    choices = choices or given_choices(model, runtime)
    held = [group.name for group in model.groups if group.weight in grids.weights]
    with job.clock.stage(f"quantize for {runtime.name}"):
        found = quantize_model(model, runtime, job.calibration, job.impact, choices=choices)
    left = [name for name in held if name not in found.weights]
    fresh = [n for n, t in found.activations.items() if t.estimator not in (ACTIVATION_GIVEN, "fixed")]
    remarks = []
    if left:
        remarks.append(f"{len(left)} layers compute in float on the weights of their grids, such as {left[0]}")
    if fresh:
        remarks.append(
            f"the model came with no grid for {len(fresh)} values, such as {fresh[0]}: calibration sets theirs"
        )
    return replace(found, remarks=tuple(remarks))


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
    effort, data = EFFORTS[job.effort], job.calibration_data
    quantize = partial(quantize_model, job.model, runtime, job.calibration, job.impact, choices=choices, ranges=ranges)
    plain = quantize()
    few = {name: effort.few for name, weight in plain.weights.items() if weight.q.scheme.width <= FEW_BITS}
    enough = len(data) >= FEWEST
    wanted = (few if enough else {}) if methods is None else {n: m for n, m in methods.items() if n in plain.weights}
    if set(wanted.values()) <= {NEAREST}:
        return plain
    learned = {name: np.delete(array, slice(None, None, HELD_OUT), axis=0) for name, array in data.inputs.items()}
    inputs = learned if enough else data.inputs
    return quantize(methods=wanted, inputs=inputs, steps=effort.steps, by=partial(_keeping, job))


def _keeping(job: Job, name: str) -> Method:
    """A method, with what it gives kept where that takes long."""
    found = method(name)
    return partial(_together if name in TOGETHER else _by_layer, job, name, found) if name in KEPT else found


def _by_layer(job: Job, name: str, found: Method, model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Kept for each layer: plans of one model share most of them."""
    keys = {
        one.layer: _key(
            "rounded",
            job,
            model,
            method=name,
            layer=one.layer,
            scheme=asdict(one.scheme),
            input_scale=None if one.input_scale is None else float(one.input_scale),
        )
        for one in wanted
    }
    unpack = partial(unpack_change, schemes={one.layer: one.scheme for one in wanted})
    known = {layer: part for layer, key in keys.items() if (part := recalled(job.cache, "rounded", key, unpack))}
    parts = list(known.values())
    if missing := [one for one in wanted if one.layer not in known]:
        with job.clock.stage(name):
            fresh = found(model, missing, seen)
        parts.append(fresh)
        for layer in (one.layer for one in missing):
            biases = {layer: fresh.biases[layer]} if layer in fresh.biases else {}
            own = Change({layer: fresh.weights[layer]}, biases)
            job.cache.put("rounded", keys[layer], pack_change(own))
    weights = {layer: weight for part in parts for layer, weight in part.weights.items()}
    return Change(weights, {layer: bias for part in parts for layer, bias in part.biases.items()})


def _together(job: Job, name: str, found: Method, model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Kept as a whole, and in parts on the way: what a run that was interrupted has done is not done again."""
    layers, start = [one.layer for one in wanted], content_of(seen.quantized)
    key = _key("learned", job, model, method=name, steps=seen.steps, layers=layers, start=start)
    unpack = partial(unpack_change, schemes={one.layer: one.scheme for one in wanted})

    def part(of: str, make: Callable[[], Change]) -> Change:
        return cached(
            job.cache, "parts", content_key("parts", METHODS_VERSION, key=key, of=of), make, pack_change, unpack
        )

    def whole() -> Change:
        with job.clock.stage(name) as progress:
            return found(model, wanted, seen._replace(kept=part, progress=progress))

    return cached(job.cache, "learned", key, whole, pack_change, unpack)


def _key(stage: str, job: Job, model: Model, **parts: Json) -> str:
    data = job.calibration_data.sha256
    torch = installed("torch")
    return content_key(stage, METHODS_VERSION, model=model.fingerprint, calibration=data, **parts, **torch)


def _unjudged(job: Job) -> str:
    """Why it could not be judged what is learned; empty if it can."""
    if len(job.calibration_data) < FEWEST:
        return f"{len(job.calibration_data)} calibration samples are too few to judge it by; give {FEWEST} or more"
    if not any(is_float(job.model.nodes[name]) for name in job.model.output_nodes):
        return "the model gives no real numbers to judge it by; --method takes one without judging"
    return ""


def _judged(job: Job, method: str, before: Quantized, after: Quantized) -> tuple[Quantized, str]:
    """The better of the two on held-out samples, and what there is to say of it."""
    from edgeq.quantization.simulate import sqnr_of

    held = {name: array[::HELD_OUT] for name, array in job.calibration_data.inputs.items()}
    old, new = (sqnr_of(job.model, one, held) for one in (before, after))
    told = f"{old:.1f} to {new:.1f} dB, simulated on calibration samples that it had not seen"
    return (after, f"{method}: {told}") if new > old else (before, f"{method} was undone: {told}")
