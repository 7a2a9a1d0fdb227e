"""Weights to integers: round to nearest, one scale for each output channel, or for each few weights of it.

Where there are many integers, the largest weight sets the scale. Where there are few, the scale with the least squared
error does: cutting off the largest weights then costs less than rounding all the others coarsely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics import QParams, Scheme, dequantize, qparams, quantize

BIAS_HEADROOM = 2.0**29
"""Largest bias in units of its integer scale: int32 holds it, and the accumulator adds to it."""

FEW_BITS = 2
"""Up to so many bits, weights are cut off where that lowers their squared error. At 4 bits it helps some networks and
hurts others: every weight counts the same in that error, and the largest ones matter more than that."""

CUTS = tuple(0.9**step for step in range(20))
"""The parts of the largest weight that are tried, down to an eighth of it: four levels for weights with long tails."""


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers in PyTorch's layout with their scales.

    Attributes:
        integers: the storage type of `q.scheme`, int8 for fewer bits, in the weight's shape.
        q: scale float32 [channels] (or []), zero point; of groups [channels * groups], channel by channel, each for
            a row of `integers.reshape(-1, group)`.
    """

    integers: NDArray[Any]
    q: QParams

    @property
    def real(self) -> NDArray[np.float32]:
        """What the integers stand for, float32."""
        return dequantize(_rows(self.integers, self.q.scheme), self.q).reshape(self.integers.shape)


def _rows(weight: NDArray[Any], scheme: Scheme) -> NDArray[Any]:
    """[rows, group] where groups share a scale; else the weight as it is."""
    return weight if scheme.group is None else weight.reshape(-1, scheme.group)


def quantize_weight(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    scheme: Scheme,
    axis: int,
    input_scale: NDArray[np.float32] | None,
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
    """
    if scheme.group is not None:
        rows = _rows(weight, scheme)
        q = qparams(*_range(rows, scheme, 0), scheme, 0)
        return QuantizedWeight(quantize(rows, q).reshape(weight.shape), q)
    channel_axis = None if scheme.granularity == "tensor" else axis
    low, high = _range(weight, scheme, channel_axis)
    if input_scale is not None:
        needed = np.abs(bias.astype(np.float64)) / (float(input_scale) * BIAS_HEADROOM) * scheme.quant_max
        high = np.maximum(high, needed if channel_axis is not None else needed.max())
    q = qparams(low, high, scheme, channel_axis)
    return QuantizedWeight(quantize(weight, q), q)


def _range(weight: NDArray[np.float32], scheme: Scheme, axis: int | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the integers have to reach, [channels], or [] where the axis is None."""
    other = tuple(d for d in range(weight.ndim) if d != axis)
    low, high = np.asarray(weight.min(axis=other)), np.asarray(weight.max(axis=other))
    if scheme.width > FEW_BITS:
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


def quantize_bias(bias: NDArray[np.float32], input_scale: NDArray[np.float32], weight: QParams) -> NDArray[np.int32]:
    """int32 [channels]: the bias in units of the accumulator, `input_scale * weight_scale`."""
    scale = bias_scale(input_scale, weight, len(bias))
    limit = 2**31 - 1
    return np.clip(np.rint(bias.astype(np.float64) / scale.astype(np.float64)), -limit, limit).astype(np.int32)


def bias_scale(input_scale: NDArray[np.float32], weight: QParams, channels: int) -> NDArray[np.float32]:
    """float32 [channels]: the product of the two scales, as the runtimes compute it."""
    return np.ascontiguousarray(np.broadcast_to(input_scale * weight.scale, (channels,)))
