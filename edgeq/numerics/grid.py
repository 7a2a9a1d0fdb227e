"""A grid that somebody else chose: its integers go to any type that has a place for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.quantize import QParams
from edgeq.numerics.scheme import Scheme


@dataclass(frozen=True, eq=False)
class Grid:
    """Evenly spaced levels: real = scale * (integer - zero_point), for integers from `low` to `high`.

    Attributes:
        scale: float32, [] or [channels].
        zero_point: int32, same shape.
        low, high: the least and the largest integer.
        axis: of the channels, None for one scale per tensor.
        group: how many weights in a row share a scale, where they do so by groups: there is a scale for each row of
            `integers.reshape(-1, group)`, and `axis` is 0.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    low: int
    high: int
    axis: int | None = None
    group: int | None = None

    def __str__(self) -> str:
        scales = f"{self.scale.size} scales" if self.scale.ndim else f"scale {float(self.scale):.4g}"
        return f"integers from {self.low} to {self.high}, {scales}"

    def same(self, other: Grid) -> bool:
        """Whether both have the same integers for the same numbers."""
        return (
            (self.low, self.high, self.axis, self.group) == (other.low, other.high, other.axis, other.group)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def of_activations(self, scheme: Scheme) -> QParams | None:
        """The same levels in a scheme's integers; None where it has others. Both ends have to be the same: what is
        beyond them is cut off there."""
        shift = scheme.quant_min - self.low
        if self.axis is not None or self.high + shift != scheme.quant_max:
            return None
        return self._shifted(shift, scheme)

    def of_weights(
        self, scheme: Scheme, integers: NDArray[Any], channels: tuple[int, int]
    ) -> tuple[Any, QParams] | None:
        """Integers of this grid, and their scales, as a scheme has them; None where it has no place for one of them.

        Args:
            channels: their axis, and how many there are.
        """
        if scheme.group != self.group or scheme.levels is not None:
            return None
        signed = scheme.symmetry == "symmetric" and scheme.signed
        if signed and np.unique(self.zero_point).size != 1:
            return None
        shift = -int(self.zero_point.flat[0]) if signed else scheme.quant_min - self.low
        moved = integers.astype(np.int64) + shift
        if moved.min() < scheme.quant_min or moved.max() > scheme.quant_max:
            return None
        q = self._shifted(shift, scheme)
        if q is None or (scheme.granularity == "tensor" and q.axis is not None):
            return None
        axis, count = channels
        if scheme.group is not None:
            return moved, q
        if scheme.granularity == "channel" and q.axis is None:
            scale, zero = np.full(count, q.scale, np.float32), np.full(count, q.zero_point, np.int32)
            q = QParams(scheme, scale, zero, axis)
        return (moved, q) if q.axis in (None, axis) else None

    def _shifted(self, shift: int, scheme: Scheme) -> QParams | None:
        zero = (self.zero_point + shift).astype(np.int32)
        if scheme.symmetry == "symmetric":
            middles = {0} if scheme.signed else {scheme.quant_min, (scheme.quant_max + 1) // 2}
            if not set(np.unique(zero).tolist()) <= middles:
                return None
        if scheme.power_of_two and not (np.frexp(self.scale)[0] == 0.5).all():
            return None
        return QParams(scheme, self.scale, zero, self.axis)
