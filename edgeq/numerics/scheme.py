"""How a tensor is represented in integers: the type, the symmetry, the granularity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal[
    "int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "int64",
    "float16", "bfloat16", "float32",
]  # fmt: skip
Symmetry = Literal["symmetric", "asymmetric"]
Granularity = Literal["tensor", "channel", "group"]

Levels = Literal["codebook", "pow2"]

_BITS = {
    "int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32,
    "int64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """A uniform affine quantization scheme: real = scale * (integer - zero_point). Or, of weights, one of levels that
    are not evenly spaced: real = scale * levels[integer].

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", equation 1.

    Attributes:
        dtype: the stored integer type.
        symmetry: symmetric schemes fix the zero point: 0, and in an unsigned type the middle where values are
            negative. Such integers less the middle are signed ones with zero point 0.
        granularity: one scale for the tensor, for each channel, or for each group along a channel.
        narrow: leave out the lowest integer, so that a symmetric range is symmetric in integers too.
        power_of_two: scales are powers of two, where the device multiplies by shifting.
        bits: significant bits when fewer than the type holds (7-bit weights where `u8 x s8` saturates).
        group: how many numbers in a row share a scale, where the granularity is `group`.
        levels: where they are not evenly spaced, which there are: any (`codebook`, stored with the tensor), or
            `pow2`, zero and plus or minus 1, 1/2, 1/4 and so on. Integers are then places among the levels.
        half_scales: scales are numbers of float16, which is how they are stored.
    """

    dtype: DType
    symmetry: Symmetry = "asymmetric"
    granularity: Granularity = "tensor"
    narrow: bool = False
    power_of_two: bool = False
    bits: int | None = None
    group: int | None = None
    levels: Levels | None = None
    half_scales: bool = False

    @property
    def integer(self) -> bool:
        return self.dtype in _BITS

    @property
    def signed(self) -> bool:
        return not self.dtype.startswith("u")

    @property
    def stored_bits(self) -> int:
        """Bits that one integer takes in a file."""
        return _BITS[self.dtype]

    @property
    def width(self) -> int:
        """Significant bits."""
        return self.bits if self.bits is not None else self.stored_bits

    @property
    def quant_min(self) -> int:
        low = -(1 << (self.width - 1)) if self.signed else 0
        return low + 1 if self.narrow else low

    @property
    def quant_max(self) -> int:
        return (1 << (self.width - 1)) - 1 if self.signed else (1 << self.width) - 1
