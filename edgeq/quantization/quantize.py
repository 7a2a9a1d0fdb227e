"""The quantized model: integers and scales for every tensor that an artefact stores, before any file is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.calibration.calibration import Calibration
from edgeq.calibration.impact import Impact
from edgeq.errors import UnsupportedError
from edgeq.lowering.assign import Assignment, Version, assign
from edgeq.methods import NEAREST, method
from edgeq.methods.bias_correction import bias_shift
from edgeq.methods.method import Seen, Wanted
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, output_channels_axis
from edgeq.numerics.weights import QuantizedWeight
from edgeq.quantization.activations import QuantizedTensor, Ranges, quantize_activations
from edgeq.registry.schema import Runtime


@dataclass(frozen=True)
class Quantized:
    """Everything that the exporters write.

    Attributes:
        runtime: whose kernels it is for.
        assignment: which groups run on integers, and which only store them.
        activations: by graph node, in the type that its value has first; also of values that integer groups alone read
            rounded (`Assignment.also_float`).
        again: by graph node and type, rounded anew for those that read another type.
        weights: by group name.
        biases: float32, corrected, by group name; also of groups that stay in float.
        methods: by group name, how its weights were rounded (see `edgeq.methods`).
    """

    runtime: Runtime
    assignment: Assignment
    activations: dict[str, QuantizedTensor]
    again: dict[Version, QuantizedTensor]
    weights: dict[str, QuantizedWeight]
    biases: dict[str, NDArray[np.float32]]
    methods: dict[str, str]

    def read(self, group: Group, node: str) -> QuantizedTensor | None:
        """A value as a group reads it; None where that is float."""
        kernel = self.assignment.kernels.get(group.name)
        if kernel is None:
            return None
        return self.again.get((node, kernel.activations)) or self.activations.get(node)

    def input_scale(self, group: Group) -> NDArray[np.float32]:
        """The scale, [], of what an integer group multiplies its weights by."""
        read = self.read(group, group.inputs[0])
        assert read is not None
        return read.q.scale

    def read_anew(self, group: Group) -> dict[str, QuantizedTensor]:
        """By graph node, what a group reads in another type than that is written in."""
        kernel = self.assignment.kernels.get(group.name)
        versions = [] if kernel is None else [(node, kernel.activations) for node in group.inputs]
        return {version[0]: self.again[version] for version in versions if version in self.again}

    @property
    def rounded(self) -> dict[str, QuantizedTensor]:
        """By graph node, the activations that everyone reads rounded."""
        return {n: tensor for n, tensor in self.activations.items() if n not in self.assignment.also_float}

    def rounded_by_readers(self, model: Model) -> dict[tuple[str, str], QuantizedTensor]:
        """By the graph nodes of a reader and of what it reads, what that one rounds: in another type than it is written
        in, or where others read it in float."""
        also_float = self.assignment.also_float
        return {
            (group.root, node): tensor
            for group in model.groups
            for node in group.inputs
            if (tensor := self.read(group, node)) and (node in also_float or node in self.read_anew(group))
        }


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
    correct_bias: bool = True,
    ranges: Ranges | None = None,
) -> Quantized:
    """Ranges, integer weights and corrected biases for one runtime.

    Args:
        impact: what the choice of ranges minimizes (see `edgeq.calibration.impact`).
        choices: by group name, the name of a kernel or `float32`, where it is not the runtime's preferred kernel.
        methods: by group name, how its weights are rounded, where that is not to nearest (see `edgeq.methods`).
        inputs: the calibration samples, for methods that run the model on them.
        estimator: see `quantize_activations`.
        ranges: see `quantize_activations`; a search over many plans of one model and runtime keeps them here.
        correct_bias: shift each bias by the mean error of the rounded weights (see `bias_shift`).
    """
    assignment = assign(model, runtime, calibration.histograms, choices)
    activations, again = quantize_activations(model, runtime, assignment, calibration, impact, estimator, ranges)
    result = Quantized(runtime, assignment, activations, again, weights={}, biases={}, methods={})
    by_method: dict[str, dict[str, Wanted]] = {}
    for group in model.groups:
        if group.op not in WEIGHTED or group.weight is None or group.bias is None or not group.inputs:
            continue  # computed weights are no constants; a layer that reads constants alone is one itself
        weight, bias = model.state[group.weight], model.state[group.bias]
        result.biases[group.name] = bias
        kernel = assignment.kernel(group.name)
        if kernel is None or kernel.weight_scheme is None:
            continue
        input_scale = result.input_scale(group) if kernel.bias in ("int32", "int64") else None
        wanted = Wanted(group.name, weight, bias, kernel.weight_scheme, output_channels_axis(group.op), input_scale)
        result.methods[group.name] = (methods or {}).get(group.name, NEAREST)
        by_method.setdefault(result.methods[group.name], {})[group.name] = wanted
    groups = {group.name: group for group in model.groups}
    for by, layers in by_method.items():
        change = method(by)(model, list(layers.values()), Seen(calibration, impact, inputs or {}))
        for name, wanted in layers.items():
            found = change.weights.get(name)
            if found is None or (why := _unstorable(found, wanted)):
                why = "no weights" if found is None else why
                remedy = "take another method, such as nearest, or mend this one"
                raise UnsupportedError(f"the method {by!r} gives {why}", where=f"layer {name}", remedy=remedy)
            result.weights[name] = found
            if name in change.biases:
                result.biases[name] = change.biases[name]
            elif correct_bias:
                error = found.real - wanted.weight
                patch = calibration.mean_patches[groups[name].root]
                result.biases[name] = wanted.bias - bias_shift(groups[name].op, error, patch)
    return result


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
    kept = np.issubdtype(found.integers.dtype, np.integer)
    if not kept or found.integers.min() < scheme.quant_min or found.integers.max() > scheme.quant_max:
        return f"weights that are no integers from {scheme.quant_min} to {scheme.quant_max}"
    return ""
