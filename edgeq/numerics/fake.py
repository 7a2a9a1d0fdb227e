"""Fake quantization for simulation: the values that integers stand for, in PyTorch's float."""

from __future__ import annotations

import torch

from edgeq.numerics.quantize import QParams


def fake_quantize(x: torch.Tensor, q: QParams) -> torch.Tensor:
    """`dequantize(quantize(x))` in one pass.

    PyTorch's kernel multiplies by the reciprocal of the scale: values within a rounding error of a step's
    middle may land one step apart from `quantize`.
    """
    low, high = q.scheme.quant_min, q.scheme.quant_max
    if q.axis is None:
        return torch.fake_quantize_per_tensor_affine(x, float(q.scale), int(q.zero_point), low, high)
    scale, zero_point = torch.from_numpy(q.scale), torch.from_numpy(q.zero_point)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, q.axis, low, high)
