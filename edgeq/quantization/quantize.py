"""The quantized model: integers and scales for every tensor that an artefact stores, before any file is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.fx import Node

from edgeq.calibration.calibrate import Calibration
from edgeq.calibration.impact import Impact
from edgeq.model.batches import one_thread
from edgeq.model.execute import Hook
from edgeq.model.groups import Group
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, output_channels_axis
from edgeq.numerics import fake_quantize
from edgeq.planning.assign import Assignment, Version, assign
from edgeq.quantization.activations import QuantizedTensor, Ranges, quantize_activations
from edgeq.quantization.bias_correction import bias_shift
from edgeq.quantization.weights import QuantizedWeight, quantize_weight
from edgeq.registry.schema import Runtime


@dataclass(frozen=True)
class Quantized:
    """Everything that the exporters write.

    Attributes:
        runtime: whose kernels it is for.
        assignment: which groups run on integers, and which only store them.
        activations: by graph node, in the type that its value has first.
        again: by graph node and type, rounded anew for those that read another type.
        weights: by group name.
        biases: float32, corrected, by group name; also of groups that stay in float.
    """

    runtime: Runtime
    assignment: Assignment
    activations: dict[str, QuantizedTensor]
    again: dict[Version, QuantizedTensor]
    weights: dict[str, QuantizedWeight]
    biases: dict[str, torch.Tensor]

    def read(self, group: Group, node: str) -> QuantizedTensor | None:
        """A value as a group reads it; None where that is float."""
        kernel = self.assignment.kernels.get(group.name)
        if kernel is None:
            return None
        return self.again.get((node, kernel.activations)) or self.activations.get(node)

    def input_scale(self, group: Group) -> torch.Tensor:
        """The scale, [], of what an integer group multiplies its weights by."""
        read = self.read(group, group.inputs[0])
        assert read is not None
        return read.q.scale

    def read_anew(self, group: Group) -> dict[str, QuantizedTensor]:
        """By graph node, what a group reads in another type than that is written in."""
        kernel = self.assignment.kernels.get(group.name)
        versions = [] if kernel is None else [(node, kernel.activations) for node in group.inputs]
        return {version[0]: self.again[version] for version in versions if version in self.again}

    def all_read_anew(self, model: Model) -> dict[tuple[str, str], QuantizedTensor]:
        """The same of all groups: by the graph nodes of the reader and of what it reads."""
        return {(g.root, node): tensor for g in model.groups for node, tensor in self.read_anew(g).items()}


@one_thread()
def quantize_model(
    model: Model,
    runtime: Runtime,
    calibration: Calibration,
    impact: Impact | None = None,
    *,
    choices: Mapping[str, str] | None = None,
    estimator: str = "auto",
    correct_bias: bool = True,
    ranges: Ranges | None = None,
) -> Quantized:
    """Ranges, integer weights and corrected biases for one runtime.

    Args:
        impact: what the choice of ranges minimizes (see `edgeq.calibration.impact`).
        choices: by group name, the name of a kernel or `float32`, where it is not the runtime's preferred kernel.
        estimator: see `quantize_activations`.
        ranges: see `quantize_activations`; a search over many plans of one model and runtime keeps them here.
        correct_bias: shift each bias by the mean error of the rounded weights (see `bias_shift`).
    """
    assignment = assign(model, runtime, calibration.histograms, choices)
    activations, again = quantize_activations(model, runtime, assignment, calibration, impact, estimator, ranges)
    state = model.program.state_dict
    result = Quantized(runtime, assignment, activations, again, weights={}, biases={})
    weights, biases = result.weights, result.biases
    for group in model.groups:
        if group.op not in WEIGHTED or group.weight is None or group.bias is None or not group.inputs:
            continue  # computed weights are no constants; a layer that reads constants alone is one itself
        weight, bias = state[group.weight].detach(), state[group.bias].detach()
        biases[group.name] = bias
        kernel = assignment.kernel(group.name)
        if kernel is None or kernel.weight_scheme is None:
            continue
        axis = output_channels_axis(group.op)
        input_scale = result.input_scale(group) if kernel.bias in ("int32", "int64") else None
        weights[group.name] = quantize_weight(weight, bias, kernel.weight_scheme, axis, input_scale)
        if correct_bias:
            error = weights[group.name].real - weight
            biases[group.name] = bias - bias_shift(model.nodes[group.root], error, calibration.mean_inputs[group.root])
    return result


def simulate(
    model: Model, quantized: Quantized, batch: Sequence[torch.Tensor], see: Hook | None = None
) -> list[torch.Tensor]:
    """The outputs that integers would give, by fake quantization in float. It steers; it is never a result.

    Args:
        batch: one tensor per input, [N, ...].
        see: called with every node and its rounded values.
    """

    def hook(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        tensor = quantized.activations.get(node.name)
        rounded = values if tensor is None else [fake_quantize(v, tensor.q) for v in values]
        return see(node, rounded) if see else rounded

    reads = {pair: [partial(fake_quantize, q=t.q)] for pair, t in quantized.all_read_anew(model).items()}
    return model.run([batch], hook, rounded_constants(model, quantized), reads)[0]


def rounded_constants(model: Model, quantized: Quantized) -> dict[str, torch.Tensor]:
    """What takes the place of the model's weights and biases, by graph node: real numbers, float32."""
    constants: dict[str, torch.Tensor] = {}
    for group in model.groups:
        if group.name in quantized.weights:
            _, weight, bias = model.nodes[group.root].all_input_nodes[:3]
            constants[weight.name] = quantized.weights[group.name].real
            constants[bias.name] = quantized.biases[group.name]
    return constants
