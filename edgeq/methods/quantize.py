"""Quantizes a model: ranges for its activations, and every layer's weights rounded by its method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.calibration.calibration import Calibration
from edgeq.calibration.impact import Impact
from edgeq.errors import UnsupportedError, UsageError
from edgeq.lowering.assign import assign
from edgeq.methods import METHODS, NEAREST, fits, method
from edgeq.methods.bias_correction import corrected
from edgeq.methods.given import GIVEN, given
from edgeq.methods.method import STEPS, Change, Method, Seen, Wanted
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, output_channels_axis
from edgeq.numerics.levels import count_of, fixed_levels
from edgeq.numerics.weights import QuantizedWeight
from edgeq.progress import Silent
from edgeq.quantization.activations import Ranges, quantize_activations
from edgeq.quantization.quantized import Quantized
from edgeq.registry.schema import Runtime


def quantize_model(
    model: Model,
    runtime: Runtime,
    calibration: Calibration,
    impact: Impact | None = None,
    *,
    choices: Mapping[str, str] | None = None,
    estimator: str = "auto",
    methods: Mapping[str, str] | None = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    steps: int = STEPS,
    by: Callable[[str], Method] = method,
    correct_bias: bool = True,
    ranges: Ranges | None = None,
) -> Quantized:
    """Ranges, integer weights and corrected biases for one runtime. What a model came with stays as it is.

    Args:
        impact: what the choice of ranges minimizes (see `edgeq.calibration.impact`).
        choices: by group name, the name of a kernel or `float32`, where it is not the runtime's preferred kernel.
        methods: by group name, how its weights are rounded, where that is not to nearest (see `edgeq.methods`).
        inputs: the calibration samples, for methods that run the model on them.
        steps: for methods that learn (see `edgeq.methods.method.Seen`).
        by: a method by its name.
        estimator: see `quantize_activations`.
        ranges: see `quantize_activations`; a search over many plans of one model and runtime keeps them here.
        correct_bias: shift each bias by the mean error of the rounded weights (see `bias_shift`).

    Raises:
        UsageError: there is no such method, or it does not round to the levels that its layer is to have.
    """
    assignment = assign(model, runtime, calibration.histograms, choices)
    activations, again = quantize_activations(model, runtime, assignment, calibration, impact, estimator, ranges)
    result = Quantized(runtime, assignment, activations, again, weights={}, biases={}, methods={})
    wanted = _wanted(model, result)
    seen = Seen(calibration, impact, inputs or {}, result, steps, Silent(), by)

    groups = {group.name: group for group in model.groups}

    def take(name: str, layers: Sequence[Wanted], way: Method) -> None:
        change = way(model, layers, seen)
        rescaled = result.rescaled(change.scales)
        result.activations.update(rescaled.activations)
        result.again.update(rescaled.again)
        for one in layers:
            _take(result, one, name, change)
            if correct_bias and one.layer not in change.biases:
                found = result.weights[one.layer]
                result.biases[one.layer] = corrected(groups[one.layer], one, found, calibration)

    held = frozenset() if model.grids is None else model.grids.weights.keys()
    own = [one for one in wanted if groups[one.layer].weight in held]
    rest = [one for one in wanted if groups[one.layer].weight not in held]
    if own:
        take(GIVEN, own, given)
    take(NEAREST, rest, by(NEAREST))
    asked = {one.layer: (methods or {}).get(one.layer, NEAREST) for one in rest}
    for one in rest:
        _refuse_unfit(one, asked[one.layer])
    for name in METHODS:
        layers = [one for one in rest if asked[one.layer] == name]
        if layers and name != NEAREST:
            take(name, layers, by(name))
    return result


def _wanted(model: Model, quantized: Quantized) -> list[Wanted]:
    """The layers whose weights become integers. Biases of the others stay as they are."""
    found = []
    for group in model.groups:
        if group.op not in WEIGHTED or group.weight is None or group.bias is None or not group.inputs:
            continue  # computed weights are no constants; a layer that reads constants alone is one itself
        weight, bias = model.state[group.weight], model.state[group.bias]
        quantized.biases[group.name] = bias
        kernel = quantized.assignment.kernel(group.name)
        if kernel is None or kernel.weight_scheme is None:
            continue
        input_scale = quantized.input_scale(group) if kernel.bias in ("int32", "int64") else None
        axis = output_channels_axis(group.op)
        found.append(Wanted(group.name, weight, bias, kernel.weight_scheme, axis, input_scale))
    return found


def _refuse_unfit(one: Wanted, name: str) -> None:
    able = [other for other in METHODS if fits(other, one.scheme)]
    if name not in able:
        what = f"{one.scheme.dtype} weights, {one.scheme.levels or 'evenly spaced'}"
        cause = f"{name} does not round to {what}" if name in METHODS else f"there is no method {name!r}"
        raise UsageError(cause, where=f"layer {one.layer}", remedy=f"one of {', '.join(able)}")


def _take(quantized: Quantized, wanted: Wanted, by: str, change: Change) -> None:
    """Writes down what a method made of a layer.

    Raises:
        UnsupportedError: no file can hold it.
    """
    found = change.weights.get(wanted.layer)
    why = "no weights" if found is None else _unstorable(found, wanted)
    if found is None or why:
        remedy = "take another method, such as nearest, or mend this one"
        raise UnsupportedError(f"the method {by!r} gives {why}", where=f"layer {wanted.layer}", remedy=remedy)
    quantized.weights[wanted.layer], quantized.methods[wanted.layer] = found, by
    quantized.biases[wanted.layer] = change.biases.get(wanted.layer, wanted.bias)


def _unstorable(found: QuantizedWeight, wanted: Wanted) -> str:
    """What is wrong with a method's weights; empty if they can be stored as is wanted."""
    scheme, scale, zero = found.q.scheme, found.q.scale, found.q.zero_point
    if scheme != wanted.scheme:
        return f"integers of another scheme than {wanted.scheme}"
    if found.integers.shape != wanted.weight.shape:
        return f"weights of the shape {found.integers.shape} for {wanted.weight.shape}"
    if not np.isfinite(scale).all() or (scale <= 0).any():
        return "scales that are not finite and positive"
    channels = 1 if scheme.granularity == "tensor" else wanted.weight.shape[wanted.axis]
    if scheme.group is None and scale.size != channels:
        return f"{scale.size} scales where there are {channels}"
    if scale.shape != zero.shape or (scheme.symmetry == "symmetric" and scheme.signed and zero.any()):
        return "other zero points than its scheme has"
    if why := _unlevelled(found):
        return why
    kept = np.issubdtype(found.integers.dtype, np.integer)
    if not kept or found.integers.min() < scheme.quant_min or found.integers.max() > scheme.quant_max:
        return f"weights that are no integers from {scheme.quant_min} to {scheme.quant_max}"
    return ""


def _unlevelled(found: QuantizedWeight) -> str:
    """What is wrong with the levels of weights; empty if they are those of their scheme."""
    scheme, levels = found.q.scheme, found.levels
    if scheme.levels is None:
        return "" if levels is None else "levels where they are evenly spaced"
    fixed = fixed_levels(scheme)
    if levels is None or levels.dtype != np.float32 or levels.shape != (count_of(scheme),):
        return f"not {count_of(scheme)} levels in float32"
    if not np.isfinite(levels).all() or (np.diff(levels) < 0).any():
        return "levels that are not finite and ascending"
    if fixed is not None and not np.array_equal(levels, fixed):
        return f"other levels than those of {scheme.levels}"
    return f"places beyond the last of {len(levels)} levels" if found.integers.max() >= len(levels) else ""
