"""Uniform affine quantization: scales from ranges, integers from reals and back. The one arithmetic of edgeq."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from edgeq.numerics.scheme import Scheme

_TORCH_TYPES = {
    "int2": torch.int8, "int4": torch.int8, "uint4": torch.uint8, "int8": torch.int8, "uint8": torch.uint8,
    "int16": torch.int16, "uint16": torch.uint16, "int32": torch.int32, "int64": torch.int64,
}  # fmt: skip

SMALLEST_SCALE = 1e-9
"""Below this a scale is raised: runtimes invert scales in float32, and a constant tensor has no range at all."""


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of one tensor.

    Attributes:
        scheme: type, symmetry, granularity.
        scale: float32, shape [] or [channels].
        zero_point: int32, same shape.
        axis: axis of the channels, None for one scale per tensor.
    """

    scheme: Scheme
    scale: torch.Tensor
    zero_point: torch.Tensor
    axis: int | None = None

    @property
    def low(self) -> float:
        """Smallest real value that can be told apart (per-tensor only)."""
        return float((self.scheme.quant_min - self.zero_point) * self.scale)

    @property
    def high(self) -> float:
        """Largest real value that can be told apart (per-tensor only)."""
        return float((self.scheme.quant_max - self.zero_point) * self.scale)

    def shaped(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point, ready to be broadcast against a tensor of `rank` dimensions."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)


def same_steps(one: QParams, other: QParams) -> bool:
    """Whether two scales and zero points give the same integers."""
    return (
        one.scheme == other.scheme
        and torch.equal(one.scale, other.scale)
        and torch.equal(one.zero_point, other.zero_point)
    )


def qparams(low: torch.Tensor, high: torch.Tensor, scheme: Scheme, axis: int | None = None) -> QParams:
    """Scale and zero point for a range, which is first widened to contain zero.

    Zero is then exactly representable, as padding and ReLU need it to be (Jacob et al. 2018, section 3).

    Args:
        low, high: shape [] or [channels]; float.
        scheme: an integer scheme.
        axis: axis of the channels in the tensor, None for one scale per tensor.

    Raises:
        ValueError: a bound is not finite, or low > high.
    """
    low, high = low.double(), high.double()
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError("a quantization range must be finite")
    if bool((low > high).any()):
        raise ValueError("a quantization range must have low <= high")
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    qmin, qmax = scheme.quant_min, scheme.quant_max
    if scheme.symmetry == "symmetric":
        middle = 0 if scheme.signed else (qmax + 1) // 2
        scale = (
            torch.maximum(low / (qmin - middle), high / (qmax - middle)) if qmin < middle else high / (qmax - middle)
        )
    else:
        middle = None
        scale = (high - low) / (qmax - qmin)
    scale = scale.clamp(min=SMALLEST_SCALE)
    if scheme.power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    scale = scale.float()
    if middle is not None:
        zero_point = torch.full_like(scale, middle, dtype=torch.int32)
    else:
        zero_point = (qmin - torch.round(low / scale.double())).clamp(qmin, qmax).to(torch.int32)
    return QParams(scheme, scale, zero_point, axis)


def quantize(x: torch.Tensor, q: QParams) -> torch.Tensor:
    """round(x / scale) + zero_point, to nearest with ties to even, saturated; in the scheme's storage type."""
    scale, zero_point = q.shaped(x.dim())
    values = torch.round(x / scale) + zero_point
    return values.clamp(q.scheme.quant_min, q.scheme.quant_max).to(_TORCH_TYPES[q.scheme.dtype])


def dequantize(integers: torch.Tensor, q: QParams) -> torch.Tensor:
    """scale * (integer - zero_point), float32."""
    scale, zero_point = q.shaped(integers.dim())
    return (integers.to(torch.int64) - zero_point).to(torch.float32) * scale


def fake_quantize(x: torch.Tensor, q: QParams) -> torch.Tensor:
    """`dequantize(quantize(x))` in one pass, for simulation.

    PyTorch's kernel multiplies by the reciprocal of the scale: values within a rounding error of a step's
    middle may land one step apart from `quantize`.
    """
    if q.axis is None:
        return torch.fake_quantize_per_tensor_affine(
            x, float(q.scale), int(q.zero_point), q.scheme.quant_min, q.scheme.quant_max
        )
    return torch.fake_quantize_per_channel_affine(
        x, q.scale, q.zero_point, q.axis, q.scheme.quant_min, q.scheme.quant_max
    )


def sqnr_db(reference: torch.Tensor, measured: torch.Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum r^2 / sum (r - m)^2)."""
    signal = float(reference.double().square().sum())
    noise = float((reference.double() - measured.double()).square().sum())
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf
