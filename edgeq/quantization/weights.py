"""Weights to integers: round to nearest, one symmetric scale for each output channel, or for each few weights of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeq.numerics import QParams, Scheme, dequantize, qparams, quantize

BIAS_HEADROOM = 2.0**29
"""Largest bias in units of its integer scale: int32 holds it, and the accumulator adds to it."""


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers in PyTorch's layout with their scales.

    Attributes:
        integers: the storage type of `q.scheme`, int8 for 4 bits, in the weight's shape.
        q: scale float32 [channels] (or []), zero point; of groups [channels * groups], channel by channel, each for
            a row of `integers.reshape(-1, group)`.
    """

    integers: torch.Tensor
    q: QParams

    @property
    def real(self) -> torch.Tensor:
        """What the integers stand for, float32."""
        return dequantize(_rows(self.integers, self.q.scheme), self.q).reshape(self.integers.shape)


def _rows(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """[rows, group] where groups share a scale; else the weight as it is."""
    return weight if scheme.group is None else weight.reshape(-1, scheme.group)


def quantize_weight(
    weight: torch.Tensor, bias: torch.Tensor, scheme: Scheme, axis: int, input_scale: torch.Tensor | None
) -> QuantizedWeight:
    """Rounds to nearest with absolute-maximum scales.

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
        q = qparams(rows.amin(dim=1), rows.amax(dim=1), scheme, 0)
        return QuantizedWeight(quantize(rows, q).reshape(weight.shape), q)
    if scheme.granularity == "tensor":
        low, high = torch.aminmax(weight)
        channel_axis = None
    else:
        other = [d for d in range(weight.dim()) if d != axis]
        low, high = weight.amin(dim=other), weight.amax(dim=other)
        channel_axis = axis
    if input_scale is not None:
        needed = bias.abs().double() / (input_scale.double() * BIAS_HEADROOM) * scheme.quant_max
        high = torch.maximum(high.double(), needed if channel_axis is not None else needed.max())
    q = qparams(low, high, scheme, channel_axis)
    return QuantizedWeight(quantize(weight, q), q)


def quantize_bias(bias: torch.Tensor, input_scale: torch.Tensor, weight: QParams) -> torch.Tensor:
    """int32 [channels]: the bias in units of the accumulator, `input_scale * weight_scale`."""
    scale = bias_scale(input_scale, weight, len(bias))
    limit = 2**31 - 1
    return torch.round(bias.double() / scale.double()).clamp(-limit, limit).to(torch.int32)


def bias_scale(input_scale: torch.Tensor, weight: QParams, channels: int) -> torch.Tensor:
    """float32 [channels]: the product of the two scales, as the runtimes compute it."""
    return (input_scale * weight.scale).expand(channels).contiguous()
