"""Batch-norm re-estimation by the statistics that it is to keep."""

from __future__ import annotations

import numpy as np
import pytest
import small_models
import torch

from edgeq.lowering.choices import ladder, uniform
from edgeq.methods import RE_ESTIMATE
from edgeq.methods.quantize import quantize_model
from edgeq.model.graph import Node
from edgeq.model.model import Model
from edgeq.model.ops import channel_axis_of_output
from edgeq.quantization.quantized import Quantized
from edgeq.quantization.simulate import simulate

CPU = small_models.runtime("onnxruntime")


def statistics(model: Model, quantized: Quantized | None, batch: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """By layer, mean and deviation of each channel's outputs before they are rounded, [2, channels].

    Layers write before their activation; what the simulation shows of a node is rounded where the node's value is.
    """
    found: dict[str, np.ndarray] = {}
    axes = {group.root: channel_axis_of_output(group.op) for group in model.groups if group.weight is not None}

    def see(node: Node, values: list[torch.Tensor]) -> list[torch.Tensor]:
        if node.name in axes:
            channels = values[0].double().movedim(axes[node.name], 0).flatten(1)
            found[node.name] = torch.stack([channels.mean(1), channels.std(1, correction=0)]).numpy()
        return values

    if quantized is None:
        model.run([batch], see)
    else:
        simulate(model, quantized, batch, see)
    return found


@pytest.mark.parametrize("network", ["residual", "depthwise", "mlp"])
def test_means_and_deviations_are_those_of_the_float_model(network: str) -> None:
    model, seen = small_models.model(network), small_models.calibration(network)
    inputs = small_models.arrays(network, 64, seed=5)
    batch = [torch.from_numpy(inputs[spec.name]) for spec in model.inputs]
    wanted = statistics(model, None, batch)
    off = []
    for name in ("gptq", RE_ESTIMATE):
        choices = uniform(ladder(model, CPU, seen.histograms), "w4a8")
        methods = {group.name: name for group in model.groups}
        found = quantize_model(model, CPU, seen, choices=choices, methods=methods, inputs=inputs)
        now = statistics(model, found, batch)
        off.append(np.mean([np.abs(now[n] - wanted[n]).mean() / wanted[n][1].mean() for n in wanted]))
    before, after = off
    assert after < before / 3 and after < 0.01
