"""Analytic bias correction: what rounded weights add to a layer's mean output is taken off its bias."""

from __future__ import annotations

import torch
from torch.fx import Node

from edgeq.model.ops import channel_axis_of_output, op_class


def bias_shift(node: Node, weight_error: torch.Tensor, mean_input: torch.Tensor) -> torch.Tensor:
    """Mean change of a layer's output that an error in its weights causes.

    The layer is linear, so E[f(x; w + e)] - E[f(x; w)] = f(E[x]; e): one call on the mean input gives it exactly,
    padding included. A correction that runs the quantized model and compares means goes wrong where activations
    are clipped: it moves every value to make up for the few outliers that were cut.

    Source: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", equations 13
    to 15, with the means measured on calibration data.

    Args:
        node: the convolution or linear in the graph.
        weight_error: rounded minus float weight, in the weight's shape.
        mean_input: float32, shape of one sample's input with a leading 1.

    Returns:
        float32 [output channels].
    """
    with torch.inference_mode():
        output = node.target(mean_input, weight_error, None, *node.args[3:])  # type: ignore[operator]
    axis = channel_axis_of_output(op_class(node) or "") % output.dim()
    mean: torch.Tensor = output.mean(dim=[d for d in range(output.dim()) if d != axis])
    return mean.clone()
