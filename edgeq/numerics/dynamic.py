"""Rounding by scales that are computed from the values themselves, as runtimes do it in every call; in PyTorch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from edgeq.numerics.scheme import Scheme


def round_dynamically(x: torch.Tensor, scheme: Scheme, length: int) -> torch.Tensor:
    """The values that integers would stand for; gradients pass as if nothing were rounded.

    Source: Operator DynamicQuantizeLinear of ONNX, https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html;
    symmetric schemes take the largest magnitude for the highest integer.

    Args:
        x: float32, [..., inputs].
        scheme: of the integers; its granularity does not count.
        length: how many numbers share a scale, side by side: a divisor of `x.numel()`, or less than a row of it, of
            which the last ones then are fewer.
    """
    rest = -x.shape[-1] % length if length < x.shape[-1] else 0
    parts = F.pad(x, (0, rest)).reshape(-1, length)
    low, high = parts.amin(1, keepdim=True).clamp(max=0), parts.amax(1, keepdim=True).clamp(min=0)
    qmin, qmax = scheme.quant_min, scheme.quant_max
    if scheme.symmetry == "symmetric":
        scale, zero = torch.maximum(-low, high) / qmax, torch.zeros_like(low)
    else:
        scale = (high - low) / (qmax - qmin)
        zero = (qmin - low / scale).round().clamp(qmin, qmax)
    scale, zero = (torch.where(scale > 0, v, one) for v, one in ((scale, 1.0), (zero, 0.0)))
    steps = ((parts / scale).round() + zero).clamp(qmin, qmax) - zero
    real = (steps * scale).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return x + (real - x).detach() if x.requires_grad else real
