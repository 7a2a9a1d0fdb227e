"""Analytic bias correction: what rounded weights add to a layer's mean output is taken off its bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.calibration.calibration import Calibration
from edgeq.methods.method import Wanted
from edgeq.model.groups import Group
from edgeq.model.ops import output_channels_axis
from edgeq.numerics.weights import QuantizedWeight


def corrected(group: Group, one: Wanted, found: QuantizedWeight, calibration: Calibration) -> NDArray[np.float32]:
    """The bias of a layer, float32 [channels], less what its rounded weights add to the mean output."""
    bias: NDArray[np.float32] = one.bias - bias_shift(
        group.op, found.real - one.weight, calibration.mean_patches[group.root]
    )
    return bias


def bias_shift(op: str, weight_error: NDArray[Any], patch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean change of a layer's output that an error in its weights causes.

    The layer is linear, so E[f(x; w + e)] - E[f(x; w)] = f(E[x]; e): the error times what the weights meet on average
    gives it exactly, padding included. A correction that runs the quantized model and compares means goes wrong where
    activations are clipped: it moves every value to make up for the few outliers that were cut.

    Source: Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", equations 13
    to 15, with the means measured on calibration data.

    Args:
        op: operator class of the layer.
        weight_error: rounded minus float weight, in the weight's shape.
        patch: from `edgeq.calibration.patches.mean_patch`.

    Returns:
        float32 [output channels].
    """
    errors = weight_error.reshape(len(patch), -1, *weight_error.shape[1:])
    others = tuple(d for d in range(1, errors.ndim) if d != 1 + output_channels_axis(op))
    moved: NDArray[np.float64] = np.multiply(errors, patch, dtype=np.float64).sum(axis=others)
    return moved.reshape(-1).astype(np.float32)
