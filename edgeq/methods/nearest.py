"""Round to nearest, one scale for each output channel, or for each few weights of it.

Where there are many integers, the largest weight sets the scale. Where there are few, the scale with the least squared
error does: cutting off the largest weights then costs less than rounding all the others coarsely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.methods.method import Change, Seen, Wanted
from edgeq.model.model import Model
from edgeq.numerics import Scheme, dequantize, qparams, quantize
from edgeq.numerics.weights import BIAS_HEADROOM, QuantizedWeight, rows

FEW_BITS = 2
"""Up to so many bits, weights are cut off where that lowers their squared error. At 4 bits it helps some networks and
hurts others: every weight counts the same in that error, and the largest ones matter more than that."""

CUTS = tuple(0.9**step for step in range(20))
"""The parts of the largest weight that are tried, down to an eighth of it: four levels for weights with long tails."""


def nearest(model: Model, wanted: Sequence[Wanted], seen: Seen) -> Change:
    """Rounds every weight by itself."""
    return Change({w.layer: quantize_weight(w.weight, w.bias, w.scheme, w.axis, w.input_scale) for w in wanted})


def quantize_weight(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    scheme: Scheme,
    axis: int,
    input_scale: NDArray[np.float32] | None,
    *,
    cut: bool | None = None,
) -> QuantizedWeight:
    """Rounds to nearest, with absolute-maximum scales or those of least squared error (see `least_squared_error`).

    A channel whose bias would not fit int32 in units of `input_scale * weight_scale` gets a coarser scale: its
    weights are tiny beside its bias, so nothing is lost by it.

    Args:
        weight: float32, any shape.
        bias: float32 [channels].
        scheme: an integer scheme; per channel, per tensor, or per group of a float bias's layer.
        axis: axis of the output channels in `weight`; the first one for groups, whose size divides a channel's weights.
        input_scale: scale of the layer's input, where the bias is stored as integers.
        cut: whether the largest weights may be cut off; up to `FEW_BITS` if None.
    """
    cut = scheme.width <= FEW_BITS if cut is None else cut
    if scheme.group is not None:
        grouped = rows(weight, scheme)
        q = qparams(*_range(grouped, scheme, 0, cut), scheme, 0)
        return QuantizedWeight(quantize(grouped, q).reshape(weight.shape), q)
    channel_axis = None if scheme.granularity == "tensor" else axis
    low, high = _range(weight, scheme, channel_axis, cut)
    if input_scale is not None:
        needed = np.abs(bias.astype(np.float64)) / (float(input_scale) * BIAS_HEADROOM) * scheme.quant_max
        high = np.maximum(high, needed if channel_axis is not None else needed.max())
    q = qparams(low, high, scheme, channel_axis)
    return QuantizedWeight(quantize(weight, q), q)


def _range(
    weight: NDArray[np.float32], scheme: Scheme, axis: int | None, cut: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the integers have to reach, [channels], or [] where the axis is None."""
    other = tuple(d for d in range(weight.ndim) if d != axis)
    low, high = np.asarray(weight.min(axis=other)), np.asarray(weight.max(axis=other))
    if not cut:
        return low, high
    part = least_squared_error(weight, low, high, scheme, axis)
    return low * part, high * part


def least_squared_error(
    weight: NDArray[np.float32], low: NDArray[Any], high: NDArray[Any], scheme: Scheme, axis: int | None
) -> NDArray[np.float32]:
    """The part of a range, of those in `CUTS`, that gives the least squared error when all beyond it is cut off.

    Source: Banner et al. 2019, "Post-training 4-bit quantization of convolution networks", section 3, which derives the
    best cut from a distribution; here it is tried on the weights themselves.

    Args:
        weight: float32, any shape.
        low, high: [channels] or []: the extremes of the weights.
        axis: of the channels; None for one scale.

    Returns:
        float32, the shape of `low`.
    """
    other = tuple(d for d in range(weight.ndim) if d != axis)

    def error(part: float) -> NDArray[Any]:
        q = qparams(low * part, high * part, scheme, axis)
        return np.asarray(np.square(dequantize(quantize(weight, q), q) - weight).sum(axis=other))

    best = np.stack([error(part) for part in CUTS]).argmin(axis=0)
    parts: NDArray[np.float32] = np.array(CUTS, np.float32)[best]
    return parts
