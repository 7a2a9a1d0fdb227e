"""Scales of weights: such that the integers reach the largest one, or a part of it where that costs less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeq.methods.method import Wanted
from edgeq.numerics import QParams, qparams, quantize
from edgeq.numerics.quantize import SMALLEST_SCALE
from edgeq.numerics.weights import BIAS_HEADROOM, QuantizedWeight, rows

PARTS = tuple(0.95**step for step in range(40))
"""The parts of the largest weight that are tried, down to an eighth of it: four levels for weights with long tails."""


def by_scale(one: Wanted, array: NDArray[Any]) -> NDArray[Any]:
    """[scales, weights that share it], of an array in the weight's shape."""
    if one.scheme.granularity == "tensor":
        return array.reshape(1, -1)
    apart = rows(np.moveaxis(array, one.axis, 0), one.scheme)
    return apart.reshape(len(apart), -1)


def smallest_scales(one: Wanted) -> NDArray[np.float64]:
    """[scales] or []: those at which the bias still fits int32 in units of `input_scale * weight_scale`. The weights of
    a channel whose scale they raise are tiny beside its bias, so nothing is lost by it."""
    if one.input_scale is None:
        return np.full((), SMALLEST_SCALE)
    needed = np.abs(one.bias.astype(np.float64)) / (float(one.input_scale) * BIAS_HEADROOM)
    return np.maximum(needed.max() if one.scheme.granularity == "tensor" else needed, SMALLEST_SCALE)


def scales(one: Wanted, part: ArrayLike = 1.0) -> QParams:
    """The scales with which the integers reach a part of the extremes, coarser where a bias needs it.

    Args:
        part: [scales], or one for all of them.
    """
    shared = by_scale(one, one.weight)
    low, high = (extreme * np.asarray(part, np.float32) for extreme in (shared.min(axis=1), shared.max(axis=1)))
    if one.input_scale is not None:
        high = np.maximum(high, smallest_scales(one) * one.scheme.quant_max)
    if one.scheme.granularity == "tensor":
        return qparams(low[0], high[0], one.scheme)
    return qparams(low, high, one.scheme, 0 if one.scheme.group else one.axis)


def rounded(one: Wanted, q: QParams) -> QuantizedWeight:
    """Every weight to the nearest integer."""
    return QuantizedWeight(quantize(rows(one.weight, one.scheme), q).reshape(one.weight.shape), q)


def least_costly(one: Wanted, cost: Callable[[NDArray[np.float32]], NDArray[Any]]) -> QParams:
    """The scales that cost least, of those that reach one of `PARTS` of the extremes: all beyond is cut off.

    Source: Banner et al. 2019, "Post-training 4-bit quantization of convolution networks", section 3, which derives the
    best cut from a distribution; here it is tried on the weights themselves.

    Args:
        cost: of each weight, from the error of each: rounded less float weights; all in the weight's shape.
    """

    def total(part: float) -> NDArray[Any]:
        return np.asarray(by_scale(one, cost(rounded(one, scales(one, part)).real - one.weight)).sum(axis=1))

    best = np.stack([total(part) for part in PARTS]).argmin(axis=0)
    return scales(one, np.array(PARTS, np.float32)[best])
