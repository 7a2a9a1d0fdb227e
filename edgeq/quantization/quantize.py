"""The quantized model: integers and scales for every tensor that an artefact stores, before any file is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.fx import Node

from edgeq.calibration.calibrate import Calibration, batches, channel_mean
from edgeq.model.model import Model
from edgeq.model.ops import WEIGHTED, channel_axis_of_output, output_channels_axis
from edgeq.numerics import fake_quantize
from edgeq.planning.assign import Assignment, assign
from edgeq.progress import Progress, Silent
from edgeq.quantization.activations import QuantizedTensor, quantize_activations
from edgeq.quantization.weights import QuantizedWeight, quantize_weight
from edgeq.registry.schema import Runtime


@dataclass(frozen=True)
class Quantized:
    """Everything that the exporters write.

    Attributes:
        runtime: whose kernels it is for.
        assignment: which groups run on integers.
        activations: by graph node.
        weights: by group name.
        biases: float32, corrected, by group name; also of groups that stay in float.
    """

    runtime: Runtime
    assignment: Assignment
    activations: dict[str, QuantizedTensor]
    weights: dict[str, QuantizedWeight]
    biases: dict[str, torch.Tensor]


def quantize_model(
    model: Model,
    runtime: Runtime,
    calibration: Calibration,
    inputs: Mapping[str, np.ndarray],
    *,
    estimator: str = "auto",
    correct_bias: bool = True,
    progress: Progress | None = None,
) -> Quantized:
    """Ranges, integer weights and corrected biases for one runtime.

    Args:
        inputs: calibration samples for the bias correction, by input name, [N, ...].
        estimator: see `quantize_activations`.
        correct_bias: shift each bias by the mean error that quantization causes (see `correct_biases`).
    """
    assignment = assign(model, runtime, calibration.histograms)
    activations = quantize_activations(model, runtime, assignment, calibration, estimator)
    state = model.program.state_dict
    weights: dict[str, QuantizedWeight] = {}
    biases: dict[str, torch.Tensor] = {}
    for group in model.groups:
        if group.op not in WEIGHTED or group.weight is None or group.bias is None:
            continue
        biases[group.name] = state[group.bias].detach().float()
        kernel = assignment.kernels.get(group.name)
        if kernel is None or kernel.weight_scheme is None:
            continue
        weights[group.name] = quantize_weight(
            state[group.weight].detach(),
            biases[group.name],
            kernel.weight_scheme,
            output_channels_axis(group.op),
            activations[group.inputs[0]].q.scale if kernel.bias in ("int32", "int64") else None,
        )
    quantized = Quantized(runtime, assignment, activations, weights, biases)
    if not correct_bias:
        return quantized
    return replace(quantized, biases=correct_biases(model, quantized, calibration, inputs, progress))


def correct_biases(
    model: Model,
    quantized: Quantized,
    calibration: Calibration,
    inputs: Mapping[str, np.ndarray],
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Biases that bring each layer's mean output back to the float model's, by group name.

    Layers are visited in order, each with its inputs as the quantized and already corrected layers before it
    leave them: b' = b + E[y_float] - E[y_quantized] per output channel. All samples advance through the graph
    together, so that this costs one simulated pass over them, however deep the model is.

    Source: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", section
    4.2 and appendix D (empirical bias correction), with the float means taken from calibration.

    Args:
        inputs: by input name, [N, ...].
    """
    progress = progress or Silent()
    roots = {g.root: g for g in model.groups if g.name in quantized.weights}
    biases = dict(quantized.biases)
    done = 0

    def correct(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        nonlocal done
        group = roots.get(node.name)
        if group is not None:
            axis = channel_axis_of_output(group.op)
            shift = (calibration.channel_means[node.name] - channel_mean(values, axis)).float()
            biases[group.name] = biases[group.name] + shift
            shape = [1] * values[0].dim()
            shape[axis] = -1
            values = [v + shift.reshape(shape) for v in values]
            done += 1
            progress.step(done, len(roots))
        return rounded(quantized, node, values)

    first = {name: column[: calibration.mean_samples] for name, column in inputs.items()}
    model.run(list(batches(model, first)), correct, replaced_weights(model, quantized))
    return biases


def rounded(quantized: Quantized, node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
    """A node's values as integers would leave them."""
    tensor = quantized.activations.get(node.name)
    return values if tensor is None else [fake_quantize(v, tensor.q) for v in values]


def replaced_weights(model: Model, quantized: Quantized) -> dict[str, torch.Tensor]:
    """Rounded weights by the graph node of the constant."""
    found: dict[str, torch.Tensor] = {}
    for group in model.groups:
        if group.name in quantized.weights:
            constant = model.nodes[group.root].args[1]
            assert isinstance(constant, Node)
            found[constant.name] = quantized.weights[group.name].real
    return found
