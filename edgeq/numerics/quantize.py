"""Uniform affine quantization: scales from ranges, integers from reals and back. The one arithmetic of edgeq.

It is NumPy's: what a plan stores is computed without PyTorch, whose import takes seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeq.numerics.scheme import Scheme

_STORED = {
    "int2": np.int8, "uint2": np.uint8, "int4": np.int8, "uint4": np.uint8, "int8": np.int8, "uint8": np.uint8,
    "int16": np.int16, "uint16": np.uint16, "int32": np.int32, "int64": np.int64,
}  # fmt: skip

SQNR_END = 200.0
"""SQNR is kept within plus or minus this many dB, because JSON has no infinity. 24-bit floats end near 145 dB."""

_BLOCK = 1 << 22
"""Elements looked at together, so that large tensors are never copied whole."""

_LEAST_HALF = 2.0**-24
"""The smallest number of float16."""

SMALLEST_SCALE = 1e-9
"""Below this a scale is raised: runtimes invert scales in float32, and a constant tensor has no range at all."""


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point of one tensor.

    Attributes:
        scheme: type, symmetry, granularity.
        scale: float32, shape [] or [channels].
        zero_point: int32, same shape.
        axis: axis of the channels, None for one scale per tensor.
    """

    scheme: Scheme
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    axis: int | None = None

    @property
    def low(self) -> float:
        """Smallest real value that can be told apart (per-tensor only)."""
        return float((self.scheme.quant_min - self.zero_point).astype(np.float32) * self.scale)

    @property
    def high(self) -> float:
        """Largest real value that can be told apart (per-tensor only)."""
        return float((self.scheme.quant_max - self.zero_point).astype(np.float32) * self.scale)

    def shaped(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
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
        and np.array_equal(one.scale, other.scale)
        and np.array_equal(one.zero_point, other.zero_point)
    )


def per_tensor(scheme: Scheme, scale: float, zero_point: int) -> QParams:
    """One scale and zero point that are known already."""
    return QParams(scheme, np.array(scale, np.float32), np.array(zero_point, np.int32))


def qparams(low: ArrayLike, high: ArrayLike, scheme: Scheme, axis: int | None = None) -> QParams:
    """Scale and zero point for a range, which is first widened to contain zero.

    Zero is then exactly representable, as padding and ReLU need it to be (Jacob et al. 2018, section 3).

    Args:
        low, high: shape [] or [channels]; float.
        scheme: an integer scheme.
        axis: axis of the channels in the tensor, None for one scale per tensor.

    Raises:
        ValueError: a bound is not finite, or low > high.
    """
    lowest: NDArray[np.float64] = np.asarray(low, np.float64)
    highest: NDArray[np.float64] = np.asarray(high, np.float64)
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        raise ValueError("a quantization range must be finite")
    if (lowest > highest).any():
        raise ValueError("a quantization range must have low <= high")
    lowest, highest = np.minimum(lowest, 0.0), np.maximum(highest, 0.0)
    qmin, qmax = scheme.quant_min, scheme.quant_max
    middle = np.zeros_like(lowest) if scheme.signed else np.where(lowest < 0, (qmax + 1) // 2, qmin)
    if scheme.symmetry == "asymmetric":
        step = (highest - lowest) / (qmax - qmin)
    else:
        step = np.maximum(highest / (qmax - middle), -lowest / np.maximum(middle - qmin, 1))
    step = np.maximum(step, SMALLEST_SCALE)
    if scheme.power_of_two:
        step = np.exp2(np.ceil(np.log2(step)))
    scale: NDArray[np.float32] = storable(np.asarray(step, np.float32), scheme)
    if scheme.symmetry == "asymmetric":
        first = qmin - np.rint(lowest / scale.astype(np.float64))
        zero_point: NDArray[np.int32] = np.asarray(np.clip(first, qmin, qmax), np.int32)
    else:
        zero_point = np.asarray(middle, np.int32)
    return QParams(scheme, scale, zero_point, axis)


def storable(scale: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float32]:
    """Scales as they can be stored: as they are, or the next larger number of float16, so that integers still reach."""
    if not scheme.half_scales:
        return scale
    near = np.maximum(scale, _LEAST_HALF).astype(np.float16)
    return np.asarray(np.where(near < scale, np.nextafter(near, np.float16(np.inf)), near), np.float32)


def stored_type(scheme: Scheme) -> np.dtype[Any]:
    """NumPy's type for integers of a scheme: that of 8 bits where they have fewer."""
    return np.dtype(_STORED[scheme.dtype])


def quantize(x: NDArray[Any], q: QParams) -> NDArray[Any]:
    """round(x / scale) + zero_point, to nearest with ties to even, saturated; in the scheme's storage type."""
    scale, zero_point = q.shaped(x.ndim)
    with np.errstate(over="ignore"):  # what is beyond float32 is beyond the range
        steps = np.rint(x / scale)
    steps = steps + zero_point.astype(steps.dtype)
    return np.asarray(np.clip(steps, q.scheme.quant_min, q.scheme.quant_max), stored_type(q.scheme))


def dequantize(integers: NDArray[Any], q: QParams) -> NDArray[np.float32]:
    """scale * (integer - zero_point), float32."""
    scale, zero_point = q.shaped(integers.ndim)
    steps = np.asarray(integers.astype(np.int64) - zero_point, np.float32)
    return np.asarray(steps * scale)


def sqnr_db(reference: NDArray[Any], measured: NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum r^2 / sum (r - m)^2).

    Within plus or minus `SQNR_END`; the upper end means equal.
    """
    reference, measured = np.atleast_1d(reference), np.atleast_1d(measured)
    signal = noise = 0.0
    length = max(1, _BLOCK * len(reference) // max(1, reference.size))
    for start in range(0, len(reference), length):  # in float64, all at once would take a multiple of their memory
        wide = reference[start : start + length].astype(np.float64)
        signal += float(np.square(wide).sum())
        noise += float(np.square(measured[start : start + length].astype(np.float64) - wide).sum())
    if noise == 0.0:
        return SQNR_END
    if signal == 0.0:
        return -SQNR_END
    return max(-SQNR_END, min(SQNR_END, 10 * (math.log10(signal) - math.log10(noise))))
