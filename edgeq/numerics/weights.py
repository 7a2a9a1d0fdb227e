"""Weights and biases as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.quantize import QParams, dequantize
from edgeq.numerics.scheme import Scheme

BIAS_HEADROOM = 2.0**29
"""Largest bias in units of its integer scale: int32 holds it, and the accumulator adds to it."""


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers in PyTorch's layout with their scales, and their levels where these are not evenly spaced.

    Attributes:
        integers: the storage type of `q.scheme`, int8 for fewer bits, in the weight's shape.
        q: scale float32 [channels] (or []), zero point; of groups [channels * groups], channel by channel, each for
            a row of `integers.reshape(-1, group)`.
        levels: float32 [levels], ascending; None where the integers themselves, less the zero point, are the levels.
    """

    integers: NDArray[Any]
    q: QParams
    levels: NDArray[np.float32] | None = None

    @property
    def real(self) -> NDArray[np.float32]:
        """What the integers stand for, float32."""
        if self.levels is not None:
            return np.asarray(self.levels[self.integers] * self.q.shaped(self.integers.ndim)[0])
        return dequantize(rows(self.integers, self.q.scheme), self.q).reshape(self.integers.shape)


def rows(weight: NDArray[Any], scheme: Scheme) -> NDArray[Any]:
    """[rows, group] where groups share a scale; else the weight as it is."""
    return weight if scheme.group is None else weight.reshape(-1, scheme.group)


def quantize_bias(bias: NDArray[np.float32], input_scale: NDArray[np.float32], weight: QParams) -> NDArray[np.int32]:
    """int32 [channels]: the bias in units of the accumulator, `input_scale * weight_scale`."""
    scale = bias_scale(input_scale, weight)
    limit = 2**31 - 1
    return np.clip(np.rint(bias.astype(np.float64) / scale.astype(np.float64)), -limit, limit).astype(np.int32)


def bias_scale(input_scale: NDArray[np.float32], weight: QParams) -> NDArray[np.float32]:
    """float32: the product of the two scales, as the runtimes compute it; [channels], or a scalar as that of the weight
    is. Beside a weight of one scale, Qualcomm's processor computes garbage with any other bias, and does not tell."""
    return np.asarray(input_scale * weight.scale, np.float32)
